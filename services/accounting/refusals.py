"""Counts of refused requests, from the log to the archive. No money hangs on them, so they keep nothing waiting that costs money.

A row is made of the message alone and replaces an earlier one of the same gateway and minute: delivered twice, it counts once.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from libs.common import events
from services.accounting.ledger import LedgerUnavailable
from services.accounting.parking import Trouble
from services.accounting.rows import Row, refusal_row

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class RefusalsLedger(Protocol):
    """Where rows go."""

    async def append_refusals(self, rows: Sequence[Row]) -> None:
        """Append. Raises LedgerUnavailable."""


async def archive(payloads: Mapping[int, bytes], ledger: RefusalsLedger) -> dict[int, list[Trouble]]:
    """Append what can be read; by position, what keeps a message from being acknowledged.

    While the archive does not take them, these messages alone come again, for as long as that lasts.
    """
    troubles: dict[int, list[Trouble]] = {}
    rows: list[Row] = []
    for position, payload in payloads.items():
        try:
            counts = events.decode_refusals(payload)
        except _UNREADABLE as error:
            troubles[position] = [Trouble(payload, "poison", f"refusals cannot be decoded: {error}")]
            continue
        for count in counts:
            try:
                rows.append(refusal_row(count))
            except ValueError as error:
                trouble = Trouble(events.encode_refusals([count]), "poison", f"refusals: {error}")
                troubles.setdefault(position, []).append(trouble)
    try:
        await ledger.append_refusals(rows)
    except LedgerUnavailable as error:
        return {position: [Trouble(payload, "store", f"refusals: {error}")] for position, payload in payloads.items()}
    return troubles
