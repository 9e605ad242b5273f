"""Changes of several entities on three NATS nodes: all of them or none, also while nodes are killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from libs.common import ids, streams, subjects
from libs.common.events import Account
from libs.localstack.cluster import start_nats_cluster
from libs.localstack.process import Process, free_port
from services.admin.control import By, Control
from services.admin.mirror import Mirror
from services.admin.problems import Problem
from tests.unit.accounting.samples import account
from tests.unit.accounting.test_control import Applied

pytestmark = pytest.mark.anyio
BY = By(actor="test", address="", reason="test")
BATCHES = 60


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[list[Process], str]]:
    ports, routes = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    processes = start_nats_cluster(tmp_path, tmp_path, ports=ports, routes=routes)
    try:
        yield processes, ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    finally:
        for process in processes:
            process.stop()


async def test_all_or_none_while_the_leader_is_killed(nodes: tuple[list[Process], str]) -> None:
    processes, url = nodes
    broker = await streams.connect(url, name="test")
    await streams.create(broker.jetstream(), replicas=3, bytes_max=2**28)
    control = Control(broker, Applied(), Mirror(broker))  # type: ignore[arg-type]
    made: list[tuple[Account, Account]] = []
    answered: set[str] = set()

    async def change() -> None:
        pair = account(ids.new_account_id()), account(ids.new_account_id())
        made.append(pair)
        try:
            await control.put_all([(one, None) for one in pair], by=BY)
            answered.add(pair[0].id)
        except Problem:
            await asyncio.sleep(0.1)  # it may have happened or not, but not by half

    try:
        async with asyncio.timeout(60):
            while len(answered) < BATCHES // 3:
                await change()
            cluster = (await broker.jetstream().stream_info(subjects.STREAM_CONTROL)).cluster
            assert cluster is not None and cluster.leader is not None
            os.kill(processes[int(cluster.leader.removeprefix("nats-")) - 1].pid, signal.SIGKILL)
            while len(answered) < BATCHES:
                await change()
        await _check(control, made, answered)
    finally:
        await streams.close(broker)


async def _check(control: Control, made: Sequence[tuple[Account, Account]], answered: set[str]) -> None:
    for one, other in made:
        found = [await _found(control, each) for each in (one, other)]
        assert found in ([True, True], [False, False])
        assert found[0] or one.id not in answered


async def _found(control: Control, wanted: Account) -> bool:
    for _ in range(50):
        try:
            found = await control.find(Account, wanted.id)
        except Problem:
            await asyncio.sleep(0.2)
            continue
        return found is not None and msgspec.json.encode(found.entity) == msgspec.json.encode(wanted)
    raise AssertionError("the log does not come back")
