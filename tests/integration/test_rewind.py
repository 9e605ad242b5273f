"""A Redis that comes back with an older state: nothing is admitted before the log has told it what it forgot."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamInfo
from nats.js.client import JetStreamContext
from redis import Redis

from libs.common import events, failpoints, ids, redisclient, rediskeys, subjects
from libs.common.directory import Directory
from libs.common.events import Repair, UsageRecorded
from libs.common.failpoints import FailpointReached
from libs.common.gates import Gates
from libs.common.leases import Granted, Leases, Refused
from libs.common.metrics import Metrics
from libs.common.scripts import StoreUnavailable
from libs.common.upstreams import Upstreams
from libs.localstack.process import Process, free_port, port_answers
from libs.localstack.stores import start_nats, start_redis
from services.accounting.log import LogTorn
from services.accounting.rewinder import Rewinder
from tests.contract.fakes import MemoryBooks
from tests.e2e.store import Store
from tests.integration.accounting_rig import Rig, until
from tests.integration.test_redis_cluster import Cluster, Watched, cluster, collected_here, watched
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, account, admission, api_key, changed, credit, recorded

pytestmark = pytest.mark.anyio
__all__ = ["cluster", "collected_here", "watched"]
WRITTEN_S = 1.2
"""Redis writes to disk every second."""


class Past:
    """A Redis, and its data as they were."""

    def __init__(self, store: Store, copy: Path) -> None:
        self.store = store
        self._data = store._directory
        self._copy = copy

    def remember(self) -> None:
        """What is on disk now."""
        shutil.copytree(self._data, self._copy)

    def come_back(self, *, forgetful: bool = True) -> None:
        """Killed, and started again: with what it remembers, or with what was remembered."""
        self.store.kill()
        if forgetful:
            shutil.rmtree(self._data)
            shutil.move(self._copy, self._data)
        self.store.give_back()


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    store = Store(start_redis, tmp_path / "redis")
    yield Past(store, tmp_path / "copy")
    store.close()


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_nats, tmp_path / "nats")
    yield store
    store.close()


@pytest.fixture
async def rig(past: Past, nats: Store, clickhouse_url: str) -> AsyncIterator[Rig]:
    redis_url = f"redis://127.0.0.1:{past.store.port}/0"
    async with Rig.over(f"nats://127.0.0.1:{nats.port}", redis_url, clickhouse_url) as made:
        yield made


def rewinder(rig: Rig) -> Rewinder:
    gates, directory = Gates(rig.redis), Directory(rig.redis, rig.balances, Upstreams(rig.redis))
    return Rewinder(gates, rig.jetstream, rig.ledger, rig.balances, directory, MemoryBooks(), Metrics(), rewind_s=900)


async def admit(rig: Rig, account_id: str, key_id: str) -> Granted | Refused:
    """What admission says now. It takes nothing."""
    leases = Leases(rig.redis)
    decision = await leases.admit(admission(account_id, key_id))
    if isinstance(decision, Granted):
        await leases.void(decision.lease)
    return decision


async def is_open(rig: Rig, account_id: str) -> bool:
    with contextlib.suppress(StoreUnavailable):
        return (await Gates(rig.redis).state(ids.partition(account_id))).is_open
    return False


async def history(rig: Rig) -> tuple[str, str, list[UsageRecorded]]:
    """An account with a key and some spending."""
    account_id = await rig.new_account()
    key = api_key(account_id)
    await rig.change(changed(key))
    sent = [recorded(account_id, tokens=number, key_id=key.id) for number in range(1, 21)]
    for event in sent:
        await rig.publish([event])
    return account_id, key.id, sent


async def test_what_redis_forgot_is_settled_again_before_anything_is_admitted(rig: Rig, past: Past) -> None:
    async with rig.worker():
        account_id, key_id, _ = await history(rig)
        await rig.settled(account_id, 20, sum(range(1, 21)) * ONE_TOKEN_NANOS)
        assert isinstance(await admit(rig, account_id, key_id), Granted)
        await asyncio.sleep(WRITTEN_S)
        past.remember()
        more = [recorded(account_id, tokens=1_000, key_id=key_id) for _ in range(30)]
        for event in more:
            await rig.publish([event])
        other = await rig.new_account()  # an account that Redis will not know at all
        await rig.publish([recorded(other, tokens=7)])
        await rig.settled(account_id, 50, (210 + 30_000) * ONE_TOKEN_NANOS)
        await rig.settled(other, 1, 7 * ONE_TOKEN_NANOS)
    past.come_back()
    assert not await is_open(rig, account_id)
    refused = await admit(rig, account_id, key_id)
    assert isinstance(refused, Refused) and refused.reason == "closed"
    balance = await rig.balance(account_id)
    assert balance is not None and balance.spent < (210 + 30_000) * ONE_TOKEN_NANOS
    two = rewinder(rig), rewinder(rig)
    assert sum(await asyncio.gather(*(one.round() for one in two))) == ids.PARTITIONS  # each was claimed by one of them
    assert await is_open(rig, account_id) and await is_open(rig, other)
    balance = await rig.balance(account_id)
    assert balance is not None and balance.spent == (210 + 30_000) * ONE_TOKEN_NANOS
    balance = await rig.balance(other)
    assert balance is not None and balance.spent == 7 * ONE_TOKEN_NANOS
    assert isinstance(await admit(rig, account_id, key_id), Granted)


async def test_a_restart_that_forgot_nothing_changes_nothing(rig: Rig, past: Past) -> None:
    async with rig.worker():
        account_id, _, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        await asyncio.sleep(WRITTEN_S)
        past.come_back(forgetful=False)
        await until(lambda: is_open(rig, account_id))
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)


async def test_without_the_log_the_gate_stays_closed(
    rig: Rig, past: Past, nats: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.worker():
        account_id, key_id, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        nats.kill()
        await asyncio.sleep(WRITTEN_S)
        past.come_back(forgetful=False)
        await asyncio.sleep(2)
        assert not await is_open(rig, account_id)
        assert 0 < caplog.text.count("partitions are looked at again") < 4  # not with every look
        nats.give_back()
        await until(lambda: is_open(rig, account_id))
        assert isinstance(await admit(rig, account_id, key_id), Granted)


async def spent(rig: Rig, account_id: str) -> int:
    balance = await rig.balance(account_id)
    return balance.spent if balance is not None else 0


async def closed(rig: Rig, past: Past) -> tuple[str, str]:
    """An account of 20 requests, of which Redis remembers ten, and nobody has looked yet."""
    async with rig.worker():
        account_id = await rig.new_account()
        key = api_key(account_id)
        await rig.change(changed(key))
        await until(lambda: is_open(rig, account_id))
        for half in (1, 2):
            for _ in range(10):
                await rig.publish([recorded(account_id, tokens=1, key_id=key.id)])
            await rig.settled(account_id, 10 * half, 10 * half * ONE_TOKEN_NANOS)
            if half == 1:
                await asyncio.sleep(WRITTEN_S)
                past.remember()
    past.come_back()
    assert await spent(rig, account_id) == 10 * ONE_TOKEN_NANOS
    return account_id, key.id


async def test_a_worker_that_died_keeps_a_partition_only_as_long_as_its_claim(rig: Rig, past: Past) -> None:
    account_id, _ = await closed(rig, past)
    gates = Gates(rig.redis)
    for number in range(ids.PARTITIONS):
        assert await gates.claim(number, "dead", for_ms=1_000)
    one = rewinder(rig)
    assert await one.round() == 0
    await asyncio.sleep(1.1)
    assert await one.round() == ids.PARTITIONS
    assert await spent(rig, account_id) == 20 * ONE_TOKEN_NANOS


async def test_a_message_lost_on_the_way_keeps_the_gate_closed(
    rig: Rig, past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id, _ = await closed(rig, past)
    fetch = JetStreamContext.PullSubscription.fetch

    async def torn(self: JetStreamContext.PullSubscription, *arguments: Any, **more: Any) -> list[Msg]:
        messages = await fetch(self, *arguments, **more)
        return messages[:3] + messages[4:]

    one = rewinder(rig)
    with monkeypatch.context() as patched:
        patched.setattr(JetStreamContext.PullSubscription, "fetch", torn)
        with pytest.raises(LogTorn):
            await one.round()
    assert not await is_open(rig, account_id)
    assert await one.round() == ids.PARTITIONS  # its claim was given back
    assert await spent(rig, account_id) == 20 * ONE_TOKEN_NANOS


@pytest.mark.parametrize("what", ["restarted", "emptied"])
async def test_what_happens_to_redis_while_it_is_checked_is_checked_again(rig: Rig, past: Past, what: str) -> None:
    account_id, _ = await closed(rig, past)

    def strike() -> None:
        failpoints.disarm()
        if what == "restarted":
            past.come_back(forgetful=False)
        else:
            with Redis(port=past.store.port) as direct:
                direct.flushall()

    one = rewinder(rig)
    failpoints.arm("gate_rewound", strike)
    try:
        assert await one.round() == 0
        assert not await is_open(rig, account_id)
        assert await one.round() == ids.PARTITIONS
    finally:
        failpoints.disarm()
    assert await spent(rig, account_id) == 20 * ONE_TOKEN_NANOS


async def test_what_nobody_foresaw_does_not_end_the_loop(rig: Rig, past: Past) -> None:
    account_id, _ = await closed(rig, past)

    def fail() -> None:
        failpoints.disarm()
        raise FailpointReached("gate_closed")

    failpoints.arm("gate_closed", fail)
    stopping = asyncio.Event()
    running = asyncio.ensure_future(rewinder(rig).run(stopping))
    await until(lambda: is_open(rig, account_id))
    stopping.set()
    await running
    assert await spent(rig, account_id) == 20 * ONE_TOKEN_NANOS


async def test_a_repair_made_for_numbers_that_are_gone_does_not_count_again(rig: Rig) -> None:
    async with rig.worker():
        account_id, _, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        entry = Repair(id="rep_1", account_id=account_id, balance_nanos=-5, spent_nanos=5, reason="", created_at_ms=1)
        await rig.redis.hincrby(rediskeys.account(account_id), "spent", -5)  # what it repairs
        await rig.redis.hincrby(rediskeys.account(account_id), "balance", 5)
        subject = subjects.control_subject("repair", entry.id)
        await rig.publish_bytes(subject, events.encode_control(changed(entry)), subjects.STREAM_CONTROL)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        await rig.redis.flushall()
        await until(lambda: is_open(rig, account_id))
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        assert await rig.balances.repair(entry) == "DUPLICATE"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_replica_that_lagged_is_told_what_it_never_heard(
    watched: Watched, nats: Store, clickhouse_url: str
) -> None:
    url = f"redis-sentinel://127.0.0.1:{watched.sentinel_port}/relay/0"
    async with Rig.over(f"nats://127.0.0.1:{nats.port}", url, clickhouse_url) as rig, rig.worker():
        account_id, key_id, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        await rig.publish([recorded(account_id, tokens=1, key_id=key_id)])
        await rig.settled(account_id, 21, 211 * ONE_TOKEN_NANOS)
        with Redis(port=watched.port) as master:
            assert master.execute_command("WAIT", 1, 5000) == 1
        with Redis(port=watched.replica_port) as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", free_port())
            await rig.publish([recorded(account_id, tokens=1_000, key_id=key_id)])
            await rig.settled(account_id, 22, 1_211 * ONE_TOKEN_NANOS)
            os.kill(watched.master.pid, signal.SIGKILL)
            told = replica.hget(rediskeys.account(account_id), "spent")
            assert told == str(211 * ONE_TOKEN_NANOS).encode()
        await until(lambda: is_open(rig, account_id))
        with Redis(port=watched.replica_port) as replica:
            assert replica.info("replication")["role"] == "master"
        await rig.settled(account_id, 22, 1_211 * ONE_TOKEN_NANOS)
        assert isinstance(await admit(rig, account_id, key_id), Granted)


def restart_with(cluster: Cluster, number: int, data: Path, directory: Path) -> None:
    """A node dies, and comes back with the data it had before."""
    process = cluster.nodes[number]
    os.kill(process.pid, signal.SIGKILL)
    process.stop()
    shutil.rmtree(directory)
    shutil.move(data, directory)
    cluster.nodes[number] = Process.start(process.name, process._child.args, log=process.log)  # type: ignore[arg-type]
    cluster.nodes[number].wait_until(port_answers(cluster.ports[number]), seconds=20)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_of_a_cluster_only_what_the_forgetful_node_holds_is_closed(
    cluster: Cluster, nats: Store, clickhouse_url: str, tmp_path: Path
) -> None:
    async with Rig.over(f"nats://127.0.0.1:{nats.port}", cluster.url, clickhouse_url) as rig, rig.worker():
        accounts: dict[int, str] = {}
        while len(accounts) < len(cluster.nodes):
            account_id = ids.new_account_id()
            accounts[cluster.node_of(rediskeys.gate(ids.partition(account_id)))] = account_id
        for account_id in accounts.values():
            await rig.change(changed(account(account_id)))
            await rig.change(changed(credit(account_id, 10**12)))
            await rig.publish([recorded(account_id, tokens=1)])
        for account_id in accounts.values():
            await rig.settled(account_id, 1, ONE_TOKEN_NANOS)
        await asyncio.sleep(WRITTEN_S)
        shutil.copytree(tmp_path / "node-1", tmp_path / "copy")
        for account_id in accounts.values():
            await rig.publish([recorded(account_id, tokens=1_000)])
        for account_id in accounts.values():
            await rig.settled(account_id, 2, 1_001 * ONE_TOKEN_NANOS)
        gates = Gates(rig.redis)
        before = {number: await gates.state(ids.partition(account_id)) for number, account_id in accounts.items()}
        restart_with(cluster, 1, tmp_path / "copy", tmp_path / "node-1")
        await until(lambda: is_open(rig, accounts[1]))
        for number, account_id in accounts.items():
            await rig.settled(account_id, 2, 1_001 * ONE_TOKEN_NANOS)
            now = await gates.state(ids.partition(account_id))
            assert (now.run_id == before[number].run_id) is (number != 1)


async def test_a_young_installation_is_restored_from_its_log(rig: Rig) -> None:
    async with rig.worker():
        account_id, key_id, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        await rig.redis.flushall()
        await until(lambda: is_open(rig, account_id))
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
        assert isinstance(await admit(rig, account_id, key_id), Granted)


def trimmed(jetstream: JetStreamContext) -> Callable[[str], Awaitable[StreamInfo]]:
    """Information on streams of which the first message is gone."""
    read = jetstream.stream_info

    async def stream_info(name: str) -> StreamInfo:
        info = await read(name)
        info.state.first_seq += 1
        return info

    return stream_info


@pytest.mark.parametrize("why", ["redis would not remember its beginning", "the log has lost its beginning"])
async def test_a_redis_that_lost_everything_stays_closed_and_says_what_to_do(
    rig: Rig, why: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.worker():
        account_id, key_id, _ = await history(rig)
        await rig.settled(account_id, 20, 210 * ONE_TOKEN_NANOS)
    await rig.redis.flushall()
    one = rewinder(rig)
    if why.startswith("redis"):
        monkeypatch.setattr("services.accounting.rewinder.REMEMBERED_S", 0)
    else:
        monkeypatch.setattr(rig.jetstream, "stream_info", trimmed(rig.jetstream))
    for _ in range(3):
        assert await one.round() == 0
    assert caplog.text.count("services.accounting rebuild") == 1
    refused = await admit(rig, account_id, key_id)
    assert isinstance(refused, Refused) and refused.reason == "closed"


async def test_a_new_installation_is_opened(rig: Rig) -> None:
    redis = redisclient.connect(rig.config.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    assert not await Gates(redis).all_open()
    assert await rewinder(rig).round() == ids.PARTITIONS
    assert await Gates(redis).all_open()
    await redis.aclose()
