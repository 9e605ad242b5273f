"""Control changes on their way to the archive and to Redis. Admin has applied them already, unless it died in between."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from libs.common.balances import CreditResult
from libs.common.events import ControlChanged, Credit
from libs.common.metrics import Metrics
from services.accounting.rows import Row, control_row, credit_row
from services.accounting.settlement import AccountMissing


class ControlLedger(Protocol):
    """Where control rows go."""

    async def append_control(self, rows: Sequence[Row], credit_rows: Sequence[Row]) -> None:
        """Append. Raises LedgerUnavailable."""


class Applier(Protocol):
    """Where changes are applied."""

    async def apply(self, event: ControlChanged, version: int) -> CreditResult:
        """Apply one change. Raises StoreUnavailable."""


class ControlBatch(msgspec.Struct, frozen=True):
    """The two places a change goes to."""

    ledger: ControlLedger
    directory: Applier


async def apply_control(
    changes: Sequence[tuple[int, ControlChanged]], targets: ControlBatch, metrics: Metrics
) -> list[ControlChanged]:
    """Archive and apply changes, each with its stream sequence. Returns the credits that no retry can apply.

    Raises LedgerUnavailable, StoreUnavailable, AccountMissing: then all is to be repeated, which changes nothing twice.
    """
    credit_rows = [credit_row(event.entity, event.actor) for _, event in changes if isinstance(event.entity, Credit)]
    await targets.ledger.append_control([control_row(event, sequence) for sequence, event in changes], credit_rows)
    hopeless = []
    for sequence, event in sorted(changes, key=lambda change: change[0]):
        result = await targets.directory.apply(event, sequence)
        if result == "MISSING":
            raise AccountMissing(f"credit {event.entity.id} is for an account that Redis does not know")
        if result == "OVER":
            hopeless.append(event)
        metrics.add("relay_control_applied_total", result)
    return hopeless
