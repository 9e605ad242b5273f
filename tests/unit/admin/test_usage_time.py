"""Where local hours, days and months begin, and what a range is read from."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin.usage.times import DAY_MS, HOUR_MS, Range, buckets, cover, previous

NOW_MS = 1_790_000_000_000


def span(zone: str, *edges: tuple[int, ...]) -> Range:
    """From one local time to another."""
    first, last = (datetime(*edge, tzinfo=ZoneInfo(zone)) for edge in edges)  # type: ignore[misc, arg-type]
    return int(first.timestamp() * 1000), int(last.timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", (2025, 3, 9), 23),
        ("America/New_York", (2025, 11, 2), 25),
        ("Asia/Kolkata", (2025, 3, 9), 24),
        ("Africa/Cairo", (2025, 4, 25), 23),  # midnight does not come
    ],
)
def test_a_day_has_the_hours_its_clock_shows(zone: str, day: tuple[int, int, int], hours: int) -> None:
    following = datetime(*day, tzinfo=UTC) + timedelta(days=1)
    found = buckets("hour", span(zone, day, (following.year, following.month, following.day)), zone)
    assert len(found) == len({one.label for one in found}) == hours
    assert len(buckets("day", span(zone, day, (following.year, following.month, following.day)), zone)) == 1


def test_a_clock_that_is_set_by_half_an_hour_begins_an_hour() -> None:
    found = buckets("hour", span("Australia/Lord_Howe", (2025, 4, 6), (2025, 4, 6, 4)), "Australia/Lord_Howe")
    assert [one.label[11:] for one in found] == [
        "00:00:00+11:00",
        "01:00:00+11:00",
        "01:30:00+10:30",
        "02:00:00+10:30",
        "03:00:00+10:30",
    ]


def test_months_are_whole_and_the_first_may_have_begun_before() -> None:
    found = buckets("month", span("Asia/Kolkata", (2025, 1, 31, 12), (2025, 4, 1)), "Asia/Kolkata")
    assert [one.label for one in found] == ["2025-01", "2025-02", "2025-03"]
    assert found[0].start_s == span("Asia/Kolkata", (2025, 1, 1), (2025, 2, 1))[0] // 1000


def test_too_many_times_are_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        buckets("hour", span("UTC", (2024, 1, 1), (2025, 2, 1)), "UTC")


def test_the_time_before_is_as_long_by_the_calendar() -> None:
    zone = "America/New_York"
    assert previous(span(zone, (2025, 3, 9), (2025, 3, 10)), zone) == span(zone, (2025, 3, 8), (2025, 3, 9))
    assert previous(span(zone, (2025, 3, 10), (2025, 3, 17)), zone) == span(zone, (2025, 3, 3), (2025, 3, 10))


@given(
    start=st.integers(0, 400 * 24 * 60),
    minutes=st.integers(1, 60 * 24 * 60),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"]),
    unit=st.sampled_from(["", "hour", "day", "month"]),
    by_day=st.booleans(),
)
def test_parts_are_the_whole_and_nothing_twice(start: int, minutes: int, zone: str, unit: str, by_day: bool) -> None:
    from_ms = NOW_MS - start * 60_000
    whole = (from_ms, from_ms + minutes * 60_000)
    starts = [one.start_s for one in buckets(unit, whole, zone)] if unit else []
    parts = cover(whole, starts, NOW_MS, by_day=by_day)
    pieces = sorted([*parts.rows, *parts.hours, *parts.days])
    assert pieces[0][0] == whole[0] and pieces[-1][1] == whole[1]
    assert all(one[1] == other[0] for one, other in itertools.pairwise(pieces))
    for length_ms, ranges in ((HOUR_MS, parts.hours), (DAY_MS, parts.days)):
        for first_ms, end_ms in ranges:
            assert first_ms % length_ms == end_ms % length_ms == 0
            assert end_ms <= NOW_MS - 2 * HOUR_MS
            inside = [one for one in starts if first_ms < one * 1000 < end_ms]
            assert all(one * 1000 % length_ms == 0 for one in inside)
    assert by_day or not parts.days
