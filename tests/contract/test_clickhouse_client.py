"""clickhouse-connect on what stands in for ClickHouse's server: what the services use of it works as on the real one."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import pytest
from clickhouse_connect.driver import create_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import DatabaseError
from lz4 import frame

from libs.common import ids

pytestmark = pytest.mark.anyio

TEXTS: Final = ["", "a'b", "a\\b", "a\nb\tc", "\0", "\\N", "é漢😀", "' OR 1=1 --", "{x:String}", "%27", "a+b c&d=e#f?"]


@pytest.fixture
async def client(clickhouse_url: str) -> AsyncIterator[AsyncClient]:
    opened = await create_async_client(dsn=clickhouse_url, autogenerate_session_id=False)
    yield opened
    await opened.close()


@pytest.fixture
async def table(client: AsyncClient) -> AsyncIterator[str]:
    name = f"contract_{ids.uuid7_hex()}"
    await client.command(
        f"CREATE TABLE {name} (id UInt32, version UInt8, text String, kind LowCardinality(String), yes Bool,"
        " time DateTime64(3, 'UTC'), big Int64, huge UInt64, kinds Array(LowCardinality(String)), amounts Array(Int64))"
        " ENGINE = ReplacingMergeTree(version) ORDER BY id"
    )
    yield name
    await client.command(f"DROP TABLE {name}")


COLUMNS: Final = ("id", "version", "text", "kind", "yes", "time", "big", "huge", "kinds", "amounts")


def row(number: int, version: int = 1, text: str = "") -> tuple[Any, ...]:
    time = datetime(2026, 11, 25, 3, 4, 5, 678_000, tzinfo=UTC)
    return (number, version, text, text, True, time, -(2**63), 2**64 - 1, ["a", text], [2**63 - 1, -1])


async def test_types_go_and_come(client: AsyncClient, table: str) -> None:
    rows = [row(number, text=text) for number, text in enumerate(TEXTS)]
    await client.insert(table, rows, column_names=COLUMNS, settings={"async_insert": 0})
    found = [tuple(one) for one in (await client.query(f"SELECT * FROM {table} ORDER BY id")).result_rows]
    naive = rows[0][5].replace(tzinfo=None)
    assert found == [(*one[:5], naive, *one[6:]) for one in rows]


async def test_parameters_are_values_and_nothing_else(client: AsyncClient) -> None:
    for text in TEXTS:
        result = await client.query("SELECT {x:String} AS x, length({x:String})", parameters={"x": text})
        assert result.result_rows == [(text, len(text.encode()))]
    lists = {"a": TEXTS, "b": [1, -(2**63)]}
    result = await client.query("SELECT {a:Array(String)}, {b:Array(Int64)}", parameters=lists)
    assert result.result_rows == [(TEXTS, [1, -(2**63)])]
    moment = datetime(2026, 11, 25, 3, 4, 5, 678_000, tzinfo=UTC)
    result = await client.query("SELECT toUnixTimestamp64Milli({t:DateTime64(3)})", parameters={"t": moment})
    assert result.result_rows == [(int(moment.timestamp() * 1000),)]


async def test_settings_are_heard(client: AsyncClient) -> None:
    result = await client.query("SELECT getSetting('max_block_size')", settings={"max_block_size": 1234})
    assert result.result_rows == [(1234,)]


async def test_final_shows_the_newest_version(client: AsyncClient, table: str) -> None:
    for version in (2, 1, 3, 3):
        await client.insert(table, [row(7, version, f"v{version}")], column_names=COLUMNS)
    result = await client.query(f"SELECT version, text FROM {table} FINAL")
    assert result.result_rows == [(3, "v3")]


@pytest.mark.parametrize(
    ("statement", "code", "name"),
    [
        ("SELECT * FROM nothing_here", 60, "UNKNOWN_TABLE"),
        ("SELEC 1", 62, "SYNTAX_ERROR"),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF"),
    ],
)
async def test_errors_have_their_codes(client: AsyncClient, statement: str, code: int, name: str) -> None:
    with pytest.raises(DatabaseError, match=name) as caught:
        await client.query(statement)
    assert caught.value.code == code
    assert (await client.query("SELECT 1")).result_rows == [(1,)]


async def test_an_insert_that_is_refused_leaves_nothing(client: AsyncClient, table: str) -> None:
    with pytest.raises(DatabaseError):
        await client.insert(table, [[1, "x"]], column_names=["id", "no_such_column"])
    assert (await client.query(f"SELECT count() FROM {table}")).result_rows == [(0,)]


async def test_a_caller_who_leaves_does_not_disturb_the_next(client: AsyncClient) -> None:
    async with asyncio.timeout(10):
        slow = asyncio.ensure_future(client.query("SELECT sleepEachRow(0.1) FROM numbers(3)"))
        await asyncio.sleep(0.05)
        slow.cancel()
        results = await asyncio.gather(*(client.query(f"SELECT {number}") for number in range(20)))
    assert [result.result_rows[0][0] for result in results] == list(range(20))


async def test_databases_do_not_mix(clickhouse_url: str, client: AsyncClient) -> None:
    """Two databases asked at the same time: each query sees its own."""
    other_name = f"other_{ids.uuid7_hex()}"
    await client.command(f"CREATE DATABASE {other_name}")
    base = clickhouse_url.rpartition("/")[0]
    async with await create_async_client(dsn=f"{base}/{other_name}", autogenerate_session_id=False) as other:
        own, theirs = urlsplit(clickhouse_url).path.strip("/"), other_name
        results = await asyncio.gather(
            *(one.query("SELECT currentDatabase()") for _ in range(20) for one in (client, other))
        )
        assert [result.result_rows[0][0] for result in results] == [own, theirs] * 20
    await client.command(f"DROP DATABASE {other_name}")


async def test_bodies_may_be_compressed(clickhouse_url: str) -> None:
    address, _, database = clickhouse_url.rpartition("/")
    codings = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress, "lz4": frame.compress}  # type: ignore[attr-defined]
    async with httpx2.AsyncClient() as plain:
        for coding, pack in codings.items():
            headers = {"content-encoding": coding} if coding else {}
            body = pack(b"SELECT 1 + 1 FORMAT TabSeparated")
            answer = await plain.post(address, params={"database": database}, content=body, headers=headers)
            assert (answer.status_code, answer.text) == (200, "2\n"), coding
        broken = await plain.post(address, content=b"nonsense", headers={"content-encoding": "gzip"})
        assert broken.status_code >= 400
        assert "DB::Exception" in broken.text
