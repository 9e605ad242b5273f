"""A price book published while requests run: from its time on every request costs what it says, and none before.

All that is checked is read from ledger rows: their time, their version, their usage, their amount.
"""

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from libs.common import clock, pricebook, pricing, redisclient, streams
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.events import PublishedBook
from libs.common.upstreams import Upstreams
from libs.localstack.stores import start_clickhouse, start_nats, start_redis
from services.admin.control import By, Control
from services.admin.mirror import Mirror
from tests.books import new_version, published
from tests.e2e.conftest import QUICK
from tests.e2e.relay import Gateway, Relay, running_relay
from tests.e2e.store import Store
from tests.e2e.waiting import wait_until

AHEAD_MS: Final = 3_000
LOOKS_S: Final = "0.5"
CALLERS: Final = 4
BODY: Final = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "How much is it?"}],
}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """One of its own: in no other test anything is to cost twice as much."""
    folder: Path = tmp_path_factory.mktemp("price-books")
    starts = {"redis": start_redis, "nats": start_nats, "clickhouse": start_clickhouse}
    own = {name: Store(start, folder / name) for name, start in starts.items()}
    settings = {
        "RELAY_REDIS_URL": f"redis://127.0.0.1:{own['redis'].port}/0",
        "RELAY_NATS_URL": f"nats://127.0.0.1:{own['nats'].port}",
        "RELAY_CLICKHOUSE_URL": f"http://127.0.0.1:{own['clickhouse'].port}/relay",
    }
    try:
        with running_relay(settings, folder, **QUICK, RELAY_PRICE_BOOK_SECONDS=LOOKS_S) as running:
            yield running
    finally:
        for store in own.values():
            store.close()


def publish(relay: Relay, book: PublishedBook) -> None:
    """As admin does."""

    async def put() -> None:
        broker = await streams.connect(relay.stores["RELAY_NATS_URL"], name="test")
        redis = redisclient.connect(relay.stores["RELAY_REDIS_URL"], try_seconds=redisclient.TRY_S_UNHURRIED)
        control = Control(broker, Directory(redis, Balances(redis), Upstreams(redis)), Mirror(broker))
        await control.put(book, over=None, by=By(actor="ann", address="", reason="a dearer list"))
        assert await control.find(PublishedBook, book.id) is not None
        await redis.aclose()
        await streams.close(broker)

    asyncio.run(put())


class Callers:
    """Send one request after the other, to all gateways in turn, until they are told to stop."""

    def __init__(self, gateways: list[Gateway], key: str) -> None:
        self._gateways = gateways
        self._key = key
        self._stopping = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> int:
        """How many requests there were; all were answered."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert set(self.statuses) == {200}
        return len(self.statuses)

    def _call(self) -> None:
        with httpx2.Client(headers={"x-api-key": self._key}, timeout=30) as client:
            while not self._stopping.wait(0.01):
                gateway = self._gateways[len(self.statuses) % len(self._gateways)]
                self.statuses.append(client.post(f"{gateway.url}/v1/messages", json=BODY).status_code)


def time_ms(row: dict[str, Any]) -> int:
    return round(datetime.fromisoformat(row["time"]).timestamp() * 1000)


def cost_nanos(row: dict[str, Any], book: pricebook.PriceBook) -> int:
    """Of a row's usage by a book, as anybody can compute it."""
    return pricing.price(
        row["usage"],
        book=book,
        model_asked=row["model_asked"],
        model_answered=row["model_answered"],
        cache_ttl_1h=False,
        multiplier_ppm=1_000_000,
    ).total_nanos


def test_a_published_price_counts_from_its_time_on_and_never_before(relay: Relay) -> None:
    account, key = relay.new_account()
    with relay.second_gateway(relay.simulator_url, RELAY_PRICE_BOOK_SECONDS=LOOKS_S) as second:
        callers = Callers([relay.gateway, second], key)
        try:
            wait_until(lambda: len(callers.statuses) > 20, "requests run")
            book = published(new_version(), clock.unix_ms() + AHEAD_MS)
            publish(relay, book)
            same_time_but_later = published(new_version(), book.effective_at_ms, times=3)
            wait_until(lambda: clock.unix_ms() > book.effective_at_ms + 1_000, "it has taken effect")
        finally:
            count = callers.stop()
        assert "heard of only now" not in second.service.log_text + relay.gateway.service.log_text
    rows = relay.rows(account, count)
    dearer = pricebook.parse(book.text.encode())
    for row in rows:
        counts = time_ms(row) >= book.effective_at_ms
        assert row["price_book_version"] == (book.version if counts else pricebook.CURRENT_VERSION), row
        assert row["total_nanos"] == cost_nanos(row, dearer if counts else pricebook.load()), row
    after = sum(row["price_book_version"] == book.version for row in rows)
    assert 20 < after < count - 20
    cheap, dear = rows[-1], rows[0]
    assert cost_nanos(dear, dearer) == 2 * cost_nanos(dear, pricebook.load())
    assert cheap["price_book_version"] == pricebook.CURRENT_VERSION
    assert same_time_but_later.id > book.id
