"""Whatever is sent to the control plane: a clear problem with the right status, nothing changed, never a 500."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import quote

import pytest

from libs.common import ids, subjects
from services.admin.app import PREFIX
from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import DOCUMENT, PROBLEM, TOKEN, Admin

pytestmark = pytest.mark.anyio

ACCOUNT: Final = ids.new_account_id()
"""Well-formed, and nobody's."""
INJECTIONS: Final = [
    "control.key.>",
    "*",
    ">",
    "acct_*",
    "acct_" + "0" * 31 + ".",
    "acct_" + "0" * 31 + ">",
    "acct_" + "0" * 32 + "\n",
    "ACCT_" + "0" * 32,
    "acct_" + "٣" * 32,
    "' OR 1=1 --",
    "'; DROP TABLE usage; --",
    "{account_id:String}",
    "\\' OR ''=\\'",
    "x" * 5000,
    "\x00",
    "%2e%2e",
    "é漢😀",
]


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    urls = (rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url)
    async with Admin.over(*urls) as made:
        yield made


@pytest.fixture
async def unchanged(rig: Rig) -> AsyncIterator[None]:
    """After the test the log of changes is as long as before."""

    async def length() -> int:
        return int((await rig.jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq)

    before = await length()
    yield
    assert await length() == before


BODIES: Final[list[tuple[bytes, str]]] = [
    (b"", "truncated"),
    (b"null", "object"),
    (b"[]", "object"),
    (b"{", "truncated"),
    (b"\xff", "malformed"),
    (b'{"name":"\xff"}', "decode"),
    (b'{"name":"\xed\xa0\x80"}', "decode"),
    (b'{"name":"\\ud800"}', ""),
    (b"[" * 60_000, ""),
    (b'{"name":1}', "$.name"),
    (b'{"name":""}', "$.name"),
    (b'{"name":"  "}', "control characters"),
    (b'{"name":"a\\nb"}', "control characters"),
    (b'{"name":"a\\u0000"}', "control characters"),
    (b'{"name":"a","admin":true}', "admin"),
    (b"{}", "name"),
    (b'{"name":"' + b"x" * 201 + b'"}', "$.name"),
]


@pytest.mark.usefixtures("unchanged")
async def test_bodies_that_are_none(admin: Admin) -> None:
    for body, said in BODIES:
        detail = await admin.refused("POST", "/accounts", 400, content=body)
        assert said in detail and len(detail) < 300, body


AMOUNTS: Final[list[tuple[Any, int]]] = [
    (10, 400),
    (10.5, 400),
    (None, 400),
    (True, 400),
    (["1"], 400),
    ("", 422),
    ("0", 422),
    ("-0.00", 422),
    ("NaN", 422),
    ("Infinity", 422),
    ("1e3", 422),
    (" 1", 422),
    ("1\n", 422),
    ("+1", 422),
    ("1,000", 422),
    ("$5", 422),
    ("٣", 422),
    ("0.0000000001", 422),
    ("9000000.01", 422),
    ("9" * 5000, 422),
    ("-9000000.01", 422),
]


async def test_amounts_that_are_none(admin: Admin) -> None:
    account_id = await admin.new_account("1.00")
    path = f"/accounts/{account_id}/credits"
    for amount, status in AMOUNTS:
        detail = await admin.refused("POST", path, status, json={"amount_usd": amount, "reason": "x"})
        assert "amount_usd" in detail and len(detail) < 300, amount
    assert (await admin.balance(account_id))["granted_usd"] == "1.00"


async def test_multipliers_that_are_none(admin: Admin) -> None:
    path = f"/accounts/{await admin.new_account(None)}"
    for text in ("", "NaN", "-1", "100.000001", "101", "1e2", "1.0000001", "٣", " 1", "1\n", "1_0", "9" * 999):
        assert "multiplier" in await admin.refused("PATCH", path, 422, json={"multiplier": text})
    assert (await admin.done("GET", path))["multiplier"] == "1"


async def test_changes_that_do_not_exist(admin: Admin) -> None:
    path = f"/accounts/{await admin.new_account(None)}"
    before = (await admin.send("GET", path)).headers["etag"]
    for body in ({"status": "deleted"}, {"on_disconnect": 1}, {"id": "x"}, {"balance": "5"}, {"limits": 1}):
        await admin.refused("PATCH", path, 400, json=body)
    assert (await admin.send("GET", path)).headers["etag"] == before


@pytest.mark.usefixtures("unchanged")
async def test_ids_that_are_none_in_a_path(admin: Admin) -> None:
    """There they would become part of a NATS subject."""
    for text in INJECTIONS:
        quoted = quote(text, safe="")
        for method, path in (
            ("GET", f"/accounts/{quoted}"),
            ("GET", f"/accounts/{quoted}/balance"),
            ("GET", f"/accounts/{quoted}/keys"),
            ("DELETE", f"/accounts/{quoted}/keys/{quoted}"),
            ("DELETE", f"/accounts/{ACCOUNT}/keys/{quoted}"),
            ("GET", f"/accounts/{quoted}/members"),
            ("GET", f"/accounts/{ACCOUNT}/members/{quoted}"),
            ("DELETE", f"/accounts/{ACCOUNT}/members/{quoted}"),
            ("GET", f"/upstreams/{quoted}"),
            ("DELETE", f"/upstreams/{quoted}"),
            ("GET", f"/requests/{quoted}"),
        ):
            await admin.refused(method, path, 404)
        await admin.refused("POST", f"/accounts/{quoted}/credits", 404, json={"amount_usd": "1", "reason": "x"})
        for path in (f"/accounts/{quoted}", f"/accounts/{ACCOUNT}/members/{quoted}", f"/upstreams/{quoted}"):
            await admin.refused("PATCH", path, 404, json={"name": "x"})


@pytest.mark.usefixtures("unchanged")
async def test_ids_that_are_none_in_a_body(admin: Admin) -> None:
    """There they would become part of a NATS subject, too."""
    for text in INJECTIONS:
        body = {"name": "x", "api_key": "sk-ant-0123456789abcdef", "account_id": text}
        assert "account_id" in await admin.refused("POST", "/upstreams", 422, json=body)


async def test_ids_that_are_none_in_a_filter(admin: Admin) -> None:
    """There they would become part of a query."""
    for text in INJECTIONS:
        for name in ("account_id", "key_id", "cursor", "from", "to", "limit"):
            assert name in await admin.refused("GET", "/requests", 400, params={name: text})


QUERIES: Final = [
    {"from": "yesterday"},
    {"from": "2026-13-01"},
    {"from": "0001-01-01"},
    {"from": "9999-12-31T23:59:59-23:59"},
    {"to": "99999999999999"},
    {"to": "-1"},
    {"to": "1e9"},
    {"from": ""},
    {"limit": "0"},
    {"limit": "-1"},
    {"limit": "1001"},
    {"limit": "9" * 99},
    {"limit": "٣"},
    {"limit": ""},
    {"cursor": ""},
    {"cursor": "AAAA"},
    {"cursor": "é"},
    {"cursor": "cmVxXzAw"},
    {"cursor": "cmVxX2ZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY"},  # req_ffff…: the year 10889
    {"acount_id": "misspelt"},
    {"account_id": ""},
]


async def test_queries_that_are_none(admin: Admin) -> None:
    for query in QUERIES:
        assert next(iter(query)) in await admin.refused("GET", "/requests", 400, params=query)


async def test_a_parameter_twice_or_where_there_is_none(admin: Admin) -> None:
    await admin.refused("GET", "/requests?limit=1&limit=2", 400)
    await admin.refused("GET", f"/accounts/{await admin.new_account(None)}?x=1", 400)


@pytest.mark.usefixtures("unchanged")
async def test_tokens_that_are_none(admin: Admin) -> None:
    almost = TOKEN.encode()
    for token in (b"", b"wrong", almost[:-1], almost + b"x", b"\xff\xfe", "é漢".encode(), almost + b"\xa0"):
        for method, path, body in (
            ("GET", "/requests", None),
            ("GET", f"/accounts/{ACCOUNT}", None),
            ("POST", "/accounts", b'{"name":"x"}'),
            ("POST", "/accounts", b"x" * 10_000_000),
        ):
            answer = await admin.send(method, path, token=token, content=body)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), token


