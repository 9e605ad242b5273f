"""Time zones as scripts read them: when local time changes against UTC, and to what."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo

_FIRST: Final = datetime(2020, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(2050, 1, 1, tzinfo=UTC)
_STEP: Final = timedelta(days=1)


@cache
def packed(name: str) -> str:
    """Records of 16 characters, `SSSSSSSSSS+OOOOO`: from Unix second S on, local time is O seconds ahead of UTC. `` for UTC.

    From 2020 to 2050; what is before or after has the first or last offset. Raises zoneinfo.ZoneInfoNotFoundError, ValueError.
    """
    zone = ZoneInfo(name)
    records = []
    at, offset = _FIRST, _offset(_FIRST, zone)
    records.append((at, offset))
    while at < _LAST:
        following = at + _STEP
        if (later := _offset(following, zone)) != offset:
            records.append((_change_between(at, following, zone), later))
            offset = later
        at = following
    if all(offset == 0 for _, offset in records):
        return ""
    return "".join(f"{int(at.timestamp()):010d}{offset:+06d}" for at, offset in records)


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The first second that has the offset of `after`; there is one change at most in a day."""
    wanted = _offset(after, zone)
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=int((after - before).total_seconds()) // 2)
        if _offset(middle, zone) == wanted:
            after = middle
        else:
            before = middle
    return after


def _offset(at: datetime, zone: ZoneInfo) -> int:
    offset = at.astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())
