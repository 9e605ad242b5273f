"""Local time for sums: where hours, days and months begin in a zone, and which stored sums a range of time is made of. Pure."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from libs.common import zones

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
BUCKETS_MAX: Final = 9_000
"""A year of hours; all of their beginnings travel with the query."""
_FRESH_MS: Final = 2 * HOUR_MS
"""Hours that ended less than so long ago are read row by row: their sums may not have been made yet."""
_LENGTH_S: Final = {"hour": 3_600, "day": 86_400, "month": 86_400}
_BEFORE_S: Final = {"hour": 7_200, "day": 2 * 86_400, "month": 33 * 86_400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
Range = tuple[int, int]
"""From and to, Unix ms; to is not in it."""


class Bucket(msgspec.Struct, frozen=True):
    """An hour, a day or a month of local time."""

    start_s: int
    """When it begins, which may be before the range that was asked for."""
    label: str
    """`2026-11-25T13:00:00+01:00`, `2026-11-25` or `2026-11`."""


class Cover(msgspec.Struct, frozen=True):
    """Where the parts of a range are read. Together they are the range, and nothing twice."""

    rows: tuple[Range, ...]
    hours: tuple[Range, ...]
    days: tuple[Range, ...]


def buckets(unit: str, span: Range, zone: str) -> list[Bucket]:
    """All hours, days or months that the range touches, in order. Raises ValueError if they are too many.

    An hour begins where the local clock shows a full hour, and wherever it is set: where it is set by one, a day has 23 or 25.
    """
    from_s, to_s = span[0] // 1000, -(-span[1] // 1000)
    if (to_s - from_s) // _LENGTH_S[unit] > 2 * BUCKETS_MAX:
        raise ValueError(f"more than {BUCKETS_MAX} times: choose a shorter range or longer steps")
    found: list[Bucket] = []
    for start_s, offset_s in _starts(unit, from_s - _BEFORE_S[unit], to_s, zone):
        label = _label(unit, start_s, offset_s)
        if unit != "month" or not found or found[-1].label != label:
            found.append(Bucket(max(start_s, 0), label))
    first = max(index for index, bucket in enumerate(found) if bucket.start_s <= from_s)
    if len(found) - first > BUCKETS_MAX:
        raise ValueError(f"more than {BUCKETS_MAX} times: choose a shorter range or longer steps")
    return found[first:]


def previous(span: Range, zone: str) -> Range:
    """What came before it, as long by the local calendar: before a Monday a Sunday, though one of them may have 23 hours.

    Where the clock was set back within the range so that it shows no later time at its end, the time that passed counts.
    """
    start, end = (_from_ms(edge).astimezone(ZoneInfo(zone)) for edge in span)
    length = end.replace(tzinfo=None) - start.replace(tzinfo=None)
    if length <= timedelta(0):
        return span[0] - (span[1] - span[0]), span[0]
    before = (start.replace(tzinfo=None) - length).replace(tzinfo=ZoneInfo(zone), fold=start.fold)
    return min(_to_ms(before), span[0]), span[0]


def cover(span: Range, starts_s: Iterable[int], now_ms: int, *, by_day: bool) -> Cover:
    """Days where nothing cuts them (if `by_day`: sums of days know neither key nor member), else hours, else rows."""
    from_ms, to_ms = span
    if from_ms >= to_ms:
        return Cover((), (), ())
    cuts_ms = {from_ms, to_ms, *(start_s * 1000 for start_s in starts_s if from_ms < start_s * 1000 < to_ms)}
    fresh_ms = (now_ms - _FRESH_MS) // HOUR_MS * HOUR_MS
    by_row = [_around(cut_ms, HOUR_MS) for cut_ms in cuts_ms if cut_ms % HOUR_MS]
    by_row.append((fresh_ms, max(fresh_ms, to_ms)))
    rows = _clipped(by_row, span)
    hours = _without(span, rows)
    if not by_day:
        return Cover(rows, hours, ())
    cut_days = _clipped([_around(cut_ms, DAY_MS) for cut_ms in cuts_ms if cut_ms % DAY_MS], span)
    whole = [(-(-start // DAY_MS) * DAY_MS, end // DAY_MS * DAY_MS) for start, end in hours]
    days = tuple(itertools.chain.from_iterable(_without(one, cut_days) for one in whole if one[0] < one[1]))
    rest = itertools.chain.from_iterable(_without(one, days) for one in hours)
    return Cover(rows, tuple(rest), days)


def _around(cut_ms: int, length_ms: int) -> Range:
    start_ms = cut_ms // length_ms * length_ms
    return start_ms, start_ms + length_ms


def _clipped(ranges: Sequence[Range], span: Range) -> tuple[Range, ...]:
    """In order, those that touch put together, and only what is in the span."""
    found: list[Range] = []
    for start, end in sorted((max(start, span[0]), min(end, span[1])) for start, end in ranges):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return tuple(found)


def _without(span: Range, holes: Sequence[Range]) -> tuple[Range, ...]:
    """What is left of the span; holes are in order and do not touch."""
    found, at = [], span[0]
    for start, end in _clipped(holes, span):
        if at < start:
            found.append((at, start))
        at = end
    if at < span[1]:
        found.append((at, span[1]))
    return tuple(found)


def _starts(unit: str, first_s: int, end_s: int, zone: str) -> Iterator[tuple[int, int]]:
    """Beginnings from `first_s` on, each with the offset that holds then."""
    length_s = _LENGTH_S[unit]
    segments = _segments(zone)
    for index, (start_s, offset_s) in enumerate(segments):
        until_s = min(segments[index + 1][0], end_s) if index + 1 < len(segments) else end_s
        at_s = max(start_s, first_s)
        if at_s >= until_s:
            continue
        first_in_s = -(-(at_s + offset_s) // length_s) * length_s - offset_s
        if index and at_s == start_s < first_in_s:  # the clock is set, and not to a full hour, or to midnight
            day_before = (start_s - 1 + segments[index - 1][1]) // length_s
            if unit == "hour" or (start_s + offset_s) // length_s > day_before:
                yield start_s, offset_s
        for found_s in range(first_in_s, until_s, length_s):
            yield found_s, offset_s


def _segments(zone: str) -> list[tuple[int, int]]:
    """From which second on which offset holds; the first from ever."""
    packed = zones.packed(zone) or "0000000000+00000"
    found = [(int(packed[at : at + 10]), int(packed[at + 10 : at + 16])) for at in range(0, len(packed), 16)]
    return [(-(10**11), found[0][1]), *found[1:]]


def _label(unit: str, start_s: int, offset_s: int) -> str:
    local = (_EPOCH + timedelta(seconds=start_s)).astimezone(timezone(timedelta(seconds=offset_s)))
    match unit:
        case "hour":
            return local.isoformat(timespec="seconds")
        case "day":
            return f"{local:%Y-%m-%d}"
        case _:
            return f"{local:%Y-%m}"


def _from_ms(value_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=value_ms)


def _to_ms(value: datetime) -> int:
    return (value - _EPOCH) // timedelta(milliseconds=1)
