"""Places in the code where a test may make a process die, fail or stand still: named, and off unless a test arms them.

`RELAY_FAILPOINTS=settled=kill@3,appended=error@1` kills the process the third time it reaches `settled`, and lets the first
`appended` fail. Without it `reach` is one look at an empty dictionary.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Final, Literal, get_args

Name = Literal[
    "priced",
    "reminded",
    "appended",
    "settled",
    "marked",
    "acknowledged_some",
    "control_archived",
    "control_applied",
    "control_credited",
    "parked",
    "lease_taken",
    "lease_published",
    "gate_closed",
    "gate_rewound",
    "rebuilt_some",
    "corrected_some",
    "spool_appended",
    "spool_published",
    "spool_marked",
    "control_publishing",
    "control_published",
    "notices_sent",
]
_NAMES: Final = frozenset(get_args(Name))
_PAUSE_S: Final = 5.0
_armed: Final[dict[str, Callable[[], None]]] = {}


class FailpointReached(RuntimeError):
    """The failure a test has asked for."""


def reach(name: Name) -> None:
    """Say that this point is passed. Raises FailpointReached, or ends the process, if a test wants it."""
    if _armed and (act := _armed.get(name)) is not None:
        act()


def arm(name: Name, act: Callable[[], None]) -> None:
    """Have `act` called whenever that point is passed."""
    _armed[name] = act


def disarm() -> None:
    """Forget all of them."""
    _armed.clear()


def arm_all(text: str) -> None:
    """Arm what a setting says: `name=kill|error|pause@N`, separated by commas. Raises ValueError."""
    for part in filter(None, text.split(",")):
        name, _, rest = part.partition("=")
        action, _, count = rest.partition("@")
        if name not in _NAMES or action not in ("kill", "error", "pause") or not count.isdigit():
            raise ValueError(f"no failure point: {part!r}")
        _armed[name] = _nth(int(count), name, action)


def _nth(number: int, name: str, action: str) -> Callable[[], None]:
    passed = 0

    def act() -> None:
        nonlocal passed
        passed += 1
        if passed != number:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "pause":
            time.sleep(_PAUSE_S)
        else:
            raise FailpointReached(name)

    return act
