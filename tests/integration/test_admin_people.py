"""Signing in: the set-up link, invitations, passwords, sessions, operators, service tokens, and what ends them."""

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common import ids, redisclient, rediskeys
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.admin.setup import FIRST_OWNER_ID
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def admin(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Admin]:
    async with Rig.over(nats_url, redis_url, clickhouse_url), Admin.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


def email() -> str:
    return f"{ids.uuid7_hex()}@example.com"


async def set_password(admin: Admin, link: dict[str, Any], **more: Any) -> dict[str, Any]:
    token = link["url"].partition("#")[2]
    return await admin.done("POST", "/links/accept", json={"token": token, "password": PASSWORD, **more})


async def signed_in(admin: Admin, address: str, password: str = PASSWORD) -> str:
    return str((await admin.done("POST", "/sessions", json={"email": address, "password": password}))["token"])


async def test_a_member_is_invited_signs_in_and_is_bounded(admin: Admin) -> None:
    account_id, address = await admin.new_account(), email()
    made = await admin.done(
        "POST", f"/accounts/{account_id}/members", json={"name": "Ada", "email": address.upper(), "role": "developer"}
    )
    assert (made["status"], made["email"], made["role"]) == ("invited", address, "developer")
    assert re.fullmatch(r"http://127\.0\.0\.1:8081/link#rli_memb_\w{32}\..{43}", made["link"]["url"])
    session = await set_password(admin, made["link"], email=address)
    assert (session["role"], session["account_id"], session["actor"]) == ("account:developer", account_id, made["id"])
    token = await signed_in(admin, address)
    assert (await admin.done("GET", "/me", token=token))["actor"] == made["id"]
    other = await admin.new_account()
    assert "no such account" in await admin.refused("GET", f"/accounts/{other}", 404, token=token)
    assert "this is for" in await admin.refused("POST", "/accounts", 403, token=token, json={"name": "x"})
    key = await admin.done("POST", f"/accounts/{account_id}/keys", token=token, json={"name": "mine"})
    assert key["member_id"] == made["id"]
    foreign = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "not mine"})
    await admin.refused("GET", f"/accounts/{account_id}/keys/{foreign['id']}", 404, token=token)
    listed = await admin.done("GET", f"/accounts/{account_id}/keys", token=token)
    assert [one["id"] for one in listed["data"]] == [key["id"]]
    path = f"/accounts/{account_id}/keys/{key['id']}"
    await admin.done("PATCH", path, json={"status": "disabled"})
    assert "ask an owner" in await admin.refused("PATCH", path, 403, token=token, json={"status": "active"})
    body = {"name": "k", "member_id": None}
    await admin.refused("POST", f"/accounts/{account_id}/keys", 403, token=token, json=body)


async def test_keys_of_somebody_who_was_invited_work_before_he_comes(admin: Admin, redis_url: str) -> None:
    account_id = await admin.new_account()
    body = {"name": "Eve", "email": email()}
    made = await admin.done("POST", f"/accounts/{account_id}/members", json=body)
    redis = redisclient.connect(redis_url)
    name = rediskeys.member(account_id, made["id"])
    assert await redis.hget(name, "status") == b"active"
    await admin.done("PATCH", f"/accounts/{account_id}/members/{made['id']}", json={"status": "disabled"})
    assert await redis.hget(name, "status") == b"disabled"
    await redis.aclose()


async def test_a_link_works_once_and_a_newer_one_voids_it(admin: Admin) -> None:
    account_id, address = await admin.new_account(), email()
    path = f"/accounts/{account_id}/members"
    made = await admin.done("POST", path, json={"name": "Bob", "email": address})
    newer = await admin.done("POST", f"{path}/{made['id']}/link")
    old = {"token": made["link"]["url"].partition("#")[2], "password": PASSWORD}
    assert "Ask for a new one" in await admin.refused("POST", "/links/accept", 404, json=old)
    await set_password(admin, newer)
    used = {"token": newer["url"].partition("#")[2], "password": "another password"}
    await admin.refused("POST", "/links/accept", 404, json=used)
    await signed_in(admin, address)
    await admin.refused("POST", "/sessions", 401, json={"email": address, "password": "another password"})


async def test_an_address_is_one_persons(admin: Admin) -> None:
    account_id, address = await admin.new_account(), email()
    path = f"/accounts/{account_id}/members"
    first = await admin.done("POST", path, json={"name": "a", "email": address})
    assert "belongs to somebody" in await admin.refused("POST", path, 409, json={"name": "b", "email": address})
    operator = {"name": "c", "email": address, "role": "viewer"}
    await admin.refused("POST", "/operators", 409, json=operator)
    await admin.done("DELETE", f"{path}/{first['id']}")
    await admin.done("POST", path, json={"name": "b", "email": address})


async def test_what_ends_a_session(admin: Admin) -> None:
    account_id, address = await admin.new_account(), email()
    path = f"/accounts/{account_id}/members"
    made = await admin.done("POST", path, json={"name": "Cy", "email": address, "role": "admin"})
    await set_password(admin, made["link"])
    token = await signed_in(admin, address)
    await admin.done("DELETE", "/sessions/current", token=token)
    assert "over" in await admin.refused("GET", "/me", 401, token=token)
    changes: list[tuple[str, str, Any]] = [
        ("PATCH", f"{path}/{made['id']}", {"role": "billing"}),
        ("PATCH", f"{path}/{made['id']}", {"status": "disabled"}),
        ("PATCH", f"/accounts/{account_id}", {"status": "disabled"}),
    ]
    for method, where, body in changes:
        token = await signed_in(admin, address)
        await admin.done(method, where, json=body)
        await admin.refused("GET", "/me", 401, token=token)
        if body.get("status"):
            await admin.done(method, where, json={"status": "active"})
    token = await signed_in(admin, address)
    await admin.refused("PUT", "/me/password", 401, token=token, json={"old": "wrong", "new": "a new one 1234"})
    await admin.done("PUT", "/me/password", token=token, json={"old": PASSWORD, "new": "a new one 1234"})
    await admin.refused("GET", "/me", 401, token=token)
    await signed_in(admin, address, "a new one 1234")


