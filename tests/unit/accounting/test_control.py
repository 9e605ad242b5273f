"""Control changes: archived, applied in order, credits taken once; one bad change does not touch the others."""

from typing import Any

import pytest

from libs.common import money
from libs.common.directory import ApplyResult
from libs.common.events import Account, ApiKey, ControlChanged, Credit, PublishedBook
from libs.common.metrics import Metrics
from libs.common.scripts import StoreRefused, StoreUnavailable
from services.accounting.control import Change, ControlBatch, Unapplied, apply_control
from tests.contract.fakes import MemoryBalances, MemoryLedger
from tests.unit.accounting.samples import account, changed, credit

pytestmark = pytest.mark.anyio


class Applied:
    """A directory over balances of memory, that notes the order of what it applied."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.balances = MemoryBalances()
        self.sequences: list[int] = []
        self.fails = fails
        self.books: list[ApplyResult] = []
        """What is answered to price books."""

    async def apply(self, event: ControlChanged, version: int) -> ApplyResult:
        self.sequences.append(version)
        if self.fails is not None:
            raise self.fails
        match event.entity:
            case Account() as entity:
                return (
                    "APPLIED"
                    if self.balances.put_account(entity.id, version, {"status": entity.status})
                    else "DUPLICATE"
                )
            case ApiKey() as key:
                self.balances.put_key(key.account_id, key.id, version, key.status)
                return "APPLIED"
            case PublishedBook():
                return self.books.pop(0)
            case Credit() as entry:
                return await self.balances.credit(entry.account_id, entry.id, entry.amount_nanos)
        raise NotImplementedError


class Rig:
    def __init__(self, fails: Exception | None = None) -> None:
        self.ledger = MemoryLedger()
        self.directory = Applied(fails)

    async def apply(self, *changes: tuple[int, ControlChanged]) -> list[Unapplied]:
        numbered = [Change(position, sequence, event) for position, (sequence, event) in enumerate(changes)]
        return await apply_control(numbered, ControlBatch(self.ledger, self.directory), Metrics())

    def balance(self) -> int:
        """The balance, which is the sum of the archived credits."""
        balance = self.directory.balances.accounts["acct_1"].balance
        assert balance == sum(row[3] for row in self.ledger.credits.values())
        return balance


async def test_changes_are_applied_in_the_order_of_the_stream() -> None:
    rig = Rig()
    entry = credit(amount_nanos=5)
    assert await rig.apply((9, changed(entry)), (7, changed(account()))) == []
    assert rig.directory.sequences == [7, 9]
    assert set(rig.ledger.control) == {7, 9}
    assert rig.balance() == 5


async def test_a_change_seen_again_changes_nothing() -> None:
    rig = Rig()
    old, new, entry = changed(account(status="disabled")), changed(account()), changed(credit(amount_nanos=5))
    for _ in range(2):
        assert await rig.apply((1, old), (3, new), (4, entry)) == []
    await rig.apply((1, old))
    assert rig.directory.balances.accounts["acct_1"].fields == {"status": "active"}
    assert rig.balance() == 5


async def test_a_credit_without_its_account_waits_alone() -> None:
    rig = Rig()
    (waits,) = await rig.apply((1, changed(credit("acct_2"))), (2, changed(account())), (3, changed(credit())))
    assert (waits.position, waits.patience) == (0, "account")
    assert rig.balance() == 10**9
    assert set(rig.ledger.control) == {1, 2, 3}


async def test_a_credit_beyond_what_an_account_may_hold_is_no_credit() -> None:
    rig = Rig()
    full = changed(credit(amount_nanos=money.AMOUNT_NANOS_MAX))
    (over,) = await rig.apply((1, changed(account())), (2, full), (3, changed(credit(amount_nanos=1))))
    assert (over.position, over.patience) == (2, "poison")
    assert rig.balance() == money.AMOUNT_NANOS_MAX


BAD: list[tuple[Any, dict[str, int]]] = [
    (account("acct_2"), {"at_ms": 2**70}),
    (account("acct_2"), {"at_ms": -1}),
    (credit(created_at_ms=0), {}),
    (credit(amount_nanos=0), {}),
    (credit(amount_nanos=money.AMOUNT_NANOS_MAX + 1), {}),
    (credit(amount_nanos=-(2**64)), {}),
]


@pytest.mark.parametrize(("entity", "changes"), BAD, ids=lambda one: type(one).__name__)
async def test_a_change_that_cannot_be_read_waits_alone(entity: Any, changes: dict[str, int]) -> None:
    rig = Rig()
    (waits,) = await rig.apply((1, changed(account())), (2, changed(entity, **changes)), (3, changed(credit())))
    assert (waits.position, waits.patience) == (1, "poison")
    assert rig.directory.sequences == [1, 3]
    assert rig.balance() == 10**9


@pytest.mark.parametrize(("result", "reason"), [("TAKEN", "under a new one"), ("UNSOUND", "cannot be read")])
async def test_a_price_book_that_does_not_count_is_told(result: ApplyResult, reason: str) -> None:
    rig = Rig()
    rig.directory.books = [result, "APPLIED", "DUPLICATE"]
    book = PublishedBook(id="book_1", version="2026-12-01", effective_at_ms=5, text="{}", created_at_ms=1)
    (waits,) = await rig.apply(*((sequence, changed(book)) for sequence in (1, 2, 3)))
    assert (waits.position, waits.patience) == (0, "poison") and reason in waits.reason
    assert set(rig.ledger.control) == {1, 2, 3}


async def test_a_change_that_redis_refuses_waits_alone() -> None:
    waiting = await Rig(StoreRefused("WRONGTYPE")).apply((1, changed(account())), (2, changed(credit())))
    assert [(one.position, one.patience, one.reason) for one in waiting] == [
        (0, "store", "WRONGTYPE"),
        (1, "store", "WRONGTYPE"),
    ]


async def test_without_redis_no_credit_is_archived() -> None:
    rig = Rig(StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        await rig.apply((1, changed(credit())))
    assert not rig.ledger.credits
    assert set(rig.ledger.control) == {1}
