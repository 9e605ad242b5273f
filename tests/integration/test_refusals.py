"""Refusals on real stores: counted at a gateway, archived by accounting, in nobody's way."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from libs.common import clock, events, ids, subjects
from libs.common.balances import Balances
from libs.common.config import GatewayConfig
from libs.common.directory import Directory
from libs.common.events import Member, RefusalsCounted
from libs.common.limits import Limits
from libs.common.metrics import Metrics
from libs.common.upstreams import Upstreams
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.accounting import log
from services.accounting.consumer import Consumer, UsageHandler, subscribe
from services.accounting.operations import reconcile, replay
from services.accounting.stores import open_stores
from services.gateway.app import create_app
from services.gateway.cycle import BodyBudget
from tests.contract.fakes import MemoryBooks, MemoryHours, MemoryMarks
from tests.integration.accounting_rig import Rig, until
from tests.integration.gateway_rig import Gateway, running, upstream
from tests.integration.test_operations import Operator
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, recorded, refused

pytestmark = pytest.mark.anyio
ROWS = """
SELECT key_id, member_id, reason, sum(refused), uniqExact(gateway_id) FROM refusals FINAL
WHERE account_id = {account:String} GROUP BY ALL ORDER BY ALL
"""


@pytest.fixture(scope="module")
def own_nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JetStream that no other worker reads from."""
    directory: Path = tmp_path_factory.mktemp("nats")
    port = free_port()
    process = start_nats(directory, directory / "logs", port=port)
    yield f"nats://127.0.0.1:{port}"
    process.stop()


