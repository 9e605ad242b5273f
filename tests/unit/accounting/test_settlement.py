"""Settlement as a story that may be broken off anywhere and begun again: rows and balances agree, to the nano."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common import clock
from libs.common.balances import Settlement, SettleResult
from libs.common.events import Attempt, UsageRecorded
from libs.common.metrics import Metrics
from libs.common.scripts import StoreRefused, StoreUnavailable
from services.accounting.ledger import LedgerUnavailable
from services.accounting.rows import Row
from services.accounting.settlement import REMEMBERED_S, Unsettled, price_batch, settle_batch
from tests.contract.fakes import MemoryBalances, MemoryLedger
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, recorded, request_id_at, with_accounts

pytestmark = pytest.mark.anyio


class Rig:
    """Stores of memory, and a worker's step over them."""

    def __init__(self, *account_ids: str) -> None:
        self.balances: MemoryBalances = with_accounts(*(account_ids or ("acct_1",)))
        self.ledger = MemoryLedger()
        self.metrics = Metrics()

    async def settle(self, *events: UsageRecorded) -> list[Unsettled]:
        return await settle_batch(events, self.ledger, self.balances, self.metrics)

    def agree(self, account_id: str = "acct_1") -> int:
        """Rows and balance say the same; what they say."""
        account = self.balances.accounts[account_id]
        total = self.ledger.total(account_id)
        assert (account.balance, account.spent) == (-total, total)
        return total


async def test_an_event_is_archived_and_paid() -> None:
    rig = Rig()
    assert await rig.settle(recorded(tokens=7)) == []
    assert rig.agree() == 7 * ONE_TOKEN_NANOS
    assert rig.metrics.value("relay_events_settled_total") == 1


async def test_an_event_seen_again_changes_nothing() -> None:
    rig = Rig()
    event = recorded(tokens=7)
    await rig.settle(event, event)
    await rig.settle(event)
    assert rig.agree() == 7 * ONE_TOKEN_NANOS
    assert rig.metrics.value("relay_events_duplicate_total") == 2


@pytest.mark.parametrize("order", [(1, 3, 4), (4, 3, 1), (3, 1, 4), (3, 4, 3)])
async def test_a_higher_version_takes_the_difference(order: tuple[int, ...]) -> None:
    costs = {1: 50, 3: 7, 4: 20}
    rig = Rig()
    first = recorded()
    for version in order:
        usage = {"input_tokens": costs[version], "output_tokens": 0}
        await rig.settle(recorded(request_id=first.request_id, version=version, usage=usage))
    assert rig.agree() == costs[4] * ONE_TOKEN_NANOS


async def test_what_is_free_costs_nothing_and_has_its_row() -> None:
    rig = Rig()
    assert await rig.settle(recorded(outcome="free", usage={}, price_book_version="nobody's")) == []
    assert rig.agree() == 0
    assert len(rig.ledger.usage) == 1


POISON: list[dict[str, Any]] = [
    {"model_answered": "claude-unheard-of"},
    {"usage": {"input_tokens": -1}},
    {"usage": {"input_tokens": "many"}},
    {"usage": {"input_tokens": 10**18}},
    {"usage": {"iterations": [None]}},
    {"request_id": "msg_1"},
    {"request_id": "req_" + "f" * 32},
    {"version": 0},
    {"version": 256},
    {"status": -1},
    {"status": 70_000},
    {"tries": (Attempt(upstream_id="env", status=65_536),)},
    {"bytes_out": 2**63},
    {"first_byte_us": -5},
    {"multiplier_ppm": 2**32},
]


@pytest.mark.parametrize("changes", POISON, ids=str)
async def test_poison_does_not_touch_its_neighbours(changes: dict[str, Any]) -> None:
    rig = Rig()
    poison = recorded(**changes)
    (unsettled,) = await rig.settle(recorded(), poison, recorded())
    assert (unsettled.position, unsettled.event, unsettled.patience) == (1, poison, "poison")
    assert unsettled.reason
    assert rig.agree() == 2 * ONE_TOKEN_NANOS


@pytest.mark.parametrize("version", ["1999-01-01", "../secrets"])
async def test_an_unknown_price_book_is_waited_for(version: str) -> None:
    """A worker that is older than the gateway, or a Redis that has lost its books, is no fault of the event."""
    rig = Rig()
    (unsettled,) = await rig.settle(recorded(price_book_version=version), recorded())
    assert (unsettled.position, unsettled.patience) == (0, "book")
    assert rig.agree() == ONE_TOKEN_NANOS


async def test_an_unknown_account_keeps_only_its_own_event() -> None:
    rig = Rig("acct_1")
    (unsettled,) = await rig.settle(recorded("acct_1"), recorded("acct_2"))
    assert (unsettled.position, unsettled.patience) == (1, "account")
    assert rig.agree("acct_1") == ONE_TOKEN_NANOS


class Refusing(MemoryBalances):
    """Redis refuses one account."""

    async def settle(self, settlement: Settlement) -> SettleResult:
        if settlement.account_id == "acct_2":
            raise StoreRefused("WRONGTYPE")
        return await super().settle(settlement)


