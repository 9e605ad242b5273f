"""START HERE. What happens to a batch of usage events, as a numbered story. Every step is a no-op for an event seen before.

1. **Price** it, from the book its version names. Pure. If it fails, no retry can help: the event is parked.
2. **Append** the rows to ClickHouse. If it fails, nothing has happened: the messages are delivered again. If we die after it,
   the rows stand, unpaid, until the messages are delivered again; appended twice they are still one row each.
3. **Settle** in Redis: one script an event takes the difference to what was settled before. If it fails in the middle, some
   events are settled; delivered again, those are duplicates to the script. If we die after it, all are.
4. **Acknowledge.** If it fails, everything is done again and changes nothing.

What is acknowledged is therefore in the archive and in the balance, once.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from libs.common import pricebook
from libs.common.balances import Settlement, SettleResult
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.pricing import FREE, Priced, Unpriced, price
from libs.common.usage import UsageUnreadable
from services.accounting.rows import Row, usage_row


class AccountMissing(Exception):
    """Redis does not know the account (yet, or any more). Try again later."""


class UsageLedger(Protocol):
    """Where rows go."""

    async def append_usage(self, rows: Sequence[Row]) -> None:
        """Append. Raises LedgerUnavailable."""


class Debits(Protocol):
    """Where balances live."""

    async def settle(self, settlement: Settlement) -> SettleResult:
        """Settle one event. Raises StoreUnavailable."""


class Poison(msgspec.Struct, frozen=True):
    """An event that no retry can fix, and why."""

    event: UsageRecorded
    reason: str


class PricedBatch(msgspec.Struct, frozen=True):
    """Step 1's result."""

    rows: list[Row]
    settlements: list[Settlement]
    poison: list[Poison]


def price_batch(events: Sequence[UsageRecorded]) -> PricedBatch:
    """Step 1. One bad event does not touch the others."""
    batch = PricedBatch([], [], [])
    for event in events:
        try:
            priced = price_event(event)
            row = usage_row(event, priced)
        except (Unpriced, UsageUnreadable, LookupError, ValueError) as error:
            batch.poison.append(Poison(event, f"{type(error).__name__}: {error}"))
            continue
        batch.rows.append(row)
        batch.settlements.append(Settlement(event.account_id, event.request_id, event.version, priced.total_nanos))
    return batch


def price_event(event: UsageRecorded) -> Priced:
    """What an event costs. Raises Unpriced, UsageUnreadable, LookupError (no such price book)."""
    if event.outcome == "free":
        return FREE
    return price(
        event.usage,
        book=pricebook.load(event.price_book_version),
        model_asked=event.model_asked,
        model_answered=event.model_answered,
        cache_ttl_1h=event.cache_ttl_1h,
        multiplier_ppm=event.multiplier_ppm,
        declined_models=event.declined_models,
    )


async def record_batch(batch: PricedBatch, ledger: UsageLedger, debits: Debits, metrics: Metrics) -> None:
    """Steps 2 and 3. Raises LedgerUnavailable, StoreUnavailable, AccountMissing: then the batch is to be repeated."""
    await ledger.append_usage(batch.rows)
    results = await asyncio.gather(*(debits.settle(settlement) for settlement in batch.settlements))
    metrics.add("relay_events_settled_total", amount=results.count("APPLIED"))
    metrics.add("relay_events_duplicate_total", amount=results.count("DUPLICATE"))
    if missing := results.count("MISSING"):
        raise AccountMissing(f"{missing} events of accounts that Redis does not know")