@pytest.fixture
async def rig(own_nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(own_nats_url, redis_url, clickhouse_url) as made:
        yield made


def gateway(rig: Rig, nats_url: str, redis_url: str, spool: Path) -> Gateway:
    config = GatewayConfig(
        nats_url=nats_url,
        redis_url=redis_url,
        upstream_url="http://upstream",
        upstream_api_key="sk-ant-operator",
        spool_directory=str(spool),
    )
    directory = Directory(rig.redis, Balances(rig.redis), Upstreams(rig.redis))
    budget = BodyBudget(10_000_000)
    app = create_app(config, metrics=Metrics(), body_budget=budget, transport=httpx2.MockTransport(upstream))
    return Gateway(app, directory, budget)


async def rows(rig: Rig, account_id: str) -> list[tuple[str, str, str, int, int]]:
    return [tuple(one) for one in await rig.ledger.query(ROWS, {"account": account_id})]


async def tell(rig: Rig, *counts: RefusalsCounted, payload: bytes = b"") -> None:
    """One message, under an id of its own."""
    subject = subjects.refused_subject(ids.partition(counts[0].account_id) if counts else 0)
    await rig.publish_bytes(subject, payload or events.encode_refusals(counts), subjects.STREAM_USAGE)


async def test_what_a_gateway_refuses_becomes_rows(rig: Rig, own_nats_url: str, redis_url: str, tmp_path: Path) -> None:
    """Two gateways, one after the other: the second one's counts stand beside the first one's."""
    made = gateway(rig, own_nats_url, redis_url, tmp_path / "a")
    async with rig.worker():
        async with running(made.app):
            secret, account, key = await made.new_key(credit_nanos=0, account_limits=Limits(free_rpm=1))
            for _ in range(3):
                assert (await made.message(secret)).status == 402
            assert (await made.call("GET", "/v1/models", key=secret)).status == 200
            assert (await made.call("GET", "/v1/models", key=secret)).status == 429
            assert (await made.message("sk-cr-unknown")).status == 401
        other = gateway(rig, own_nats_url, redis_url, tmp_path / "b")
        async with running(other.app):
            member = Member(id=ids.new_member_id(), account_id=account.id, name="m", created_at_ms=1, status="disabled")
            other.version = 1_000
            await other.put(member)
            second, _, of_member = await other.new_key(member_id=member.id)
            assert (await other.message(secret)).status == 402
            assert (await other.message(second)).status == 401

        async def archived() -> bool:
            return len(await rows(rig, account.id)) == 2 and len(await rows(rig, of_member.account_id)) == 1

        await until(archived)
    assert await rows(rig, account.id) == [(key.id, "", "balance", 4, 2), (key.id, "", "free", 1, 1)]
    assert await rows(rig, of_member.account_id) == [(of_member.id, member.id, "member", 1, 1)]
    assert await rig.archived(account.id) == (0, 0)


async def test_delivered_again_nothing_counts_twice_and_usage_is_unharmed(rig: Rig) -> None:
    async with rig.worker():
        account_id = await rig.new_account()
        counts = [refused(account_id, key_id=f"key_{number}", refused=number + 1) for number in range(20)]
        sent = [recorded(account_id, tokens=7) for _ in range(10)]
        for number in range(10):
            await rig.publish(sent[number : number + 1])
            await tell(rig, *counts[number:], *counts[:number])
        grown = refused(account_id, key_id="key_0", minute=counts[0].minute, refused=50)
        await tell(rig, grown)
        await tell(rig, counts[0])
        await rig.settled(account_id, 10, 70 * ONE_TOKEN_NANOS)

        async def archived() -> bool:
            return {row[0]: row[3] for row in await rows(rig, account_id)} == {
                one.key_id: one.refused for one in (*counts[1:], grown)
            }

        await until(archived)
        await rig.ledger.run("OPTIMIZE TABLE refusals FINAL")
        assert await archived()


async def test_poison_is_parked_and_what_stands_beside_it_goes_on(rig: Rig) -> None:
    metrics, stopping = Metrics(), asyncio.Event()
    async with rig.worker():  # for the account alone
        account_id = await rig.new_account()
        await rig.settled(account_id, 0, 0)
    before = len(await rig.parked())
    consumer = Consumer(
        rig.jetstream,
        await subscribe(rig.jetstream, subjects.STREAM_USAGE, "usage.>"),
        UsageHandler(rig.ledger, rig.balances, MemoryBooks(), MemoryMarks(), MemoryHours(), metrics),
        metrics,
        batch_messages_max=20,
        batch_seconds=0.05,
        retry_seconds=0.02,
    )
    odd = refused(account_id, refused=0)
    await tell(rig, payload=b"\xffpoison")
    await rig.publish([recorded(account_id)])
    await tell(rig, refused(account_id, refused=5), odd)
    running_ = asyncio.ensure_future(consumer.run(stopping))
    await rig.settled(account_id, 1, ONE_TOKEN_NANOS)

    async def parked() -> bool:
        return len(await rig.parked()) == before + 2

    await until(parked)
    stopping.set()
    await running_
    assert {payload for _, payload, _ in (await rig.parked())[before:]} == {
        b"\xffpoison",
        events.encode_refusals([odd]),
    }
    assert await rows(rig, account_id) == [("key_1", "", "budget", 5, 1)]
    info = await rig.jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
    assert (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_who_reads_the_log_for_money_never_sees_them(rig: Rig) -> None:
    """Refusals first, in the middle and at the end: the reader ends, and has all the usage."""
    account_id = ids.new_account_id()
    since = clock.utc_now()
    sent = [recorded(account_id) for _ in range(3)]
    for event in sent:
        await tell(rig, refused(account_id))
        await rig.publish([event])
    await tell(rig, refused(account_id))
    found = []
    async with asyncio.timeout(10):
        async for messages in log.read(rig.jetstream, subjects.STREAM_USAGE, subjects.USAGE_EVENTS, since):
            found += [event for message in messages for event in events.decode_usage(message.data)]
    assert [event for event in found if event.account_id == account_id] == sent


async def test_they_are_no_damage_to_an_operator(rig: Rig) -> None:
    start = clock.iso_utc(clock.unix_ms() - 1)
    async with rig.worker():
        account_id = await rig.new_account()
        await rig.settled(account_id, 0, 0)
    await tell(rig, refused(account_id))  # no worker is there: they are on their way
    async with open_stores(rig.config, name="test", connect_s=5) as stores:
        operator = Operator(stores)
        code, said = await operator.run(replay, "--from", start)
        assert (code, said.fields[-1].get("unreadable", 0)) == (0, 0), said.lines
        code, said = await operator.run(reconcile, "--account", account_id)
        assert (code, len(said.lines)) == (0, 1)
