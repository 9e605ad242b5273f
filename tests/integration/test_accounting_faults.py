"""Each store taken away from running workers, killed or frozen, and given back: nothing is lost, nothing counted twice."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from libs.localstack.process import Process, free_port
from libs.localstack.stores import start_clickhouse, start_nats, start_redis
from tests.integration.accounting_rig import Rig, until
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, recorded

pytestmark = pytest.mark.anyio

MESSAGES: Final = 60
AWAY_S: Final = 0.5
STARTS: Final[dict[str, Callable[..., Process]]] = {
    "nats": start_nats,
    "redis": start_redis,
    "clickhouse": start_clickhouse,
}


class Store:
    """A store that can be taken away and given back with its data."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self.port = free_port()
        self._process = self._started()

    def take_away(self, how: signal.Signals) -> None:
        """kill -9 or standstill."""
        os.kill(self._process.pid, how)
        if how == signal.SIGKILL:
            self._process.stop()

    def give_back(self) -> None:
        """Start it again, or let it go on."""
        if self._process.is_running():
            os.kill(self._process.pid, signal.SIGCONT)
        else:
            self._process = self._started()

    def close(self) -> None:
        """End it."""
        self.give_back()
        self._process.stop()

    def _started(self) -> Process:
        return STARTS[self._name](self._directory, self._directory / "logs", port=self.port)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Store]]:
    """Stores of this module's own."""
    stores: dict[str, Store] = {}
    try:
        for name in STARTS:
            stores[name] = Store(name, tmp_path_factory.mktemp(name))
        yield stores
    finally:
        for store in stores.values():
            store.close()


@pytest.fixture
async def rig(own: dict[str, Store]) -> AsyncIterator[Rig]:
    nats, redis, clickhouse = (own[name].port for name in ("nats", "redis", "clickhouse"))
    urls = (f"nats://127.0.0.1:{nats}", f"redis://127.0.0.1:{redis}/0", f"http://127.0.0.1:{clickhouse}/relay")
    async with Rig.over(*urls) as made:
        yield made


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
@pytest.mark.parametrize("name", STARTS)
async def test_a_store_goes_and_comes_back(rig: Rig, own: dict[str, Store], name: str, how: signal.Signals) -> None:
    async with rig.worker() as ready, rig.worker():
        await rig.shorten_ack_wait()
        account_id = await rig.new_account()
        sent = [recorded(account_id, tokens=1 + number) for number in range(3 * MESSAGES)]

        async def publish() -> None:
            for first in range(0, len(sent), 3):
                await rig.publish(sent[first : first + 3])

        running = asyncio.ensure_future(publish())

        async def some_are_settled() -> bool:
            balance = await rig.balance(account_id)
            return balance is not None and balance.spent > 0

        await until(some_are_settled)
        own[name].take_away(how)
        await asyncio.sleep(AWAY_S)
        own[name].give_back()
        await running
        await rig.publish(sent[:3], again=True)
        await rig.settled(account_id, len(sent), sum(range(1, len(sent) + 1)) * ONE_TOKEN_NANOS)

        async def is_ready() -> bool:
            return ready()

        await until(is_ready)