async def test_one_refused_call_keeps_only_its_own_event() -> None:
    rig = Rig()
    balances = Refusing()
    balances.accounts = rig.balances.accounts
    (unsettled,) = await settle_batch([recorded("acct_2"), recorded()], rig.ledger, balances, rig.metrics)
    assert (unsettled.position, unsettled.patience, unsettled.reason) == (0, "store", "WRONGTYPE")
    assert rig.balances.accounts["acct_1"].spent == ONE_TOKEN_NANOS


async def test_the_same_version_at_another_cost_is_an_alarm(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    event = recorded(tokens=1)
    await rig.settle(event)
    await rig.settle(recorded(request_id=event.request_id, tokens=2))
    assert f"{event.request_id} version 3 was settled before at another cost" in caplog.text


async def test_without_the_archive_nothing_is_paid() -> None:
    class Away(MemoryLedger):
        async def append_usage(self, rows: Sequence[Row], now_ms: int | None = None) -> None:
            raise LedgerUnavailable("away")

    rig = Rig()
    with pytest.raises(LedgerUnavailable):
        await settle_batch([recorded()], Away(), rig.balances, rig.metrics)
    assert rig.balances.accounts["acct_1"].spent == 0


async def test_what_redis_has_forgotten_is_asked_of_the_archive() -> None:
    """A correction of last month's request, whose version 3 Redis does not remember any more; then it comes again."""
    rig = Rig()
    then_ms = clock.unix_ms() - 2 * REMEMBERED_S * 1000
    first = recorded(request_id=request_id_at(then_ms), tokens=50)
    await rig.settle(first)
    rig.ledger = MemoryLedger()  # as it would be had those 6 days passed
    await rig.ledger.append_usage([entry.row for entry in price_batch([first])[0]], now_ms=then_ms)
    rig.balances.settled.clear()

    assert await rig.settle(first) == []
    assert rig.agree() == 50 * ONE_TOKEN_NANOS
    rig.balances.settled.clear()
    correction = recorded(request_id=first.request_id, version=4, tokens=20)
    for _ in range(2):
        await rig.settle(correction)
        assert rig.agree() == 20 * ONE_TOKEN_NANOS


async def test_an_old_event_that_was_archived_but_not_settled_is_settled() -> None:
    rig = Rig()
    old = recorded(request_id=request_id_at(clock.unix_ms() - 2 * REMEMBERED_S * 1000))
    await rig.ledger.append_usage([entry.row for entry in price_batch([old])[0]])  # and there the worker died
    await rig.settle(old)
    assert rig.agree() == ONE_TOKEN_NANOS


class Flaky:
    """Stores that fail when a script says so: before or after they did what they were asked."""

    def __init__(self, rig: Rig, script: list[str]) -> None:
        self._rig = rig
        self._script = script

    async def append_usage(self, rows: Sequence[Row]) -> None:
        said = self._script.pop() if self._script else "fine"
        if said != "before":
            await self._rig.ledger.append_usage(rows)
        if said != "fine":
            raise LedgerUnavailable(said)

    async def settled_before(
        self, settlements: Sequence[Settlement], recorded_before_ms: int
    ) -> dict[str, tuple[int, int]]:
        return await self._rig.ledger.settled_before(settlements, recorded_before_ms)

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[SettleResult | StoreRefused]:
        results: list[SettleResult | StoreRefused] = []
        for settlement in settlements:
            said = self._script.pop() if self._script else "fine"
            if said != "before":
                results += await self._rig.balances.settle_all([settlement])
            if said != "fine":
                raise StoreUnavailable(said)
        return results

    async def remember(self, settlement: Settlement) -> None:
        await self._rig.balances.remember(settlement)


drawn_events = st.tuples(st.integers(0, 4), st.integers(1, 5))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(drawn_events, min_size=1, max_size=5), max_size=6),
    st.lists(st.sampled_from(["fine", "fine", "before", "after"]), max_size=30),
)
def test_whatever_fails_and_however_it_is_delivered(batches: list[list[tuple[int, int]]], script: list[str]) -> None:
    """Batches of (request, version), with repetitions and in any order, each repeated until it goes through."""
    names = [recorded().request_id for _ in range(5)]

    def event(request: int, version: int) -> UsageRecorded:
        return recorded(request_id=names[request], version=version, tokens=1 + request * 7 + version * 3 % 5)

    async def run() -> None:
        rig = Rig()
        flaky = Flaky(rig, script)
        for batch in batches:
            while True:
                try:
                    events = [event(request, version) for request, version in batch]
                    assert await settle_batch(events, flaky, flaky, rig.metrics) == []
                    break
                except (LedgerUnavailable, StoreUnavailable):
                    continue
        newest: dict[int, int] = {}
        for request, version in (one for batch in batches for one in batch):
            newest[request] = max(newest.get(request, 0), version)
        wanted = sum(1 + request * 7 + version * 3 % 5 for request, version in newest.items())
        assert rig.agree() == wanted * ONE_TOKEN_NANOS

    asyncio.run(run())
