"""Bad input by hand, sent to the real server: always a clear problem, and the log of changes is as long as before."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx2
import pytest

from libs.common import ids
from services.admin.resource import Operation
from tests import apart
from tests.integration.accounting_rig import Rig
from tests.integration.admin_bodies import body_of, texts_of, with_value
from tests.integration.admin_people import BY_ID, PASSWORD, parameters_of, path_of
from tests.integration.admin_process import AdminProcess, from_address
from tests.integration.admin_rig import PROBLEM, TOKEN

pytestmark = pytest.mark.anyio
INJECTIONS: Final = (
    "'; DROP TABLE usage; --",
    "' OR 1=1 --",
    "\\",
    "\\'",
    "{account_id:String}",
    "%s%n",
    ">",
    "*",
    "acct_*",
    "control.key.>",
    "a.b",
    "$JS.API.STREAM.DELETE.CONTROL",
    "../../operators",
    "..%2f..%2foperators",
    "acct_" + "0" * 32 + "\n",
    "acct_" + "0" * 32 + "/keys",
    "=cmd|' /C calc'!A0",
    "a\tb",
    "a\r\nset-cookie: x=1",
    "\x00",
    "\ufeff",
    "é漢😀",
    "x" * 3000,
)
NO_TEXTS: Final[tuple[Any, ...]] = (
    "\x00", "a\x00b", "x" * 60_000, "x" * 100_000, 1, 1.5, True, {"a": "b"}, [[]],
)  # fmt: skip
OPERATIONS: Final = tuple(BY_ID.values())
WITH_BODY: Final = [one for one in OPERATIONS if one.body is not None]
WITH_PATH: Final = [one for one in OPERATIONS if parameters_of(one)]
WITH_QUERY: Final = [one for one in OPERATIONS if one.query]


@dataclass(frozen=True)
class World:
    """A server, an account, and who may call what."""

    process: AdminProcess
    client: httpx2.AsyncClient
    account_id: str
    owner: str

    async def send(self, operation: Operation, path: str | None = None, **options: Any) -> httpx2.Response:
        """A call by somebody who may."""
        token = TOKEN if operation.roles is None or "operator:owner" in operation.roles else self.owner
        headers = {"authorization": f"Bearer {token}"} | options.pop("headers", {})
        where = path or path_of(operation, {"account_id": self.account_id})
        return await self.client.request(operation.method, where, headers=headers, **options)


nats_url, redis_url = apart.nats_url, apart.redis_url
"""Prices are everybody's: what is published here must not be seen by other tests."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def world(
    nats_url: str, redis_url: str, clickhouse_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    async with (
        Rig.over(nats_url, redis_url, clickhouse_url) as rig,
        AdminProcess.over(rig, tmp_path_factory.mktemp("admin")) as process,
        from_address(process, "127.0.4.1") as client,
    ):
        account_id = await process.new_account("5.00")
        person = {"name": "Ada", "role": "owner", "email": f"{ids.uuid7_hex()}@example.com"}
        made = await process.done("POST", f"/accounts/{account_id}/members", json=person)
        link = {"token": made["link"]["url"].partition("#")[2], "password": PASSWORD}
        session = (await client.post("/api/v1/links/accept", json=link)).raise_for_status().json()
        yield World(process, client, account_id, session["token"])


@pytest.fixture(autouse=True)
async def unchanged(world: World) -> AsyncIterator[None]:
    before = await world.process.last_sequence()
    yield
    assert await world.process.last_sequence() == before


def check_problem(answer: httpx2.Response, said: object) -> None:
    """A clear one, that says nothing of the inside."""
    assert 400 <= answer.status_code < 500, (said, answer.status_code, answer.text[:500])
    assert answer.headers["content-type"] == PROBLEM, said
    detail = answer.json()["detail"]
    assert detail and len(detail) < 400, (said, detail)
    assert not any(word in detail for word in ("Traceback", "Exception", "SELECT ", "site-packages")), detail


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda one: one.id)
async def test_no_field_takes_what_is_no_text_of_it(world: World, operation: Operation) -> None:
    body = body_of(operation)
    for path in texts_of(operation.body):
        for value in NO_TEXTS:
            if value == "\x00" and path[-1] in ("password", "old", "new"):
                continue  # a password may be anything; it is refused for its length, or for being wrong
            answer = await world.send(operation, json=with_value(body, path, value))
            check_problem(answer, (operation.id, path, str(value)[:20]))


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda one: one.id)
async def test_no_body_is_read_that_is_none(world: World, operation: Operation) -> None:
    body = json.dumps(body_of(operation))
    for content in (
        b"",
        b"null",
        b"[]",
        b"NaN",
        b'{"limits":{"rpm":NaN}}',
        b'{"limits":{"rpm":Infinity}}',
        b'{"limits":{"rpm":1e400}}',
        b"[" * 60_000,
        b'{"limits":' * 6_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        body[:-1].encode(),
        body.encode() + b"{}",
        body.encode("utf-16"),
        b"\xef\xbb\xbf" + body.encode(),
        b'{"name":"\xff"}',
        (body[:-1] + (", " if body != "{}" else "") + '"unknown_field": 1}').encode(),
    ):
        check_problem(await world.send(operation, content=content), (operation.id, content[:40]))


