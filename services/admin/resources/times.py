"""Times as callers write them."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec

from libs.common import clock
from services.admin.problems import BadInput, Unprocessable

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
TIME_MS_MAX: Final = 4_102_444_800_000  # 2100-01-01
Expiry = Annotated[datetime, msgspec.Meta(tz=True)]


def expiry_ms(time: datetime | None, *, name: str = "expires_at", in_future: bool = True) -> int | None:
    """Unix milliseconds; None is never. Raises Unprocessable."""
    if time is None:
        return None
    value_ms = (time - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= value_ms < TIME_MS_MAX:
        raise Unprocessable(f"{name} must lie between the years 1970 and 2100; null is never.")
    if in_future and value_ms <= clock.unix_ms():
        raise Unprocessable(f"{name}: this time has passed.")
    return value_ms


def query_ms(name: str, text: str) -> int:
    """RFC 3339, a date (midnight UTC), or Unix milliseconds, as Unix milliseconds. Raises BadInput."""
    if text.isascii() and text.isdigit() and len(text) <= 14 and len(text) != 8:
        return bounded_ms(name, int(text))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"{name} must be a time such as 2026-11-23T20:00:00Z, a date, or Unix milliseconds (a + in a URL is %2B)."
        ) from None
    since_epoch = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return bounded_ms(name, since_epoch // timedelta(milliseconds=1))


def bounded_ms(name: str, time_ms: int) -> int:
    """It, if it lies between 1970 and 2100. Raises BadInput."""
    if not 0 <= time_ms < TIME_MS_MAX:
        raise BadInput(f"{name} must lie between the years 1970 and 2100.")
    return time_ms
