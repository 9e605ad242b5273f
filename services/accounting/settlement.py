"""START HERE. What happens to a batch of usage events, as a numbered story. Every step is a no-op for an event seen before.

1. **Price** it, from the book its version names. Pure: who calls has learned the books of the batch (`Books`), from Redis if need
   be. What cannot be priced is tried again and parked after bounded tries; what names a book nobody here knows waits for a day
   (a newer worker has it, or Redis has lost it and is rebuilt). The events beside it go on.
2. **Remind**: Redis remembers a settled event for three days. For an older one the archive is asked, and Redis told what was
   settled before, so that a correction or a late delivery takes the difference only. If it fails, nothing has happened.
3. **Append** the rows to ClickHouse. If it fails, nothing has happened: the messages are delivered again. If we die after it,
   the rows stand, unpaid, until the messages are delivered again; appended twice they are still one row each.
4. **Settle** in Redis: a script takes the difference to what was settled before, for some events of one account at once, all of
   them or none. If it fails in the middle, some events are settled; delivered again, those are duplicates to the script. If we
   die after it, all are. An event whose account Redis does not know keeps its own message waiting, and no other.
5. **Acknowledge.** If it fails, everything is done again and changes nothing.

What is acknowledged is therefore in the archive and in the balance, once, or parked.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Final, Literal, Protocol

import msgspec

from libs.common import clock, failpoints, ids, pricebook, rediskeys
from libs.common.balances import Settlement, SettleResult
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.pricing import price_event
from libs.common.scripts import StoreRefused
from services.accounting.rows import Row, usage_row

_log: Final = logging.getLogger("relay.settlement")
REMEMBERED_S: Final = rediskeys.SETTLED_KEPT_S - 3600
"""An event older than this is looked up in the archive: an hour less than Redis keeps it, for clocks that differ."""

Patience = Literal["poison", "book", "account", "store"]
"""Why an event waits: it cannot be read or priced, nobody here knows its price book, Redis does not know its account, or Redis
refuses it alone. How long: parking.py."""


class UsageLedger(Protocol):
    """Where rows go."""

    async def append_usage(self, rows: Sequence[Row]) -> None:
        """Append. Raises LedgerUnavailable."""

    async def settled_before(
        self, settlements: Sequence[Settlement], recorded_before_ms: int
    ) -> dict[str, tuple[int, int]]:
        """Request id → (version, total) of what was archived before that time. Raises LedgerUnavailable."""


class Debits(Protocol):
    """Where balances live."""

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[SettleResult | StoreRefused]:
        """What became of each: StoreRefused concerns that event alone. Raises StoreUnavailable."""

    async def remember(self, settlement: Settlement) -> None:
        """Take note of what was settled, unless something is noted already. Raises StoreUnavailable."""


class Books(Protocol):
    """Where published price books are."""

    async def learn(self, versions: Iterable[str]) -> None:
        """Make those known to `pricebook.load` that are not, if there are such. Raises StoreUnavailable."""


class Entry(msgspec.Struct, frozen=True):
    """A priced event. `position` is where it stood in the batch."""

    position: int
    event: UsageRecorded
    row: Row
    settlement: Settlement


class Unsettled(msgspec.Struct, frozen=True):
    """An event that could not be settled this time, and why."""

    position: int
    event: UsageRecorded
    patience: Patience
    reason: str


async def settle_batch(
    events: Sequence[UsageRecorded], ledger: UsageLedger, debits: Debits, metrics: Metrics
) -> list[Unsettled]:
    """Steps 1 to 4. Returns what must be delivered again. Raises LedgerUnavailable, StoreUnavailable: then all must be."""
    entries, unsettled = price_batch(events)
    failpoints.reach("priced")
    await _remind(entries, ledger, debits)
    failpoints.reach("reminded")
    await ledger.append_usage([entry.row for entry in entries])
    failpoints.reach("appended")
    unsettled += await _settle(entries, debits, metrics)
    failpoints.reach("settled")
    return unsettled


async def settle_again(
    events: Sequence[UsageRecorded], ledger: UsageLedger, debits: Debits, metrics: Metrics
) -> list[Unsettled]:
    """Steps 1, 2 and 4, for events that are in the archive or will be delivered again. Raises as `settle_batch` does."""
    entries, unsettled = price_batch(events)
    await _remind(entries, ledger, debits)
    return unsettled + await _settle(entries, debits, metrics)


def price_batch(events: Sequence[UsageRecorded]) -> tuple[list[Entry], list[Unsettled]]:
    """Step 1. One bad event does not touch the others."""
    entries, unsettled = [], []
    for position, event in enumerate(events):
        try:
            priced = price_event(event)
            row = usage_row(event, priced)
        except Exception as error:  # noqa: BLE001 - pure code: whatever it raises, it will raise again
            patience: Patience = "poison" if pricebook.is_known(event.price_book_version) else "book"
            unsettled.append(Unsettled(position, event, patience, f"{type(error).__name__}: {error}"))
            continue
        settlement = Settlement(
            event.account_id, event.request_id, event.version, priced.total_nanos, event.key_id, event.member_id
        )
        entries.append(Entry(position, event, row, settlement))
    return entries, unsettled


async def _remind(entries: Sequence[Entry], ledger: UsageLedger, debits: Debits) -> None:
    horizon_ms = clock.unix_ms() - REMEMBERED_S * 1000
    old = [entry.settlement for entry in entries if ids.id_time_ms(entry.settlement.request_id) < horizon_ms]
    if not old:
        return
    archived = await ledger.settled_before(old, horizon_ms)
    for settlement in {one.request_id: one for one in old}.values():
        if found := archived.get(settlement.request_id):
            version, cost_nanos = found
            _log.warning(
                "%s is older than Redis's memory; archived as version %d long ago", settlement.request_id, version
            )
            await debits.remember(msgspec.structs.replace(settlement, version=version, cost_nanos=cost_nanos))


async def _settle(entries: Sequence[Entry], debits: Debits, metrics: Metrics) -> list[Unsettled]:
    results = await debits.settle_all([entry.settlement for entry in entries])
    metrics.add("relay_events_settled_total", amount=results.count("APPLIED"))
    metrics.add("relay_events_duplicate_total", amount=results.count("DUPLICATE") + results.count("DIVERGED"))
    unsettled = []
    for entry, result in zip(entries, results, strict=True):
        match result:
            case StoreRefused():
                unsettled.append(Unsettled(entry.position, entry.event, "store", str(result)))
            case "MISSING":
                reason = f"Redis does not know account {entry.event.account_id}"
                unsettled.append(Unsettled(entry.position, entry.event, "account", reason))
            case "DIVERGED":
                name = f"{entry.event.request_id} version {entry.event.version}"
                _log.error("%s was settled before at another cost; the archive now shows this one", name)
    return unsettled
