"""The only reader of the wall clock. Durations use time.monotonic, limits use Redis TIME; see RELIABILITY.md, clocks."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def unix_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def utc_now() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


def from_unix_ms(value_ms: int) -> datetime:
    """Unix milliseconds as an aware UTC datetime, exact to the millisecond."""
    seconds, milliseconds = divmod(value_ms, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=milliseconds * 1000)


def iso_utc(value_ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC with milliseconds, e.g. `2026-11-23T20:18:18.123Z`."""
    return from_unix_ms(value_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_unix_ms(time: datetime) -> int:
    """The inverse of `from_unix_ms`; a time without a zone is UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)