@pytest.mark.parametrize("operation", WITH_PATH, ids=lambda one: one.id)
async def test_nothing_is_put_into_a_path(world: World, operation: Operation) -> None:
    body = body_of(operation)
    options = {} if body is None else {"json": body}
    for parameter, text in itertools.product(parameters_of(operation), INJECTIONS):
        for written in {quote(text, safe=""), quote(text, safe="%/*>'")}:
            path = path_of(operation, {"account_id": world.account_id} | {parameter: written})
            if len(written) < 4 and "." in written:
                continue  # a client takes these away before it sends
            answer = await world.send(operation, path, **options)
            check_problem(answer, (operation.id, path))
            assert answer.status_code in (400, 404, 405), (operation.id, path, answer.text)


@pytest.mark.parametrize("operation", WITH_QUERY, ids=lambda one: one.id)
async def test_nothing_is_put_into_a_query(world: World, operation: Operation) -> None:
    """A filter finds what is called so, and never a store's error: that would be 503."""
    bad = {"limit", "cursor", "from", "to", "account_id", "key_id", "month"}
    for name, text in itertools.product(operation.query, INJECTIONS):
        answer = await world.send(operation, params={name: text})
        if answer.status_code == 200 and name not in bad - {"key_id"}:
            shown = answer.json().get("data", []) if answer.headers["content-type"] == "application/json" else []
            assert not shown or text in json.dumps(shown, ensure_ascii=False), (operation.id, name, text)
        else:
            check_problem(answer, (operation.id, name, text))
    for name in ("sort", "order_by", "filter", "Limit", "limit ", "$where"):
        for text in ("name", "name; DROP TABLE usage"):
            answer = await world.send(operation, params={name: text})
            check_problem(answer, (operation.id, name))
            assert answer.status_code == 400


async def test_headers_with_a_meaning_hold_nothing_else(world: World) -> None:
    for operation in OPERATIONS:
        body = body_of(operation)
        options: dict[str, Any] = {} if body is None else {"json": body}
        for name in operation.headers:
            for value in (b"", b'"', b'"1', b"x" * 201, b'W/"1"', b'"1", "2"', b'"-1"', b'"99999999999999999999"'):
                if name == "Idempotency-Key" and 1 <= len(value) <= 200:
                    continue  # it may be anything
                answer = await world.send(operation, headers={name: value}, **options)
                check_problem(answer, (operation.id, name, value))


async def raw(world: World, head: str, body: AsyncIterator[bytes]) -> tuple[bytes, bytes]:
    """What is answered to a request that is sent as it is; and to another one on the same connection."""
    port = int(world.process.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode())
        async for chunk in body:
            writer.write(chunk)
            await asyncio.wait_for(writer.drain(), 10)
    except OSError:
        pass  # it has heard enough
    first = await _answer(reader)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        await writer.drain()
        second = await _answer(reader)
    except OSError:
        second = b""
    writer.close()
    return first, second


async def _answer(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await asyncio.wait_for(reader.readexactly(length), 10)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def _zeros(pieces: int, *, chunked: bool) -> AsyncIterator[bytes]:
    for _ in range(pieces):
        yield (b"10000\r\n" if chunked else b"") + b" " * 65_536 + (b"\r\n" if chunked else b"")
    if chunked:
        yield b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["content-length: 10485760", "transfer-encoding: chunked"])
async def test_ten_megabytes_are_refused_and_the_next_request_is_not_hurt(world: World, framing: str) -> None:
    """For the connection: it is usable after it, or closed."""
    for path in ("/api/v1/accounts", "/api/v1/sessions", "/api/v1/links/accept", "/api/v1/codes"):
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{framing}\r\n\r\n"
        first, second = await raw(world, head, _zeros(160, chunked="chunked" in framing))
        assert first.startswith(b"HTTP/1.1 413 "), (path, first[:200])
        assert json.loads(first.partition(b"\r\n\r\n")[2])["status"] == 413
        assert second == b"" or second.startswith(b"HTTP/1.1 200 "), second[:200]
    assert world.process.is_running()
