"""Counts of refusals beside usage: they are archived, they hold up nobody, and what cannot be read is parked alone."""

from collections.abc import Sequence

import pytest
from nats.aio.msg import Msg

from libs.common import events, subjects
from services.accounting import refusals
from services.accounting.ledger import LedgerUnavailable
from services.accounting.rows import Row
from tests.contract.fakes import MemoryLedger
from tests.unit.accounting.samples import delivered, recorded, refused
from tests.unit.accounting.test_consumer import Rig, usage

pytestmark = pytest.mark.anyio


def told(
    rig: Rig, *counts: events.RefusalsCounted, payload: bytes = b"", sequence: int = 1, deliveries: int = 1
) -> Msg:
    sent = payload or events.encode_refusals(counts)
    subject = subjects.refused_subject(0)
    return delivered(rig.wire, sent, sequence=sequence, deliveries=deliveries, subject=subject)


class Full(MemoryLedger):
    """Takes usage, and no refusals."""

    async def append_refusals(self, rows: Sequence[Row]) -> None:
        raise LedgerUnavailable("no such table")


async def test_counts_become_rows_beside_usage() -> None:
    rig = Rig()
    paid = rig.message(usage(recorded()), sequence=2)
    assert await rig.process(told(rig, refused(refused=3), refused(reason="model")), paid) == ["ack", "ack"]
    assert sorted(count for count, _ in rig.ledger.refusals.values()) == [1, 3]
    assert rig.balances.accounts["acct_1"].spent == 3_000
    assert set(rig.marks.marks.values()) == {(2, 0)}  # of usage alone


async def test_told_again_they_count_once() -> None:
    rig = Rig()
    count = refused(refused=3)
    assert await rig.process(told(rig, count), told(rig, count, sequence=2)) == ["ack", "ack"]
    assert await rig.process(told(rig, refused(minute=count.minute, refused=2), sequence=3)) == ["ack"]
    assert [number for number, _ in rig.ledger.refusals.values()] == [3]


@pytest.mark.parametrize("payload", [b"\xff", b"{}", b"[" * 100_000, usage(recorded())])
async def test_poison_is_parked_alone(payload: bytes) -> None:
    rig = Rig()
    good, paid = told(rig, refused(), sequence=2), rig.message(usage(recorded()), sequence=3)
    assert await rig.process(told(rig, payload=payload), good, paid) == ["nak 2.0", "ack", "ack"]
    assert (len(rig.ledger.refusals), len(rig.ledger.usage), rig.parked) == (1, 1, [])
    assert await rig.process(told(rig, payload=payload, deliveries=5)) == ["ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, payload)]


async def test_a_count_that_cannot_be_is_parked_without_those_beside_it() -> None:
    rig, odd = Rig(), refused(refused=0)
    assert await rig.process(told(rig, refused(), odd, deliveries=5)) == ["ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, events.encode_refusals([odd]))]
    assert len(rig.ledger.refusals) == 1


async def test_counts_that_are_not_taken_wait_and_usage_does_not() -> None:
    rig = Rig()
    rig.ledger = Full()
    rig.consumer._handle._ledger = rig.ledger  # type: ignore[attr-defined]
    waiting, paid = told(rig, refused(), deliveries=99), rig.message(usage(recorded()), sequence=2)
    assert await rig.process(waiting, paid) == ["nak 60.0", "ack"]
    assert (rig.balances.accounts["acct_1"].spent, rig.parked) == (3_000, [])
    (trouble,) = (await refusals.archive({4: waiting.data}, rig.ledger))[4]
    assert (trouble.patience, trouble.payload) == ("store", waiting.data)
