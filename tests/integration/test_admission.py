"""Admission as callers of the gateway see it, on a real Redis: what is taken, what is given back, what is refused and how."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from libs.common import apikeys, ids, redisclient, rediskeys, streams
from libs.common.balances import Balances, Settlement
from libs.common.config import GatewayConfig
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, Credit, Member, UsageRecorded
from libs.common.limits import Limits
from libs.common.metrics import Metrics
from libs.common.scripts import Scripts
from libs.common.upstreams import Upstreams
from services.gateway.app import create_app
from services.gateway.cycle import BodyBudget
from tests.integration.gateway_rig import ANSWER, MESSAGE, Gateway, running, upstream

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
STREAM = [
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-sonnet-4-6","usage":'
        b'{"input_tokens":1000,"cache_creation_input_tokens":500,"cache_read_input_tokens":90000,"output_tokens":1}}}\n\n'
    ),
    (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":70}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
]


class Gated(httpx2.AsyncByteStream):
    """A stream that stops after its first event until it is told to go on."""

    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield STREAM[0]
        await self._gate.wait()
        yield STREAM[1]


class Rig:
    """A gateway, its Redis, and a gate for streams."""

    def __init__(self, gateway: Gateway, redis: Any, gate: asyncio.Event) -> None:
        self.gateway = gateway
        self.redis = redis
        self.balances = Balances(redis)
        self.gate = gate

    async def account(self, account: Account) -> dict[str, str]:
        fields = await self.redis.hgetall(rediskeys.account(account.id))
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def leases(self, account: Account) -> dict[str, list[str]]:
        """Request id → state, hold, multiplier, input, member."""
        found = await self.redis.hgetall(rediskeys.leases(account.id))
        return {name.decode(): value.decode().split(" ") for name, value in found.items() if b":" not in name}

    async def in_flight(self, owner: str, account: Account) -> int:
        return int(await self.redis.zcard(rediskeys.slots(account.id, owner)))

    async def stream(self, secret: str) -> "asyncio.Task[Any]":
        """A stream that has begun, and waits."""
        task = asyncio.ensure_future(self.gateway.call(
            "POST", "/v1/messages", key=secret, body=json.dumps(MESSAGE | {"stream": True}).encode(),
        ))  # fmt: skip
        async with asyncio.timeout(5):
            while len(self.gateway.seen) == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        return task


@pytest.fixture
async def rig(anyio_backend: str, nats_url: str, redis_url: str) -> AsyncIterator[Rig]:
    broker = await streams.connect(nats_url, name="test")
    await streams.create(broker.jetstream(), replicas=1, bytes_max=2**28)
    await broker.close()
    seen: list[httpx2.Request] = []
    gate = asyncio.Event()

    async def answering(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        if b'"stream": true' in request.content:
            request.extensions["sent"]()
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Gated(gate))
        return await upstream(request)

    config = GatewayConfig(
        nats_url=nats_url,
        redis_url=redis_url,
        upstream_url="http://upstream",
        upstream_api_key="sk-ant-operator",
        unknown_keys_per_minute=5,
        trusted_proxies="10.0.0.0/8",
    )
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    scripts = Scripts(redis)
    directory = Directory(redis, Balances(redis, scripts), Upstreams(redis, scripts))
    budget = BodyBudget(10_000_000)
    app = create_app(config, metrics=Metrics(), body_budget=budget, transport=httpx2.MockTransport(answering))
    async with running(app):
        yield Rig(Gateway(app, directory, budget, seen), redis, gate)
    await redis.aclose()


async def test_a_request_holds_money_and_a_slot_and_gives_both_back(rig: Rig) -> None:
    secret, account, key = await rig.gateway.new_key()
    task = await rig.stream(secret)
    ((request_id, lease),) = (await rig.leases(account)).items()
    assert lease[0] == "o"
    assert (await rig.account(account))["held"] == lease[1] != "0"
    assert await rig.in_flight(account.id, account) == await rig.in_flight(key.id, account) == 1
    kept = await rig.redis.hget(rediskeys.leases(account.id), f"{request_id}:memo")
    memo = msgspec.json.decode(kept or b"", type=UsageRecorded)
    assert (memo.request_id, memo.version, memo.outcome) == (request_id, 1, "expired")
    rig.gate.set()
    answer = await task
    assert answer.body == b"".join(STREAM)
    await asyncio.sleep(0.1)
    cost = 1000 * 3000 + 500 * 3750 + 90000 * 300 + 70 * 15000
    for finished in (await rig.leases(account)).values():  # unless a worker that listens on this log was as fast
        assert finished[:2] == ["f", str(cost)]
        assert (await rig.account(account))["held"] == str(cost)
    assert await rig.in_flight(account.id, account) == await rig.in_flight(key.id, account) == 0
    await rig.balances.settle(Settlement(account.id, request_id, 3, cost, key.id))
    fields = await rig.account(account)
    assert (fields["held"], fields["spent"], fields["balance"]) == ("0", str(cost), str(10**10 - cost))
    assert await rig.leases(account) == {}


async def test_the_estimate_is_corrected_when_the_stream_tells_its_input(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key(account_limits=Limits(itpm=60_000))
    task = await rig.stream(secret)
    buckets = [int(one) for one in (await rig.account(account))["buckets"].split()]
    seconds, micros = await rig.redis.time(target_nodes="random") if _is_cluster(rig.redis) else await rig.redis.time()
    owed = (buckets[1] - seconds * 1_000_000 - micros) / 1_000_000
    assert 1.0 < owed <= 1.5  # of 1,000 tokens a second; cache reads do not count
    rig.gate.set()
    await task


async def test_real_output_is_debited_at_the_end(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key(account_limits=Limits(otpm=60))
    rig.gate.set()
    assert (await rig.gateway.message(secret, stream=True)).status == 200
    await asyncio.sleep(0.1)
    refused = await rig.gateway.message(secret)
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
    assert 9 <= int(refused.headers["retry-after"]) <= 11  # 70 tokens said, 60 a minute
    assert "output" in refused.error["message"]
    assert account.id not in refused.error["message"]


async def test_every_answer_tells_the_tightest_limits(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key(limits=Limits(rpm=3))
    rig.gate.set()
    for left, answer in ((2, await rig.gateway.message(secret)), (1, await rig.gateway.message(secret, stream=True))):
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "3"
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == str(left)
        assert answer.headers["anthropic-ratelimit-input-tokens-limit"] == "2000000"
        assert answer.headers["anthropic-ratelimit-output-tokens-limit"] == "400000"
        assert answer.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    await rig.gateway.message(secret)
    refused = await rig.gateway.message(secret)
    assert refused.status == 429
    assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 20


async def test_counting_tokens_has_a_bucket_of_its_own(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key(credit_nanos=0, limits=Limits(rpm=1, free_rpm=26))
    body = json.dumps(MESSAGE).encode()
    calls = [rig.gateway.call("POST", "/v1/messages/count_tokens", key=secret, body=body) for _ in range(26)]
    assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
    refused = await rig.gateway.call("POST", "/v1/messages/count_tokens", key=secret, body=body)
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")


async def test_a_key_sees_and_uses_only_its_models(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key(models=("claude-opus-4-7",))
    refused = await rig.gateway.message(secret)
    assert (refused.status, refused.error["message"]) == (404, "model: claude-sonnet-4-6")
    assert (await rig.gateway.message(secret, model="claude-opus-4-7")).status == 200
    fallback = await rig.gateway.message(
        secret, model="claude-opus-4-7", fallbacks=[{"model": "claude-haiku-4-5-20251001"}]
    )
    assert fallback.status == 404
    listed = json.loads((await rig.gateway.call("GET", "/v1/models", key=secret)).body)
    assert listed["data"] == []
    assert (await rig.gateway.call("GET", "/v1/models/claude-haiku-4-5", key=secret)).status == 404


async def test_a_key_for_certain_addresses(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key(ip_allowlist=("192.0.2.0/24", "2001:db8::/32"))
    body = json.dumps(MESSAGE).encode()

    async def status(address: str, forwarded: str = "") -> int:
        headers = {"x-forwarded-for": forwarded} if forwarded else {}
        answer = await rig.gateway.call("POST", "/v1/messages", key=secret, headers=headers, body=body, address=address)
        return answer.status

    assert await status("192.0.2.7") == await status("2001:db8::1") == 200
    assert await status("192.0.3.7") == await status("127.0.0.1") == 401
    assert await status("10.1.2.3", "192.0.2.7") == 200
    assert await status("10.1.2.3", "192.0.2.7, 198.51.100.1") == 401
    assert await status("198.51.100.1", "192.0.2.7") == 401


async def test_an_expired_key_and_a_deleted_member(rig: Rig) -> None:
    secret, account, key = await rig.gateway.new_key(expires_at_ms=1_000)
    assert (await rig.gateway.message(secret)).status == 401
    member = Member(id=ids.new_member_id(), account_id=account.id, name="m", created_at_ms=1)
    await rig.gateway.put(member)
    await rig.gateway.put(msgspec.structs.replace(key, expires_at_ms=None, member_id=member.id))
    assert (await rig.gateway.message(secret)).status == 200
    await rig.gateway.put(msgspec.structs.replace(member, status="deleted"))
    assert (await rig.gateway.message(secret)).status == 401
    assert (await rig.gateway.call("GET", "/v1/models", key=secret)).status == 401


async def test_too_little_money_says_what_would_do(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key(credit_nanos=5_000_000)
    refused = await rig.gateway.message(secret, max_tokens=1000)
    assert (refused.status, refused.error["type"]) == (402, "insufficient_balance")
    assert refused.error["available_usd"] == "0.005"
    fits = refused.error["max_tokens_affordable"]
    assert 100 < fits < 400
    assert (await rig.gateway.message(secret, max_tokens=fits + 1)).status == 402
    assert (await rig.gateway.message(secret, max_tokens=fits)).status == 200


async def test_money_held_by_others_is_worth_waiting_for(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key(credit_nanos=250_000)
    task = await rig.stream(secret)
    refused = await rig.gateway.message(secret)
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert "x-should-retry" not in refused.headers
    rig.gate.set()
    await task
    assert (await rig.account(account))["balance"] == "250000"


async def test_a_spent_budget_is_told_as_such(rig: Rig) -> None:
    secret, _, key = await rig.gateway.new_key(limits=Limits(budget_month_nanos=1_000))
    refused = await rig.gateway.message(secret)
    assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert "month" in refused.error["message"]
    await rig.gateway.put(msgspec.structs.replace(key, limits=Limits()))
    assert (await rig.gateway.message(secret)).status == 200


async def test_who_tries_keys_that_do_not_exist_is_slowed_down_and_nobody_else(rig: Rig) -> None:
    secret, _, _ = await rig.gateway.new_key()
    other, _, _ = await rig.gateway.new_key()
    body = json.dumps(MESSAGE).encode()
    address = "2001:db8:" + ids.uuid7_hex()[-4:] + ":" + ids.uuid7_hex()[-4:] + "::1"

    async def tries(key: str, at: str = address) -> Any:
        return await rig.gateway.call("POST", "/v1/messages", key=key, body=body, address=at)

    assert (await tries(secret)).status == 200
    assert [(await tries(apikeys.generate())).status for _ in range(5)] == [401] * 5
    blocked = await tries(apikeys.generate())
    assert (blocked.status, blocked.error["type"]) == (429, "rate_limit_error")
    assert 1 <= int(blocked.headers["retry-after"]) <= 12
    assert (await tries(apikeys.generate(), address[:-1] + "2")).status == 429  # the same /64
    assert (await tries("sk-cr-malformed")).status == 401
    assert (await tries(secret)).status == 200
    assert (await tries(other)).status == 200  # never seen here before, and from the same address


async def test_a_free_answer_and_an_upstream_error_leave_the_buckets_as_they_were(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key(account_limits=Limits(itpm=60))
    before = (await rig.account(account)).get("buckets")
    answer = await rig.gateway.call(
        "POST", "/v1/messages", key=secret, headers={"x-answer": "400 {}"}, body=json.dumps(MESSAGE).encode()
    )
    assert answer.status == 400
    await asyncio.sleep(0.05)
    after = [int(one) for one in (await rig.account(account))["buckets"].split()]
    seconds = int(
        (await rig.redis.time(target_nodes="random") if _is_cluster(rig.redis) else await rig.redis.time())[0]
    )
    assert before is None
    assert after[1] <= (seconds + 1) * 1_000_000
    assert (await rig.account(account))["held"] == "0"


async def test_a_top_up_counts_for_the_very_next_request(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key(credit_nanos=0)
    assert (await rig.gateway.message(secret)).status == 402
    entry = Credit(id=ids.new_credit_id(), account_id=account.id, amount_nanos=10**9, reason="t", created_at_ms=1)
    await rig.gateway.put(entry)
    answer = await rig.gateway.message(secret)
    assert (answer.status, answer.body) == (200, ANSWER)


async def test_a_key_that_moves_to_a_member_takes_its_limits(rig: Rig) -> None:
    secret, account, key = await rig.gateway.new_key()
    assert (await rig.gateway.message(secret)).status == 200
    member = Member(id=ids.new_member_id(), account_id=account.id, name="m", created_at_ms=1, limits=Limits(rpm=1))
    await rig.gateway.put(member)
    moved: ApiKey = msgspec.structs.replace(key, member_id=member.id)
    await rig.gateway.put(moved)
    assert (await rig.gateway.message(secret)).status == 200
    refused = await rig.gateway.message(secret)
    assert refused.status == 429
    assert "member" in refused.error["message"]


async def test_a_request_whose_admission_was_interrupted_is_undone(rig: Rig) -> None:
    secret, account, _ = await rig.gateway.new_key()
    body = json.dumps(MESSAGE).encode()
    for _ in range(20):
        task = asyncio.ensure_future(rig.gateway.call("POST", "/v1/messages", key=secret, body=body))
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.3)
    assert {lease[0] for lease in (await rig.leases(account)).values()} <= {"v", "f"}
    assert await rig.in_flight(account.id, account) == 0


def _is_cluster(redis: Any) -> bool:
    return hasattr(redis, "get_primaries")
