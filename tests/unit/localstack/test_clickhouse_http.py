"""The pure parts of the stand-in for ClickHouse's server; how the real client gets on with it is in contract/."""

import gzip
import zlib

import pytest
from lz4 import frame

from libs.localstack.clickhouse_http import _FORMAT, _INSERT_NATIVE, _failed, _settings, _unpacked


def test_settings_of_the_address_become_a_clause() -> None:
    query = {"max_threads": "3", "query": "SELECT 1", "param_x": "1", "database": "d", "Bad-Name": "1", "a": "it's \\"}
    assert _settings(query) == " SETTINGS max_threads = '3', a = 'it\\'s \\\\'"
    assert _settings({"query_id": "1", "x; DROP": "1"}) == ""


@pytest.mark.parametrize(
    ("coding", "packed"),
    [("", b"text"), ("gzip", gzip.compress(b"text")), ("deflate", zlib.compress(b"text"))],
    ids=["plain", "gzip", "deflate"],
)
def test_bodies_are_unpacked(coding: str, packed: bytes) -> None:
    assert _unpacked(packed, coding) == b"text"


def test_lz4_is_unpacked() -> None:
    assert _unpacked(frame.compress(b"text"), "lz4") == b"text"  # type: ignore[attr-defined]


def test_an_unknown_coding_is_refused() -> None:
    with pytest.raises(ValueError, match="br is not supported"):
        _unpacked(b"", "br")


def test_errors_carry_their_code() -> None:
    answer = _failed("Code: 60. DB::Exception: no such table. (UNKNOWN_TABLE)")
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (500, "60")
    assert bytes(_failed("odd").body).startswith(b"Code: 1. DB::Exception: odd")


@pytest.mark.parametrize(
    ("sql", "output_format"),
    [
        ("SELECT 1 FORMAT Native", "Native"),
        ("SELECT 1\n format JSON ;\n", "JSON"),
        ("SELECT formatDateTime(now(), 'x')", None),
    ],
)
def test_the_format_of_a_statement(sql: str, output_format: str | None) -> None:
    found = _FORMAT.search(sql)
    assert (found[1] if found else None) == output_format


def test_the_head_of_an_insert_ends_where_its_data_begins() -> None:
    body = b"INSERT INTO t (a, b) FORMAT Native\nINSERT\nFORMAT Native\n"
    head = _INSERT_NATIVE.match(body)
    assert head is not None
    assert body[head.end() :] == b"INSERT\nFORMAT Native\n"
    assert _INSERT_NATIVE.match(b"SELECT 1") is None
