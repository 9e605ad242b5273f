"""What a command says: lines for a person, or one JSON object a line for a program."""

import sys
from typing import Any

import msgspec


class Output:
    """Lines for a person, or one JSON object a line for a program."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, text: str, **fields: Any) -> None:
        """A finding, with what a program wants to know of it."""
        if self._as_json:
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def progress(self, text: str) -> None:
        """How far it is: for a person who waits."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
