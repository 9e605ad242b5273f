"""Every kind of rule on real stores: it is quiet, fires once, stays quiet, is over, and fires again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.common import clock, events, ids, subjects
from libs.common.entities import AlertRule, RuleKind
from libs.common.events import Account, ApiKey, Repair, UpstreamCredential
from libs.common.limits import Limits
from libs.common.upstreams import Name
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats, start_redis
from services.admin.alerts.backlog import Backlog
from services.admin.alerts.measures import Found, Measured
from tests.gates import open_gates
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import admitted
from tests.integration.alerts_rig import BY, Alerts
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, credit, recorded, refused, request_id_at

pytestmark = pytest.mark.anyio
HOUR_MS = 3_600_000
Do = Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def own_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """NATS and Redis of their own: what is parked and which breakers are open concerns the whole relay."""
    directory: Path = tmp_path_factory.mktemp("alerts")
    nats_port, redis_port = free_port(), free_port()
    processes = [
        start_nats(directory / "nats", directory / "logs", port=nats_port),
        start_redis(directory / "redis", directory / "logs", port=redis_port),
    ]
    redis_url = f"redis://127.0.0.1:{redis_port}/0"
    open_gates(redis_url)
    yield f"nats://127.0.0.1:{nats_port}", redis_url
    for process in processes:
        process.stop()


@pytest.fixture
async def rig(own_stores: tuple[str, str], clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(*own_stores, clickhouse_url) as made:
        yield made


@pytest.fixture
def unknown() -> list[str]:
    """Models that another chore does not know."""
    return []


@pytest.fixture
async def alerts(rig: Rig, unknown: list[str]) -> AsyncIterator[Alerts]:
    async def count(rules: Sequence[AlertRule]) -> Found:
        return {rule.id: Measured(len(unknown), ", ".join(unknown)) for rule in rules}

    async with rig.worker(), Alerts.over(rig, {"unknown_model": count}) as made:
        yield made


async def crosses(alerts: Alerts, rule: AlertRule, begin: Do, end: Do) -> None:
    """Both ways, twice."""
    await alerts.stays(rule)
    await begin()
    await alerts.comes_to(rule, True)
    await end()
    await alerts.comes_to(rule, False)
    assert alerts.incidents(rule)[0].over_at_ms is not None
    await begin()
    await alerts.comes_to(rule, False, True)
    assert [one.number for one in alerts.incidents(rule)] == [1, 2]


class Traffic:
    """Requests of an account, and the passing of time."""

    def __init__(self, alerts: Alerts, account_id: str) -> None:
        self.alerts, self.account_id, self.sent = alerts, account_id, 0

    async def send(self, count: int, *, at_ms: int = 0, tokens: int = 1, **fields: Any) -> None:
        """In the archive when this returns. `at_ms`: as windows see it."""
        at_ms = at_ms or self.alerts.now_ms()
        usage = fields.pop("usage", {"input_tokens": tokens, "output_tokens": 0})
        told = {"usage": usage, **fields}
        await self.alerts.rig.publish(
            [recorded(self.account_id, request_id=request_id_at(at_ms), **told) for _ in range(count)]
        )
        self.sent += count
        await self.alerts.archived(self.account_id, self.sent)

    async def watch_a_day(self, kind: RuleKind, threshold: int) -> None:
        """Another rule in the same query: what it reads is more than the rule that is tested may see."""
        await self.alerts.new_rule(kind, threshold, account_id=self.account_id, window_minutes=24 * 60)

    async def wait_ms(self, wait_ms: int = 2 * HOUR_MS) -> None:
        self.alerts.later_ms += wait_ms


@pytest.fixture
async def traffic(alerts: Alerts) -> Traffic:
    return Traffic(alerts, await alerts.new_account(10**12))


async def test_balance_below(alerts: Alerts) -> None:
    account_id = await alerts.new_account(5 * 10**9)
    rule = await alerts.new_rule("balance_below", 5 * 10**9, account_id=account_id, window_minutes=0)

    async def add(nanos: int) -> None:
        await alerts.put(credit(account_id, nanos), over=None, by=BY)

    await crosses(alerts, rule, lambda: add(-1), lambda: add(1))
    first = alerts.incidents(rule)[0]
    assert first.title == "account test: 4.999999999 USD are available, less than 5.00 USD"
    assert "Add credit" in first.text


@pytest.mark.parametrize("scope", ["account", "key"])
async def test_budget_used(alerts: Alerts, scope: str) -> None:
    account_id = await alerts.new_account(10**12)
    key_id = await alerts.new_key(account_id)
    kind, name = (Account, account_id) if scope == "account" else (ApiKey, key_id)
    of = {"key_id": key_id} if scope == "key" else {}
    rule = await alerts.new_rule("budget_used", 80, account_id=account_id, window_minutes=0, **of)
    await alerts.change(kind, name, limits=Limits(budget_day_nanos=100 * ONE_TOKEN_NANOS))
    await alerts.rig.publish([recorded(account_id, 79, key_id=key_id)])
    await alerts.archived(account_id, 1)
    await alerts.stays(rule)
    await alerts.rig.publish([recorded(account_id, 1, key_id=key_id)])
    await alerts.comes_to(rule, True)
    assert "80 % of a budget" in alerts.incidents(rule)[0].title
    assert "daily budget of 0.0003 USD, 0.00024 USD are spent" in alerts.incidents(rule)[0].text
    await alerts.change(kind, name, limits=Limits(budget_day_nanos=101 * ONE_TOKEN_NANOS))
    await alerts.comes_to(rule, False)
    await alerts.change(kind, name, limits=Limits(budget_day_nanos=100 * ONE_TOKEN_NANOS))
    await alerts.comes_to(rule, False, True)


async def test_rate_limited(alerts: Alerts, traffic: Traffic) -> None:
    """Our own refusals and the upstream's are one number; a spent budget is no rate limit."""
    rule = await alerts.new_rule("rate_limited", 4, account_id=traffic.account_id)
    await traffic.watch_a_day("rate_limited", 10**9)

    async def count(number: int, reason: str) -> None:
        minute = alerts.now_ms() // 60_000
        one = refused(traffic.account_id, reason=reason, minute=minute, refused=number, gateway_id=ids.uuid7_hex())
        subject = subjects.refused_subject(ids.partition(traffic.account_id))
        await alerts.rig.publish_bytes(subject, events.encode_refusals([one]), subjects.STREAM_USAGE)

    async def begin() -> None:
        await count(50, "budget")
        await count(3, "requests")
        await traffic.send(1, status=429, outcome="free", usage={})
        await alerts.stays(rule, *alerts.stands(rule))
        await count(1, "in_flight")

    await crosses(alerts, rule, begin, traffic.wait_ms)
    assert "5 requests met a rate limit within 60 minutes" in alerts.incidents(rule)[0].title


