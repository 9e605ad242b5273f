"""Which hours are summed up, and what becomes of them when ClickHouse is away."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from libs.common import clock
from libs.common.metrics import Metrics
from services.accounting import rollups
from services.accounting.ledger import LedgerUnavailable
from services.accounting.rollups import Rollups

pytestmark = pytest.mark.anyio
HOUR_MS = 3_600_000


class Archive:
    """Notes which hours it is told to sum up."""

    def __init__(self, *late: tuple[str, int]) -> None:
        self.away = False
        self.late = late
        self.summed: list[tuple[str, int]] = []
        self.days: list[tuple[str, int]] = []

    async def run(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        if self.away:
            raise LedgerUnavailable("away")
        assert parameters is not None
        if "usage_by_day" in statement:
            self.days += zip(parameters["accounts"], (second // 86_400 for second in parameters["starts"]), strict=True)
        else:
            self.summed += zip(parameters["accounts"], (second // 3600 for second in parameters["starts"]), strict=True)

    async def query(self, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        if "usage_by_day" in statement:
            return []
        return self.late if parameters else [(datetime(2026, 11, 25, tzinfo=UTC), 1)]


async def test_an_hour_is_summed_up_once_however_many_rows_came() -> None:
    archive, metrics = Archive(), Metrics()
    hours = Rollups(archive, metrics, every_s=1)
    for minute in range(120):
        hours.touched("acct_1", minute * 60_000)
    assert await hours.flush() == 2
    assert archive.summed == [("acct_1", 0), ("acct_1", 1)]
    assert await hours.flush() == 0
    assert metrics.value("relay_rollups_written_total") == 2


async def test_a_day_is_summed_up_when_it_is_over() -> None:
    archive = Archive()
    hours = Rollups(archive, Metrics(), every_s=1)
    today = clock.unix_ms() // (24 * HOUR_MS)
    for day in (today - 1, today):
        for hour in range(24):
            hours.touched("acct_1", (day * 24 + hour) * HOUR_MS)
    await hours.flush()
    assert archive.days == [("acct_1", today - 1)]
    await hours.flush()
    assert len(archive.days) == 1


async def test_what_fails_is_kept() -> None:
    archive = Archive()
    hours = Rollups(archive, Metrics(), every_s=1)
    for number in range(50):
        hours.touched(f"acct_{number}", 0)
    archive.away = True
    with pytest.raises(LedgerUnavailable):
        await hours.flush()
    archive.away = False
    assert await hours.flush() == 50
    assert len(archive.summed) == len(set(archive.summed)) == 50


async def test_what_a_dead_worker_left_is_looked_for_once() -> None:
    archive = Archive(("acct_1", 7), ("acct_2", 8))
    hours = Rollups(archive, Metrics(), every_s=1)
    assert await hours.flush() == 2
    assert await hours.flush() == 0


async def test_more_hours_than_can_be_remembered_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "_DIRTY_MAX", 3)
    archive = Archive()
    hours = Rollups(archive, Metrics(), every_s=1)
    await hours.flush()
    archive.late = (("acct_9", 9),)
    for number in range(5):
        hours.touched("acct_1", number * HOUR_MS)
    assert await hours.flush() == 4
    assert ("acct_9", 9) in archive.summed


async def test_what_another_worker_left_is_looked_for_every_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive()
    hours = Rollups(archive, Metrics(), every_s=1)
    assert await hours.flush() == 0
    archive.late = (("acct_2", 7),)
    assert await hours.flush() == 0, "not at every turn"
    monkeypatch.setattr(rollups, "_SWEEP_S", 0.0)
    assert await hours.flush() == 1
    assert archive.summed == [("acct_2", 7)]
