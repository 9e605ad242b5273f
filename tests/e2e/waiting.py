"""Waiting for a condition, with a deadline: the only way these tests wait."""

import ssl
import time
from collections.abc import Callable
from typing import Final

WAIT_S: Final = 30.0
_PAUSE_S: Final = 0.02
_PAUSE_S_MAX: Final = 0.3
"""What it takes to ask is left to those who are waited for, up to this."""
PLAIN: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""`verify` of a single call without TLS: httpx would read all certificates of the machine for it, which is 23 ms of CPU."""


def wait_until(condition: Callable[[], bool], what: str | Callable[[], str], seconds: float = WAIT_S) -> float:
    """Return once it holds, with the seconds it took; fail with `what` if it does not come to hold."""
    started = time.monotonic()
    asked = started
    while not condition():
        assert time.monotonic() - started < seconds, (
            f"not within {seconds} s: {what if isinstance(what, str) else what()}"
        )
        time.sleep(min(max(_PAUSE_S, time.monotonic() - asked), _PAUSE_S_MAX))
        asked = time.monotonic()
    return time.monotonic() - started