async def test_error_share(alerts: Alerts, traffic: Traffic) -> None:
    """19 requests say nothing, however many of them failed."""
    rule = await alerts.new_rule("error_share", 50, account_id=traffic.account_id)
    await traffic.watch_a_day("error_share", 100)

    async def begin() -> None:
        before = alerts.stands(rule)
        await traffic.send(9, status=500, outcome="free", usage={})
        await traffic.send(10)
        await alerts.stays(rule, *before)
        await traffic.send(1, outcome="partial")

    await crosses(alerts, rule, begin, traffic.wait_ms)
    assert "10 of 20 requests failed" in alerts.incidents(rule)[0].text


async def test_a_rule_about_one_key_does_not_see_others(alerts: Alerts, traffic: Traffic) -> None:
    key_id = await alerts.new_key(traffic.account_id)
    one, member, whole = [
        await alerts.new_rule("spend_velocity", ONE_TOKEN_NANOS, account_id=traffic.account_id, **of)
        for of in ({"key_id": key_id}, {"member_id": "memb_1"}, {})
    ]
    other = await alerts.new_rule("spend_velocity", 1, account_id=await alerts.new_account())
    await traffic.send(1)
    await alerts.comes_to(whole, True)
    for quiet in (one, member, other):
        await alerts.stays(quiet)
    await traffic.send(1, key_id=key_id, member_id="memb_1")
    await alerts.comes_to(one, True)
    await alerts.stays(member, True)
    await alerts.stays(other)


