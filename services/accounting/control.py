"""Control changes on their way to the archive and to Redis. Admin has applied them already, unless it died in between.

1. **Read** each change as rows. Pure; what cannot be read is parked after bounded tries.
2. **Archive** the changes: the audit log. Repeated, it is still one row each.
3. **Apply** them to Redis in stream order. Versions only move forward, and a credit is taken once, whoever brings it.
4. **Archive** the credits that were taken, so that the archive's credits are those of the balance.
5. **Acknowledge.** Whatever fails before it is done again and changes nothing twice.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from libs.common import failpoints, money
from libs.common.directory import ApplyResult
from libs.common.events import ControlChanged, Credit
from libs.common.metrics import Metrics
from libs.common.scripts import StoreRefused
from services.accounting.rows import Row, control_row, credit_row
from services.accounting.settlement import Patience


class ControlLedger(Protocol):
    """Where control rows go."""

    async def append_control(self, rows: Sequence[Row]) -> None:
        """Append to the audit log. Raises LedgerUnavailable."""

    async def append_credits(self, rows: Sequence[Row]) -> None:
        """Append credits that were taken. Raises LedgerUnavailable."""


class Applier(Protocol):
    """Where changes are applied."""

    async def apply(self, event: ControlChanged, version: int) -> ApplyResult:
        """Apply one change. Raises StoreUnavailable; StoreRefused if it concerns this change alone."""


class ControlBatch(msgspec.Struct, frozen=True):
    """The two places a change goes to."""

    ledger: ControlLedger
    directory: Applier


class Change(msgspec.Struct, frozen=True):
    """A change with its stream sequence, which is its version. `position` is where it stood in the batch."""

    position: int
    sequence: int
    event: ControlChanged
    sha256: str = ""
    """Of the message."""


class Unapplied(msgspec.Struct, frozen=True):
    """A change that could not be applied this time, and why."""

    position: int
    event: ControlChanged
    patience: Patience
    reason: str


class _Read(msgspec.Struct, frozen=True):
    change: Change
    row: Row
    credit_row: Row | None


async def apply_control(changes: Sequence[Change], targets: ControlBatch, metrics: Metrics) -> list[Unapplied]:
    """Steps 1 to 4. Returns what must be delivered again. Raises LedgerUnavailable, StoreUnavailable: then all must be."""
    readable, unapplied = _read(changes)
    await targets.ledger.append_control([one.row for one in readable])
    failpoints.reach("control_archived")
    taken: list[Row] = []
    for one in sorted(readable, key=lambda one: one.change.sequence):
        result = await _apply(one.change, targets.directory)
        metrics.add("relay_control_applied_total", result if isinstance(result, str) else "REFUSED")
        if trouble := _trouble(one.change, result):
            unapplied.append(trouble)
        elif one.credit_row is not None:
            taken.append(one.credit_row)
    failpoints.reach("control_applied")
    await targets.ledger.append_credits(taken)
    failpoints.reach("control_credited")
    return unapplied


def _read(changes: Sequence[Change]) -> tuple[list[_Read], list[Unapplied]]:
    readable, unapplied = [], []
    for change in changes:
        entity = change.event.entity
        try:
            taken = None
            if isinstance(entity, Credit):
                _check_amount(entity)
                taken = credit_row(entity, change.event.actor)
            readable.append(_Read(change, control_row(change.event, change.sequence, change.sha256), taken))
        except Exception as error:  # noqa: BLE001 - pure code: whatever it raises, it will raise again
            reason = f"{type(error).__name__}: {error}"
            unapplied.append(Unapplied(change.position, change.event, "poison", reason))
    return readable, unapplied


def _check_amount(credit: Credit) -> None:
    if not 0 < abs(credit.amount_nanos) <= money.AMOUNT_NANOS_MAX:
        raise ValueError(f"no amount of a credit: {credit.amount_nanos}")


async def _apply(change: Change, directory: Applier) -> ApplyResult | StoreRefused:
    try:
        return await directory.apply(change.event, change.sequence)
    except StoreRefused as error:
        return error


def _trouble(change: Change, result: ApplyResult | StoreRefused) -> Unapplied | None:
    match result:
        case StoreRefused():
            return Unapplied(change.position, change.event, "store", str(result))
        case "MISSING":
            reason = "the credit is for an account that Redis does not know"
            return Unapplied(change.position, change.event, "account", reason)
        case "OVER":
            reason = "the credit would lift the balance beyond what an account may hold"
            return Unapplied(change.position, change.event, "poison", reason)
        case "TAKEN":
            reason = "another price book stands under that version; publish it under a new one"
            return Unapplied(change.position, change.event, "poison", reason)
        case "UNSOUND":
            return Unapplied(change.position, change.event, "poison", "the price book cannot be read")
    return None
