"""Waiting for a condition, with a deadline: the only way these tests wait."""

import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 30.0
_PAUSE_S: Final = 0.02


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], seconds: float = WAIT_S) -> float:
    """Return once it holds, with the seconds it took; fail with `what` if it does not come to hold."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, (
            f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        )
        time.sleep(_PAUSE_S)
    return time.monotonic() - started