async def test_cache_hit_drop(alerts: Alerts, traffic: Traffic) -> None:
    """In the last days 90 % came from caches at this hour, and nothing at another hour; now it is 60 %."""
    rule = await alerts.new_rule("cache_hit_drop", 30, account_id=traffic.account_id)
    await traffic.watch_a_day("cache_hit_drop", 100)
    now_ms = clock.unix_ms()
    good = {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 0}
    poor = {"input_tokens": 40, "cache_read_input_tokens": 60, "output_tokens": 0}
    for days in (1, 7):
        await traffic.send(25, at_ms=now_ms - days * 24 * HOUR_MS, usage=good)
    await traffic.send(60, at_ms=now_ms - 30 * HOUR_MS, usage=poor)
    await traffic.send(49, usage=poor)
    await alerts.stays(rule)
    await traffic.send(1, usage=poor)
    await alerts.comes_to(rule, True)
    assert "60 % of the input came from caches, 90 % at this time" in alerts.incidents(rule)[0].text
    await traffic.send(2, usage=good)
    await alerts.comes_to(rule, False)
    await traffic.send(10, usage={**poor, "input_tokens": 400})
    await alerts.comes_to(rule, False, True)


async def test_spend_velocity_pauses_the_key(alerts: Alerts, traffic: Traffic) -> None:
    key_id, redis = await alerts.new_key(traffic.account_id), alerts.rig.redis
    told = {"account_id": traffic.account_id, "key_id": key_id}
    rule = await alerts.new_rule("spend_velocity", 10 * ONE_TOKEN_NANOS, pause_key=True, **told)
    await traffic.send(1, tokens=9, key_id=key_id)
    await alerts.stays(rule)
    assert getattr(await admitted(redis, traffic.account_id, key_id), "reason", "") == ""
    await traffic.send(1, tokens=1, key_id=key_id)
    await alerts.comes_to(rule, True)
    assert getattr(await admitted(redis, traffic.account_id, key_id), "reason", "") == "key"
    assert "The key was disabled." in alerts.incidents(rule)[0].text
    await traffic.wait_ms()
    await alerts.comes_to(rule, False)
    await alerts.change(ApiKey, key_id, status="active")
    await traffic.send(1, tokens=10, key_id=key_id)
    await alerts.comes_to(rule, False, True)
    key = alerts.context.mirror.get(ApiKey, key_id)
    assert key is not None
    assert key.status == "disabled"


async def test_breaker_open(alerts: Alerts) -> None:
    credential = UpstreamCredential(
        id=ids.new_upstream_id(), name="prod", created_at_ms=1, base_url="http://127.0.0.1:1", sealed="x", hint="x"
    )
    found = await alerts.put(credential, over=None, by=BY)
    name = Name(credential.id, str(found.version))
    rule = await alerts.new_rule("breaker_open", 1, window_minutes=0)

    async def begin() -> None:
        await alerts.context.pool.failed(name, "auth")

    async def end() -> None:
        nonlocal name, found
        found = await alerts.put(credential, over=found, by=BY)  # whoever mends it, it is a new generation
        name = Name(credential.id, str(found.version))

    await crosses(alerts, rule, begin, end)
    assert "Not usable: prod (auth)." in alerts.incidents(rule)[0].text


async def test_unknown_model_is_measured_by_somebody_else(alerts: Alerts, unknown: list[str]) -> None:
    rule = await alerts.new_rule("unknown_model", 0, window_minutes=0)

    async def begin() -> None:
        unknown.append("claude-next")

    async def end() -> None:
        unknown.clear()

    await crosses(alerts, rule, begin, end)
    assert "claude-next" in alerts.incidents(rule)[0].text


