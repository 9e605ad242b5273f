"""A worker on real stores: whatever comes, however often and in whatever order, archive and balance agree to the nano."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from libs.common import clock, events, ids, rediskeys, subjects
from libs.common.balances import Balances, Settlement
from libs.common.books import Books
from libs.common.directory import Directory
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.scripts import Scripts
from libs.common.upstreams import Upstreams
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.accounting.consumer import Consumer, UsageHandler, subscribe
from services.accounting.rows import USAGE_COLUMNS
from services.accounting.settlement import REMEMBERED_S
from tests.contract.fakes import MemoryHours, MemoryMarks
from tests.integration.accounting_rig import Rig, until
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, account, changed, credit, recorded, request_id_at

pytestmark = pytest.mark.anyio


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


def cost(sent: list[UsageRecorded]) -> int:
    tokens: int = sum(event.usage["input_tokens"] for event in sent)
    return tokens * ONE_TOKEN_NANOS


async def test_events_become_rows_and_debits(rig: Rig) -> None:
    async with rig.worker() as ready:
        account_id = await rig.new_account()
        sent = [recorded(account_id, tokens=1 + number) for number in range(100)]
        for first in range(0, 100, 10):
            await rig.publish(sent[first : first + 10])
        await rig.settled(account_id, 100, cost(sent))
        assert ready()


async def test_repeated_reordered_and_corrected_by_two_workers(rig: Rig) -> None:
    """Each request in several versions; each event up to three times: in one message, in another, in another batch."""
    draw = random.Random(11)
    async with rig.worker(), rig.worker():
        account_id = await rig.new_account()
        newest: dict[str, UsageRecorded] = {}
        deliveries: list[UsageRecorded] = []
        for _ in range(60):
            request_id = ids.new_request_id()
            for version in draw.sample([1, 2, 3, 4, 5], draw.randint(1, 3)):
                event = recorded(account_id, request_id=request_id, version=version, tokens=draw.randint(1, 999))
                deliveries += [event] * draw.randint(1, 3)
                if request_id not in newest or newest[request_id].version < version:
                    newest[request_id] = event
        draw.shuffle(deliveries)
        while deliveries:
            taken = draw.randint(1, 7)
            await rig.publish(deliveries[:taken], again=True)
            deliveries = deliveries[taken:]
        await rig.settled(account_id, 60, cost(list(newest.values())))


async def test_an_event_waits_for_its_account_and_holds_up_nobody(rig: Rig) -> None:
    late = ids.new_account_id()
    async with rig.worker():
        account_id = await rig.new_account()
        mixed, sent = recorded(late, tokens=5), [recorded(account_id) for _ in range(3)]
        await rig.publish([mixed])
        entry = changed(credit(late, 10**12))
        await rig.change(entry)
        await rig.publish(sent)
        await rig.settled(account_id, 3, cost(sent))
        assert await rig.balance(late) is None
        await rig.change(changed(account(late)))
        await rig.settled(late, 1, cost([mixed]))


async def test_the_control_stream_by_several_workers(rig: Rig) -> None:
    """Admin died between publish and apply, or applied already; old versions come late; a credit comes from everywhere."""
    directory = Directory(rig.redis, Balances(rig.redis), Upstreams(rig.redis))
    account_id = ids.new_account_id()
    changes = [changed(account(account_id, multiplier_ppm=number)) for number in range(1, 31)]
    entry = changed(credit(account_id, 77))
    sequences = []
    for change in changes:
        sequences.append(await rig.change(change))
        if change.entity == changes[20].entity:
            await directory.apply(change, sequences[-1])
    credit_sequence = await rig.change(entry)
    async with rig.worker(), rig.worker():
        await asyncio.gather(*(directory.apply(entry, credit_sequence) for _ in range(5)))
        await rig.settled(account_id, 0, 0, granted=77)

        async def archived() -> bool:
            statement = f"SELECT count() FROM control FINAL WHERE account_id = '{account_id}'"
            return list(await rig.ledger.query(statement)) == [(31,)]

        await until(archived)
        version, multiplier = await rig.redis.hmget(rediskeys.account(account_id), ["version", "multiplier_ppm"])
        assert (int(version or 0), multiplier) == (sequences[-1], b"30")


async def test_poison_is_parked_and_the_rest_goes_on(rig: Rig) -> None:
    """On the real stream, with short delays: each poison is delivered five times, its neighbours are settled at once."""
    metrics = Metrics()
    stopping = asyncio.Event()
    subscription = await subscribe(rig.jetstream, subjects.STREAM_USAGE, "usage.>")
    consumer = Consumer(
        rig.jetstream,
        subscription,
        UsageHandler(rig.ledger, rig.balances, Books(Scripts(rig.redis)), MemoryMarks(), MemoryHours(), metrics),
        metrics,
        batch_messages_max=20,
        batch_seconds=0.05,
        retry_seconds=0.02,
    )
    async with rig.worker():  # for the account alone
        account_id = await rig.new_account()
        await rig.settled(account_id, 0, 0)
    before = len(await rig.parked())
    unpriced, sent = recorded(account_id, model_answered="claude-9"), [recorded(account_id) for _ in range(4)]
    subject = subjects.usage_subject(ids.partition(account_id))
    await rig.publish([sent[0], unpriced, sent[1]])
    for payload in (b"\x00\xff", b'{"not":"a list"}', b"[" * 5000):
        await rig.publish_bytes(subject, payload, subjects.STREAM_USAGE)
    await rig.publish(sent[2:])
    running = asyncio.ensure_future(consumer.run(stopping))
    await rig.settled(account_id, 4, cost(sent))

    async def parked() -> bool:
        return len(await rig.parked()) == before + 4

    await until(parked)
    stopping.set()
    await running
    found = {payload for _, payload, _ in (await rig.parked())[before:]}
    assert found == {b"\x00\xff", b'{"not":"a list"}', b"[" * 5000, events.encode_usage([unpriced])}
    info = await rig.jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
    assert (info.num_ack_pending, info.num_pending) == (0, 0)
    assert (info.config.max_deliver, info.config.ack_wait, info.config.max_ack_pending) == (-1, 60, 10_000)


async def test_a_correction_of_what_redis_has_forgotten(rig: Rig) -> None:
    async with rig.worker():
        account_id = await rig.new_account()
        old_id = request_id_at(clock.unix_ms() - 2 * REMEMBERED_S * 1000)
        first = recorded(account_id, request_id=old_id, tokens=50)
        await rig.publish([first])
        await rig.settled(account_id, 1, cost([first]))
        await _let_time_pass(rig, account_id, old_id)
        await rig.publish([first], again=True)
        correction = recorded(account_id, request_id=old_id, version=4, tokens=20)
        await rig.publish([correction])
        await rig.settled(account_id, 1, cost([correction]))


async def _let_time_pass(rig: Rig, account_id: str, request_id: str) -> None:
    """Redis forgets the event, and its row is as old as the event is."""
    await rig.redis.delete(rediskeys.settled(account_id, request_id))
    old = clock.from_unix_ms(ids.id_time_ms(request_id)).strftime("%Y-%m-%d %H:%M:%S.000")
    columns = ", ".join(USAGE_COLUMNS)
    await rig.ledger.run(
        f"INSERT INTO usage ({columns}, recorded_at) SELECT {columns}, '{old}' FROM usage FINAL"
        f" WHERE request_id = '{request_id}'"
    )
    horizon_ms = clock.unix_ms() - REMEMBERED_S * 1000
    found = await rig.ledger.settled_before([Settlement(account_id, request_id, 4, 0)], horizon_ms)
    assert found == {request_id: (3, 50 * ONE_TOKEN_NANOS)}
