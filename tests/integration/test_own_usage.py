"""`GET /v1/usage` over a whole gateway on a real Redis: what a key is told, who is told nothing, and that it costs nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from libs.common import apikeys, clock, ids, redisclient, rediskeys, streams
from libs.common.balances import Balances, Settlement
from libs.common.config import GatewayConfig
from libs.common.directory import Directory
from libs.common.events import Member
from libs.common.limits import Limits
from libs.common.metrics import Metrics
from libs.common.upstreams import Upstreams
from services.gateway.app import create_app
from services.gateway.cycle import BodyBudget
from tests.integration.gateway_rig import Gateway, running, upstream

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
COST = 1 * 3_000 + 1 * 15_000
"""Of ANSWER: one token in, one out."""


@pytest.fixture
async def redis(anyio_backend: str, redis_url: str) -> AsyncIterator[Any]:
    client = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    yield client
    await client.aclose()


@pytest.fixture
async def gateway(nats_url: str, redis_url: str, redis: Any) -> AsyncIterator[Gateway]:
    broker = await streams.connect(nats_url, name="test")
    await streams.create(broker.jetstream(), replicas=1, bytes_max=2**28)
    await broker.close()
    seen: list[httpx2.Request] = []

    async def recording(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return await upstream(request)

    config = GatewayConfig(
        nats_url=nats_url, redis_url=redis_url, upstream_url="http://upstream", upstream_api_key="sk-ant-operator"
    )
    budget, metrics = BodyBudget(10_000_000), Metrics()
    app = create_app(config, metrics=metrics, body_budget=budget, transport=httpx2.MockTransport(recording))
    async with running(app):
        yield Gateway(app, Directory(redis, Balances(redis), Upstreams(redis)), budget, seen)


async def told(gateway: Gateway, secret: str, path: str = "/v1/usage") -> dict[str, Any]:
    answer = await gateway.call("GET", path, key=secret)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["request-id"] == answer.headers["x-relay-request-id"]
    page: dict[str, Any] = json.loads(answer.body)
    return page


@pytest.mark.parametrize("path", ["/usage", "/v1/usage", "/v1/v1/usage", "/v1/usage?x=1"])
async def test_a_new_key(gateway: Gateway, path: str) -> None:
    secret, account, key = await gateway.new_key(credit_nanos=25 * 10**9)
    page = await told(gateway, secret, path)
    assert page == {
        "account": {
            "id": account.id,
            "available_usd": "25.00",
            "granted_usd": "25.00",
            "status": "active",
            "held_usd": "0.00",
            "spent_usd": "0.00",
            "in_flight": 0,
            "limits": {"rpm": 1000, "itpm": 2000000, "otpm": 400000, "free_rpm": 1000, "in_flight": 50},
            "budgets": [],
        },
        "member": None,
        "key": {
            "id": key.id,
            "status": "active",
            "held_usd": "0.00",
            "spent_usd": "0.00",
            "in_flight": 0,
            "limits": dict.fromkeys(("rpm", "itpm", "otpm", "free_rpm", "in_flight")),
            "budgets": [],
            "models": None,
            "expires_at": None,
        },
    }
    assert gateway.seen == []


async def test_what_was_spent_and_what_is_held(gateway: Gateway, redis: Any) -> None:
    """One message, before and after accounting has settled it."""
    member_id, expires_at_ms = ids.new_member_id(), clock.unix_ms() + 10**9
    secret, account, key = await gateway.new_key(
        member_id=member_id,
        limits=Limits(budget_month_nanos=5 * 10**9, budget_total_nanos=10**10, rpm=9),
        models=("claude-sonnet-4-6",),
        expires_at_ms=expires_at_ms,
    )
    member = Member(id=member_id, account_id=account.id, name="m", created_at_ms=1, limits=Limits(in_flight=3))
    await gateway.put(member)
    assert (await gateway.message(secret)).status == 200

    async def finished() -> str:
        leases: dict[bytes, bytes] = await redis.hgetall(rediskeys.leases(account.id))
        (name,) = [name for name, text in leases.items() if text.startswith(b"f ")]
        return name.decode()

    async with asyncio.timeout(5):
        while (await told(gateway, secret))["account"]["in_flight"]:
            await asyncio.sleep(0.01)
    page = await told(gateway, secret)
    for one in page.values():
        if one["spent_usd"] == "0.00":  # unless a worker that listens on this log was as fast
            assert one["held_usd"] == "0.000018"
            await Balances(redis).settle(Settlement(account.id, await finished(), 3, COST, key.id, member_id))
            break
    page = await told(gateway, secret)
    for one in page.values():
        assert (one["held_usd"], one["spent_usd"], one["in_flight"]) == ("0.00", "0.000018", 0)
    assert (page["account"]["available_usd"], page["account"]["granted_usd"]) == ("9.999982", "10.00")
    assert (page["member"]["id"], page["member"]["limits"]["in_flight"]) == (member_id, 3)
    month, total = page["key"]["budgets"]
    assert month.pop("resets_at").endswith("-01T00:00:00.000Z")
    assert month == {"period": "month", "limit_usd": "5.00", "spent_usd": "0.000018"}
    assert total == {"period": "total", "limit_usd": "10.00", "spent_usd": "0.000018", "resets_at": None}
    assert (page["key"]["models"], page["key"]["limits"]["rpm"]) == (["claude-sonnet-4-6"], 9)
    assert page["key"]["expires_at"] == clock.iso_utc(expires_at_ms)


async def test_it_is_refused_as_count_tokens_is(gateway: Gateway) -> None:
    secret, account, key = await gateway.new_key()
    for given in ("", "sk-ant-x", apikeys.generate()):
        answer = await gateway.call("GET", "/v1/usage", key=given)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
    for entity in (
        msgspec.structs.replace(key, status="disabled"),
        msgspec.structs.replace(key, expires_at_ms=1),
        msgspec.structs.replace(key, ip_allowlist=("192.0.2.1",)),
    ):
        await gateway.put(entity)
        answer = await gateway.call("GET", "/v1/usage", key=secret)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert account.id not in answer.body.decode()
    await gateway.put(key)
    assert (await told(gateway, secret))["key"]["id"] == key.id
    await gateway.put(msgspec.structs.replace(account, status="disabled"))
    assert (await gateway.call("GET", "/v1/usage", key=secret)).status == 401
    assert (await gateway.call("POST", "/v1/usage", key=secret)).status == 405
    assert gateway.seen == []


async def test_it_counts_as_a_free_request_and_needs_no_balance(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key(credit_nanos=0, account_limits=Limits(free_rpm=2))
    first = await gateway.call("GET", "/v1/usage", key=secret)
    assert (first.headers["anthropic-ratelimit-requests-limit"], first.headers["anthropic-ratelimit-requests-remaining"]) == (
        "2", "1",
    )  # fmt: skip
    assert (await told(gateway, secret))["account"]["available_usd"] == "0.00"
    answer = await gateway.call("GET", "/v1/usage", key=secret)
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
    assert "requests a minute to" in answer.error["message"] and int(answer.headers["retry-after"]) > 0


async def test_numbers_that_nobody_has_checked_are_not_told(gateway: Gateway, redis: Any) -> None:
    secret, account, _ = await gateway.new_key()
    gate = rediskeys.gate(ids.partition(account.id))
    run_id = await redis.get(gate)
    await redis.set(gate, "0" * 40)
    try:
        answer = await gateway.call("GET", "/v1/usage", key=secret)
    finally:
        await redis.set(gate, run_id)
    assert (answer.status, answer.error["type"], answer.headers["retry-after"]) == (529, "overloaded_error", "1")


async def test_another_account_is_never_shown(gateway: Gateway) -> None:
    (mine, account, _), (theirs, other, _) = await gateway.new_key(), await gateway.new_key(credit_nanos=7)
    pages = [await told(gateway, secret) for secret in (mine, theirs, mine)]
    assert [page["account"]["id"] for page in pages] == [account.id, other.id, account.id]
    assert pages[1]["account"]["available_usd"] == "0.000000007"
