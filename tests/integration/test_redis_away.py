"""A Redis that is killed, frozen, emptied of scripts or full of slow work: callers are told in time, and served again after."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from libs.common import ids, redisclient
from libs.common.balances import Balance, Balances, Settlement
from libs.common.directory import Directory
from libs.common.events import ControlChanged
from libs.common.leases import Admission, Leases
from libs.common.scripts import StoreUnavailable
from libs.common.upstreams import Upstreams
from libs.localstack.process import Process, free_port
from libs.localstack.stores import start_redis
from tests.integration.accounting_rig import until
from tests.unit.accounting.samples import account

pytestmark = [pytest.mark.alone, pytest.mark.anyio]

REFUSED_WITHIN_S: Final = 0.3
MARGIN_S: Final = 0.1
"""For a machine that does other things at the same time."""


ADMISSION = Admission(
    request_id=ids.new_request_id(),
    account_id="acct_1",
    key_id="key_1",
    address="0" * 32,
    models=(),
    input_tokens=1,
    hold_nanos=1,
    memo=b"{}",
)


class Server:
    """A Redis of this test's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self.process = self._started()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.stop()

    def start(self) -> None:
        self.process = self._started()

    def _started(self) -> Process:
        return start_redis(self._directory, self._directory / "logs", port=self.port)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    if running.process.is_running():
        running.signal(signal.SIGCONT)
    running.process.stop()


@pytest.fixture
async def redis(server: Server) -> AsyncIterator[Any]:
    client = redisclient.connect(f"redis://127.0.0.1:{server.port}/0")
    yield client
    await client.aclose()


async def refused(balances: Balances, leases: Leases, directory: Directory) -> float:
    """Every kind of call is refused; the longest wait, in seconds."""
    calls = [
        leases.admit(ADMISSION),
        leases.check("acct_1", "key_1", address="0" * 32),
        balances.read("acct_1"),
        balances.credit("acct_1", "cred_1", 1),
        directory.find_key("0" * 64),
    ]

    async def wait(call: object) -> float:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await call  # type: ignore[misc]
        return time.monotonic() - started

    return max(await asyncio.gather(*map(wait, calls)))


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
async def test_callers_are_told_in_time_and_served_again(server: Server, redis: Any, frozen: bool) -> None:
    balances = Balances(redis)
    directory = Directory(redis, balances, Upstreams(redis))
    entity = account(ids.new_account_id())
    await directory.apply(ControlChanged(entity=entity, actor="", reason="", at_ms=1), 1)
    assert await balances.credit(entity.id, "cred_1", 100) == "APPLIED"
    if frozen:
        server.signal(signal.SIGSTOP)
    else:
        server.kill()
    assert not await redisclient.answers(redis)
    waits = [await refused(balances, Leases(redis), directory) for _ in range(4)]
    assert sorted(waits)[1] < REFUSED_WITHIN_S + MARGIN_S, waits
    if frozen:
        server.signal(signal.SIGCONT)
    else:
        server.start()
    await until(lambda: redisclient.answers(redis))
    assert await balances.credit(entity.id, "cred_1", 100) == "DUPLICATE"
    assert await balances.settle(Settlement(entity.id, ids.new_request_id(), 3, 1)) == "APPLIED"
    assert await balances.read(entity.id) == Balance(99, 0, 1, 100)


async def test_a_large_batch_does_not_run_into_its_own_time_limit(server: Server) -> None:
    """40,000 events at once are more than a second of Redis's time; they travel in portions, each well within the limit."""
    redis = redisclient.connect(f"redis://127.0.0.1:{server.port}/0", try_seconds=0.25)
    balances = Balances(redis)
    directory = Directory(redis, balances, Upstreams(redis))
    entity = account(ids.new_account_id())
    await directory.apply(ControlChanged(entity=entity, actor="", reason="", at_ms=1), 1)
    settlements = [Settlement(entity.id, ids.new_request_id(), 3, 1) for _ in range(40_000)]
    results = await asyncio.gather(*(balances.settle(one) for one in settlements))
    assert set(results) <= {"APPLIED", "DUPLICATE"}
    assert await balances.read(entity.id) == Balance(-40_000, 0, 40_000, 0)
    await redis.aclose()
