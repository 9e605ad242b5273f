"""What ends a command before it is done, each with its exit code.

Failure
├── Refused      1   the server says no: a 4xx answer
├── Misuse       2   the command line cannot be understood
├── NotAllowed   3   not signed in, or not for this role
└── Trouble      4   server or network: a 5xx answer, a time-out, no connection
"""

from typing import ClassVar, Final

DONE: Final = 0
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


class Failure(Exception):
    """Its words are for the person at the terminal; they never hold a secret."""

    exit_code: ClassVar[int] = 4


class Refused(Failure):
    """The server says no."""

    exit_code = 1


class Misuse(Failure):
    """The command line cannot be understood. `usage` is shown before the words."""

    exit_code = 2

    def __init__(self, words: str, usage: str = "") -> None:
        super().__init__(words)
        self.usage = usage


class NotAllowed(Failure):
    """Not signed in, or not for this role."""

    exit_code = 3


class Trouble(Failure):
    """Server or network."""

    exit_code = 4