async def test_drift(alerts: Alerts) -> None:
    account_id = await alerts.new_account()
    rule = await alerts.new_rule("drift", 0)
    before = (await alerts.windows.repairs([rule]))[rule.id]
    await alerts.change(AlertRule, rule.id, threshold=before)

    async def begin() -> None:
        for _ in range(before + 1):
            repair = Repair(
                id=ids.new_repair_id(),
                account_id=account_id,
                balance_nanos=1,
                granted_nanos=1,
                reason="test",
                created_at_ms=alerts.now_ms(),
            )
            await alerts.put(repair, over=None, by=BY)

    await alerts.stays(rule)
    await begin()
    await alerts.comes_to(rule, True)
    alerts.later_ms = 2 * HOUR_MS
    await alerts.comes_to(rule, False)
    alerts.later_ms = 0
    await alerts.comes_to(rule, False, True)


async def test_parked_events(alerts: Alerts) -> None:
    rule = await alerts.new_rule("parked_events", 0, window_minutes=0)

    async def begin() -> None:
        await alerts.rig.publish_bytes(subjects.DLQ_USAGE, b"?", subjects.STREAM_DLQ)

    async def end() -> None:
        await alerts.rig.publish_bytes(subjects.DLQ_RESOLVED, b"{}", subjects.STREAM_DLQ)

    await crosses(alerts, rule, begin, end)


async def test_settlement_lag(rig: Rig) -> None:
    async with Alerts.over(rig) as alerts:
        account_id = await alerts.new_account()
        rule = await alerts.new_rule("settlement_lag", 60, window_minutes=0)

        async def settle() -> None:
            async with rig.worker():
                await until(settled)

        async def settled() -> bool:
            return await alerts.backlog.lag_s() == 0

        async def fall_behind() -> None:
            await rig.publish([recorded(account_id)])
            await rig.publish([recorded(account_id)])

        await settle()
        alerts.later_ms = 120_000
        await crosses(alerts, rule, fall_behind, settle)
        assert 120 <= alerts.incidents(rule)[0].value < 180
        await settle()


async def test_the_lag_is_that_of_the_oldest_one_that_is_not_settled(rig: Rig) -> None:
    """What was settled before does not count; what a worker has in hand does."""
    backlog = Backlog(rig.broker)

    async def settled() -> bool:
        return await backlog.lag_s() == 0

    account_id = await rig.new_account()
    await rig.publish([recorded(account_id)])
    async with rig.worker():
        await rig.settled(account_id, 1, ONE_TOKEN_NANOS)
    await asyncio.sleep(2.1)
    began_ms = clock.unix_ms()
    await rig.publish([recorded(account_id)])
    assert await backlog.lag_s() * 1000 <= clock.unix_ms() - began_ms
    hand = await rig.jetstream.pull_subscribe_bind(consumer=subjects.CONSUMER_ACCOUNTING, stream=subjects.STREAM_USAGE)
    (message,) = await hand.fetch(1)
    await asyncio.sleep(1.1)
    assert await backlog.lag_s() >= 1
    await message.nak()
    async with rig.worker():
        await until(settled)


async def test_what_cannot_be_measured_changes_nothing(alerts: Alerts, traffic: Traffic) -> None:
    """ClickHouse is away: what is open stays open, and rules that need only Redis are still watched."""
    spend = await alerts.new_rule("spend_velocity", 1, account_id=traffic.account_id)
    low = await alerts.new_rule("balance_below", 10**12, account_id=traffic.account_id, window_minutes=0)
    await traffic.send(1)
    await alerts.comes_to(spend, True)
    await alerts.comes_to(low, True)
    context = msgspec.structs.replace(alerts.context, ledger=type(alerts.context.ledger)("http://127.0.0.1:1/relay"))
    async with Alerts.over(alerts.rig) as away:
        away.windows._ledger = context.ledger
        await alerts.put(credit(traffic.account_id, 10**6), over=None, by=BY)
        await away.comes_to(low, False)
        assert away.stands(spend) == [True]
