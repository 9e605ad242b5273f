"""How a receipt reads: prices, times and cursors."""

import contextlib
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import ids
from services.admin.problems import BadInput
from services.admin.resource import Call, encode_cursor, page_limit
from services.admin.resources import requests, times


@pytest.mark.parametrize(
    ("attos", "text"),
    [
        (3 * 10**12, "3.00"),
        (3_750_000_000_000, "3.75"),
        (10**16, "10000.00"),
        (1, "0.000000000001"),
        (0, "0.00"),
        (1_250_000_000, "0.00125"),
    ],
)
def test_a_unit_price_reads_as_the_public_list_has_it(attos: int, text: str) -> None:
    assert requests._usd_per_mtok(attos) == text


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01", 0),
        ("2026-11-23T20:00:00Z", 1_795_464_000_000),
        ("2026-11-23T20:00:00.123+00:00", 1_795_464_000_123),
        ("2026-11-23T22:00:00+02:00", 1_795_464_000_000),
        ("20261123", 1_795_392_000_000),
        ("2026-11-23", 1_795_392_000_000),
        ("1795464000123", 1_795_464_000_123),
        ("0", 0),
    ],
)
def test_times(text: str, time_ms: int) -> None:
    assert times.query_ms("from", text) == time_ms


@given(st.text(max_size=40) | st.datetimes().map(str) | st.datetimes().map(lambda one: one.isoformat() + "+13:45"))
def test_no_text_is_more_than_a_bad_time(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert 0 <= times.query_ms("to", text) < 4_102_444_800_000


def test_a_cursor_goes_and_comes() -> None:
    request_id = ids.new_request_id()
    assert requests._cursor(encode_cursor(request_id)) == (ids.id_time_ms(request_id), request_id)


@given(st.text(max_size=60))
def test_no_text_is_more_than_a_bad_cursor(text: str) -> None:
    with pytest.raises(BadInput):
        requests._cursor(text)


def asking(limit: str) -> Call:
    query = urlencode({"limit": limit}).encode()
    return Call({"type": "http", "query_string": query, "headers": []}, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1", "1000"])
def test_limits(text: str) -> None:
    assert page_limit(asking(text)) == int(text)


@pytest.mark.parametrize("text", ["", "0", "1001", "-1", "1.0", "٣", "1" * 99])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(BadInput):
        page_limit(asking(text))