async def test_no_token(admin: Admin) -> None:
    for header in (None, "", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer{TOKEN}"):
        headers = {} if header is None else {"authorization": header}
        for path, operations in DOCUMENT["paths"].items():
            for method in [one for one in operations if operations[one]["security"]]:
                answer = await admin.client.request(method.upper(), path, headers=headers)
                assert (answer.status_code, answer.headers["content-type"]) == (401, PROBLEM), (header, path)


async def test_the_scheme_may_be_written_as_one_likes(admin: Admin) -> None:
    answer = await admin.client.get(f"{PREFIX}/requests?limit=1", headers={"authorization": f"bearer  {TOKEN} "})
    assert answer.status_code == 200


@pytest.mark.usefixtures("unchanged")
async def test_a_body_beyond_the_limit_is_not_read_to_its_end(admin: Admin) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000_000:
            sent += 8192
            yield b" " * 8192

    await admin.refused("POST", "/accounts", 413, content=endless())
    assert sent < 200_000
    await admin.refused("POST", "/accounts", 413, content=b" " * 10_000_000)


async def test_other_methods_and_paths(admin: Admin) -> None:
    for method, path, allowed in (
        ("PUT", f"/accounts/{ACCOUNT}", "GET, HEAD, PATCH"),
        ("OPTIONS", f"/accounts/{ACCOUNT}", "GET, HEAD, PATCH"),
        ("PUT", "/accounts", "GET, HEAD, POST"),
        ("GET", "/sessions", "POST"),
        ("OPTIONS", "/requests", "GET, HEAD"),
        ("DELETE", f"/accounts/{ACCOUNT}/keys", "GET, HEAD, POST"),
        ("POST", f"/accounts/{ACCOUNT}/members/x", "DELETE, GET, HEAD, PATCH"),
        ("PUT", "/upstreams", "GET, HEAD, POST"),
    ):
        answer = await admin.send(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    for path in (
        "",
        "/",
        "/nothing",
        "/accounts/",
        f"/accounts/{ACCOUNT}/",
        f"/accounts/{ACCOUNT}/credits/x",
        "//accounts",
    ):
        assert (await admin.send("GET", path)).status_code == 404
    head = await admin.send("HEAD", f"/accounts/{ACCOUNT}")
    assert head.status_code == 404


async def test_what_is_open_to_all(admin: Admin) -> None:
    assert (await admin.client.get("/healthz")).status_code == 200
    assert (await admin.client.get("/api/openapi.json")).json() == DOCUMENT
    assert "/api/openapi.json" in (await admin.client.get("/")).text


async def test_idempotency_keys_that_are_none(admin: Admin) -> None:
    path = f"/accounts/{await admin.new_account(None)}/credits"
    for key in (b"", b"x" * 201):
        body = {"amount_usd": "1", "reason": "x"}
        assert "Idempotency-Key" in await admin.refused("POST", path, 400, json=body, headers={b"idempotency-key": key})


@pytest.mark.usefixtures("unchanged")
async def test_a_caller_who_hangs_up_while_he_sends(admin: Admin) -> None:
    messages = [
        {"type": "http.request", "body": b'{"name":', "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    app = admin.client._transport.app  # type: ignore[attr-defined]
    headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
    scope = {"type": "http", "method": "POST", "path": f"{PREFIX}/accounts", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert sent[0]["status"] == 400