async def test_guessing_is_throttled(admin: Admin) -> None:
    address = email()
    for _ in range(10):
        await admin.refused("POST", "/sessions", 401, json={"email": address, "password": "guess"})
    answer = await admin.send("POST", "/sessions", json={"email": address, "password": "guess"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0


async def test_service_tokens_do_what_their_scopes_say(admin: Admin) -> None:
    account_id = await admin.new_account()
    body = {"name": "ci", "role": "admin", "scopes": ["keys:read", "keys:write"]}
    made = await admin.done("POST", f"/accounts/{account_id}/tokens", json=body)
    token = made["token"]
    assert token.startswith("rst_") and token.startswith(made["hint"][:-1])
    await admin.done("POST", f"/accounts/{account_id}/keys", token=token, json={"name": "k"})
    assert "with scope money:read" in await admin.refused("GET", f"/accounts/{account_id}/balance", 403, token=token)
    await admin.refused("GET", f"/accounts/{await admin.new_account()}/keys", 404, token=token)
    await admin.refused("POST", f"/accounts/{account_id}/tokens", 422, json=body | {"role": "owner"})
    await admin.done("DELETE", f"/accounts/{account_id}/tokens/{made['id']}")
    await admin.refused("GET", f"/accounts/{account_id}/keys", 401, token=token)
    listed = await admin.done("GET", f"/accounts/{account_id}/tokens")
    assert [(one["status"], "token" in one) for one in listed["data"]] == [("deleted", False)]


async def test_a_token_makes_none_that_may_do_more(admin: Admin) -> None:
    scopes = ["tokens:write", "usage:read"]
    made = await admin.done("POST", "/tokens", json={"name": "t", "role": "owner", "scopes": scopes})
    more = {"name": "u", "role": "owner", "scopes": ["money:write"]}
    assert "more than itself" in await admin.refused("POST", "/tokens", 422, token=made["token"], json=more)


async def test_operators_and_the_last_owner(admin: Admin) -> None:
    address = email()
    made = await admin.done("POST", "/operators", json={"name": "Dee", "email": address, "role": "finance"})
    session = await set_password(admin, made["link"])
    assert session["role"] == "operator:finance" and session["account_id"] is None
    account_id = await admin.new_account(None)
    body = {"amount_usd": "1", "reason": "x"}
    await admin.done("POST", f"/accounts/{account_id}/credits", token=session["token"], json=body)
    await admin.refused("POST", "/upstreams", 403, token=session["token"], json={})
    await admin.done("PATCH", f"/operators/{made['id']}", json={"role": "owner"})
    token = await signed_in(admin, address)
    owners = [one for one in (await admin.done("GET", "/operators?limit=1000"))["data"] if one["role"] == "owner"]
    active = [one for one in owners if one["status"] == "active"]
    for one in active[:-1]:
        await admin.done("PATCH", f"/operators/{one['id']}", json={"status": "disabled"})
    last = f"/operators/{active[-1]['id']}"
    assert "last owner" in await admin.refused("PATCH", last, 409, json={"role": "viewer"})
    assert token


async def test_the_first_start_prints_a_link_once_nobody_is_there(
    nats_url: str, redis_url: str, clickhouse_url: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    process = start_nats(tmp_path / "nats", tmp_path, port=port)
    try:
        url = f"nats://127.0.0.1:{port}"
        links = []
        for _ in range(2):  # a restart prints another one, and the one before is void
            caplog.clear()
            async with Rig.over(url, redis_url, clickhouse_url):
                with caplog.at_level(logging.WARNING, "relay.setup"):
                    async with Admin.over(url, redis_url, clickhouse_url, admin_token="") as admin:
                        await until(lambda: _printed(caplog))
                        links += re.findall(r"(http\S+link#rli_\S+)", caplog.text)
                        if len(links) == 2:
                            await admin.refused("POST", "/links/accept", 404, json=_body(links[0], email()))
                            session = await admin.done("POST", "/links/accept", json=_body(links[1], email()))
                            assert (session["role"], session["actor"]) == ("operator:owner", FIRST_OWNER_ID)
                            listed = await admin.done("GET", "/operators", token=session["token"])
                            assert listed["data"][0]["status"] == "active"
        assert len(links) == 2
    finally:
        process.stop()


async def _printed(caplog: pytest.LogCaptureFixture) -> bool:
    return "link#" in caplog.text


def _body(link: str, address: str) -> dict[str, str]:
    return {"token": link.partition("#")[2], "password": PASSWORD, "email": address}


async def test_two_operators_change_one_limit_at_once(admin: Admin) -> None:
    account_id = await admin.new_account()
    read = await admin.send("GET", f"/accounts/{account_id}")
    match = {b"if-match": read.headers["etag"].encode()}
    first = await admin.send("PATCH", f"/accounts/{account_id}", headers=match, json={"limits": {"rpm": 5}})
    assert first.status_code == 200 and first.headers["etag"] != read.headers["etag"]
    detail = await admin.refused("PATCH", f"/accounts/{account_id}", 412, headers=match, json={"limits": {"rpm": 6}})
    assert "Read it again" in detail
    assert (await admin.done("GET", f"/accounts/{account_id}"))["limits"]["rpm"] == 5
    await admin.refused("PATCH", f"/accounts/{account_id}", 400, headers={b"if-match": b"W/x"}, json={})
