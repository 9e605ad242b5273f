"""The clock: milliseconds to datetimes and text, exactly."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import clock

_YEAR_9999_MS = 253_402_300_799_999


def test_now() -> None:
    before, now, after = time.time_ns() // 10**6, clock.unix_ms(), time.time_ns() // 10**6
    assert before <= now <= after
    assert abs(clock.utc_now().timestamp() * 1000 - now) < 5_000
    assert clock.utc_now().tzinfo is UTC


@given(st.integers(0, _YEAR_9999_MS))
def test_milliseconds_survive(value_ms: int) -> None:
    moment = clock.from_unix_ms(value_ms)
    assert moment.tzinfo is UTC
    assert int(moment.timestamp()) * 1000 + moment.microsecond // 1000 == value_ms
    assert datetime.fromisoformat(clock.iso_utc(value_ms)) == moment


def test_text_form() -> None:
    assert clock.iso_utc(0) == "1970-01-01T00:00:00.000Z"
    assert clock.iso_utc(1_795_465_098_123) == "2026-11-23T20:18:18.123Z"
    assert clock.iso_utc(1_795_465_098_000) == "2026-11-23T20:18:18.000Z"


def test_times_beyond_the_calendar() -> None:
    """An id that somebody made up can carry any 48 bits."""
    with pytest.raises(ValueError):
        clock.from_unix_ms(2**48 - 1)
