"""Which book a request goes by, and what a gateway does that does not know."""

import asyncio
import contextlib
import logging
from typing import Any, cast

import pytest

from libs.common import clock, ids, pricebook, runtime
from libs.common.books import Books, Found
from libs.common.errors import Overloaded
from libs.common.pricebook import PriceBook, Timeline
from libs.common.scripts import StoreUnavailable
from services.gateway.prices import Prices

pytestmark = pytest.mark.anyio
SHIPPED = pricebook.load()
OTHER = PriceBook(version="other", rows=SHIPPED.rows, web_search=1)


class Store:
    """Redis, as far as prices are concerned: its gates, and its books."""

    def __init__(self) -> None:
        self.timeline = Timeline(SHIPPED)
        self.new: list[Found] = []
        self.opened = True
        self.looks = 0
        self.fails: Exception | None = None

    def at(self, time_ms: int) -> PriceBook:
        return self.timeline.at(time_ms)

    async def all_open(self) -> bool:
        return self.opened

    async def refresh(self) -> list[Found]:
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        for one in self.new:
            self.timeline.add(one.effective_at_ms, one.id, one.book)
        found, self.new = self.new, []
        return found

    def prices(self, every_s: float = 5.0) -> Prices:
        return Prices(cast("Books", self), cast("Any", self), every_s=every_s)


async def test_a_request_goes_by_the_time_in_its_id() -> None:
    store = Store()
    prices = store.prices()
    request_id = ids.new_request_id()
    store.new = [Found(ids.id_time_ms(request_id) + 1, "book_1", OTHER)]
    await prices.look()
    assert prices.of_request(request_id) is SHIPPED
    later = f"req_{ids.id_time_ms(request_id) + 1:012x}{request_id[16:]}"
    assert prices.of_request(later) is OTHER
    assert prices.of_request(request_id) is SHIPPED


async def test_what_is_not_known_is_refused() -> None:
    store = Store()
    prices = store.prices()
    with pytest.raises(Overloaded, match="prices"):
        prices.of_request(ids.new_request_id())
    store.fails = StoreUnavailable("away")
    await prices.look()
    assert not prices.is_known
    store.fails, store.opened = None, False  # it has lost something: books, perhaps
    await prices.look()
    assert not prices.is_known and store.looks == 1
    store.opened = True
    await prices.look()
    assert prices.of_request(ids.new_request_id()) is SHIPPED


async def test_what_was_known_stays_so_while_redis_is_away_or_closed() -> None:
    store = Store()
    prices = store.prices()
    store.new = [Found(0, "book_1", OTHER)]
    await prices.look()
    store.fails, store.opened = StoreUnavailable("away"), False
    await prices.look()
    assert prices.of_request(ids.new_request_id()) is OTHER
    store.fails = None
    store.new = [Found(1, "book_2", SHIPPED)]
    await prices.look()
    assert prices.of_request(ids.new_request_id()) is SHIPPED


async def test_a_book_that_was_heard_of_too_late_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = Store()
    prices = store.prices()
    store.new = [Found(1, "book_1", OTHER)]
    await prices.look()  # at the start, every book is old
    store.new = [Found(clock.unix_ms() + 60_000, "book_2", OTHER)]
    await prices.look()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]
    store.new = [Found(clock.unix_ms() - 1, "book_3", OTHER)]
    await prices.look()
    assert "heard of only now" in caplog.text


async def test_it_looks_again_whatever_happens() -> None:
    store = Store()
    prices = store.prices(every_s=0.001)
    prices.is_known = True
    store.fails = ValueError("nobody foresaw it")
    task = runtime.spawn(prices.run(), name="test")
    async with asyncio.timeout(5):
        while store.looks < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
