"""Scripts on a real Redis Cluster and behind a real Sentinel: many partitions at once, a node that dies, a failover."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from redis import Redis

from libs.common import ids, redisclient
from libs.common.balances import Balance, Balances, Settlement
from libs.common.directory import Directory
from libs.common.events import Account, ControlChanged
from libs.common.scripts import StoreUnavailable
from libs.common.upstreams import Upstreams
from libs.localstack.cluster import cluster_ports, start_redis_cluster
from libs.localstack.process import Process, free_port, port_answers
from libs.localstack.stores import redis_server, start_redis
from tests.integration.accounting_rig import until

pytestmark = [
    pytest.mark.alone,
    pytest.mark.anyio,
    # redis-py drops the connections of a node it takes out of its map without closing them: the collector does, and complains
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
REFUSED_WITHIN_S: Final = 0.3
MARGIN_S: Final = 0.4
"""For a machine that does something else at the same time."""


@pytest.fixture(autouse=True)
def collected_here() -> Iterator[None]:
    """What is dropped here is collected here, and troubles no other test."""
    yield
    gc.collect()


class Cluster:
    def __init__(self, directory: Path) -> None:
        self.ports = cluster_ports(3)
        self.nodes = start_redis_cluster(directory, directory / "logs", ports=self.ports)
        self.url = "redis-cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def node_of(self, key: str) -> int:
        """Which node serves a key."""
        with Redis(port=self.ports[0]) as node:
            slot = int(node.execute_command("CLUSTER", "KEYSLOT", key))
        return min(slot // -(-16_384 // 3), 2)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(tmp_path)
    yield running
    for node in running.nodes:
        if node.is_running():
            os.kill(node.pid, signal.SIGCONT)
        node.stop()


async def funded(url: str, count: int) -> list[str]:
    """Accounts with a balance of 100, all over the partitions. Made without haste."""
    redis = redisclient.connect(url, try_seconds=redisclient.TRY_S_UNHURRIED)
    balances = Balances(redis)
    directory = Directory(redis, balances, Upstreams(redis))
    accounts = [ids.new_account_id() for _ in range(count)]
    for number, account_id in enumerate(accounts):
        entity = Account(id=account_id, name="", created_at_ms=1)
        await directory.apply(ControlChanged(entity=entity, actor="", reason="", at_ms=1), number + 1)
    await asyncio.gather(*(balances.credit(one, "cred_1", 100) for one in accounts))
    await redis.aclose()
    return accounts


async def test_accounts_of_all_partitions_at_once(cluster: Cluster) -> None:
    redis = redisclient.connect(cluster.url, try_seconds=redisclient.TRY_S_UNHURRIED)
    balances = Balances(redis)
    accounts = await funded(cluster.url, 100)
    events = [Settlement(account, ids.new_request_id(), 3, 1) for account in accounts for _ in range(10)]
    assert set(await asyncio.gather(*(balances.settle(event) for event in events))) == {"APPLIED"}
    assert set(await asyncio.gather(*(balances.settle(event) for event in events))) == {"DUPLICATE"}
    for account in accounts:
        assert await balances.read(account) == Balance(90, 0, 10, 100)
    await redis.aclose()


async def test_events_of_one_account_travel_together(cluster: Cluster) -> None:
    """All keys of a script are in one slot, whatever keys and members its events are of; nodes that know no script learn it."""
    accounts = await funded(cluster.url, 8)
    redis = redisclient.connect(cluster.url, try_seconds=redisclient.TRY_S_UNHURRIED)
    balances = Balances(redis)
    events = [
        Settlement(account, ids.new_request_id(), 1, 1, f"key_{number % 3}", f"mem_{number % 2}" if number % 5 else "")
        for number in range(9)
        for account in accounts
    ]
    assert await balances.settle_all(events) == ["APPLIED"] * len(events)
    for port in cluster.ports:
        with Redis(port=port) as node:
            node.script_flush()
    assert await balances.settle_all(events) == ["DUPLICATE"] * len(events)
    assert {await balances.read(account) for account in accounts} == {Balance(91, 0, 9, 100)}
    await redis.aclose()


async def test_scripts_that_one_node_has_lost_are_told_to_it_again(cluster: Cluster) -> None:
    redis = redisclient.connect(cluster.url, try_seconds=redisclient.TRY_S_UNHURRIED)
    balances = Balances(redis)
    accounts = await funded(cluster.url, 30)
    with Redis(port=cluster.ports[1]) as node:
        node.script_flush()
    events = [Settlement(account, ids.new_request_id(), 3, 1) for account in accounts]
    assert set(await asyncio.gather(*(balances.settle(event) for event in events))) == {"APPLIED"}
    assert {await balances.read(account) for account in accounts} == {Balance(99, 0, 1, 100)}
    await redis.aclose()


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
async def test_a_node_that_is_gone_takes_only_its_own_accounts_with_it(cluster: Cluster, frozen: bool) -> None:
    redis = redisclient.connect(cluster.url)
    balances = Balances(redis)
    accounts = await funded(cluster.url, 60)
    gone = cluster.nodes[1]
    os.kill(gone.pid, signal.SIGSTOP if frozen else signal.SIGKILL)
    events = [Settlement(account, ids.new_request_id(), 3, 1) for account in accounts]
    waits: list[float] = []
    settled: set[str] = set()
    for _ in range(3):  # the client may drop connections to all nodes when it learns that one is gone: once
        started = time.monotonic()
        results = await asyncio.gather(*(balances.settle(event) for event in events), return_exceptions=True)
        waits.append(time.monotonic() - started)
        settled |= {account for account, result in zip(accounts, results, strict=True) if isinstance(result, str)}
    assert sorted(waits)[1] < REFUSED_WITHIN_S + MARGIN_S, waits
    assert {type(result) for result in results if not isinstance(result, str)} == {StoreUnavailable}
    for account in accounts:
        lost = cluster.node_of(f"{{p{ids.partition(account):02d}}}") == 1
        assert (account in settled) is not lost
    if frozen:
        os.kill(gone.pid, signal.SIGCONT)

        async def all_settled() -> bool:
            found = await asyncio.gather(*(balances.settle(event) for event in events), return_exceptions=True)
            return not any(isinstance(one, BaseException) for one in found)

        await until(all_settled)
        assert {await balances.read(account) for account in accounts} == {Balance(99, 0, 1, 100)}
    await redis.aclose()


class Watched:
    """A master with a replica and a Sentinel."""

    def __init__(self, directory: Path) -> None:
        self.port, self.replica_port, self.sentinel_port = free_port(), free_port(), free_port()
        logs = directory / "logs"
        self.master = start_redis(directory / "master", logs, port=self.port)
        self.replica = start_redis(directory / "replica", logs, port=self.replica_port)
        with Redis(port=self.replica_port) as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", self.port)
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {self.sentinel_port}\nbind 127.0.0.1\ndir {directory}\nsentinel monitor relay 127.0.0.1 {self.port} 1\n"
            "sentinel down-after-milliseconds relay 500\nsentinel failover-timeout relay 3000\n"
        )
        command = [redis_server(), str(config), "--sentinel"]
        self.sentinel = Process.start("sentinel", command, log=logs / "sentinel.log")
        self.sentinel.wait_until(port_answers(self.sentinel_port), seconds=10)
        self.sentinel.wait_until(self._replica_is_known, seconds=20)

    def _replica_is_known(self) -> bool:
        with Redis(port=self.sentinel_port) as sentinel:
            return len(sentinel.execute_command("SENTINEL", "REPLICAS", "relay")) == 1


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    running = Watched(tmp_path)
    yield running
    for process in (running.sentinel, running.replica, running.master):
        process.stop()


async def test_after_a_failover_calls_go_to_the_new_master(watched: Watched) -> None:
    url = f"redis-sentinel://127.0.0.1:{watched.sentinel_port}/relay/0"
    redis = redisclient.connect(url)
    balances = Balances(redis)
    (account,) = await funded(url, 1)
    with Redis(port=watched.port) as master:
        assert master.execute_command("WAIT", 1, 5000) == 1
    os.kill(watched.master.pid, signal.SIGKILL)
    event = Settlement(account, ids.new_request_id(), 3, 1)

    async def settled() -> bool:
        try:
            return await balances.settle(event) in ("APPLIED", "DUPLICATE")
        except StoreUnavailable:
            return False

    await until(settled)
    assert await balances.read(account) == Balance(99, 0, 1, 100)
    with Redis(port=watched.replica_port) as replica:
        assert replica.info("replication")["role"] == "master"
    await redis.aclose()
