"""Hourly sums equal the rows, whatever was delivered twice, corrected, regrouped or summed up by two workers at once."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common import clock, ids
from libs.common.events import Correction, UsageRecorded
from libs.common.metrics import Metrics
from services.accounting import rollups
from services.accounting.app import bootstrap
from services.accounting.ledger import Ledger, LedgerUnavailable
from services.accounting.rollups import Rollups
from services.accounting.settlement import price_batch
from tests.integration.accounting_rig import Rig
from tests.unit.accounting.samples import recorded, request_id_at

pytestmark = pytest.mark.anyio
HOUR_MS = 3_600_000
START_MS = 1_790_000_000_000
GROUPS = """
SELECT key_id, member_id, model_answered, outcome, client, toUnixTimestamp(toStartOfHour(time, 'UTC')), count(),
  countIf(status = 429), countIf(first_byte_us > 0), sum(toInt128(total_nanos)),
  sum(arraySum((class, quantity) -> if(class = 'input', quantity, 0), line_classes, line_quantities)),
  sum(arraySum((class, quantity) -> if(class = 'output', quantity, 0), line_classes, line_quantities))
FROM usage FINAL WHERE account_id = {account:String} GROUP BY ALL ORDER BY ALL
"""
ROLLED = """
SELECT key_id, member_id, model, outcome, client, toUnixTimestamp(hour), number, limited, with_first_byte, total, input, output
FROM usage_by_hour FINAL
ARRAY JOIN key_ids AS key_id, member_ids AS member_id, models AS model, outcomes AS outcome, clients AS client,
  requests AS number, rate_limited AS limited, first_bytes AS with_first_byte,
  total_nanos AS total, input_tokens AS input, output_tokens AS output
WHERE account_id = {account:String} ORDER BY ALL
"""
DAYS = """
SELECT toUnixTimestamp(day), model, outcome, client, a, b, c, d, e, f, g FROM usage_by_day FINAL
ARRAY JOIN models AS model, outcomes AS outcome, clients AS client, requests AS a, errors AS b, rate_limited AS c,
  total_nanos AS d, output_tokens AS e, first_byte_us AS f, first_bytes AS g
WHERE account_id = {account:String} ORDER BY ALL
"""
DAYS_OF_ROWS = """
SELECT toUnixTimestamp(toStartOfDay(time, 'UTC')), model_answered, outcome, client, count(), countIf(status >= 400 OR status = 0),
  countIf(status = 429), sum(toInt128(total_nanos)),
  sum(arraySum((class, quantity) -> if(class = 'output', quantity, 0), line_classes, line_quantities)),
  sum(first_byte_us), countIf(first_byte_us > 0)
FROM usage FINAL WHERE account_id = {account:String} GROUP BY 1, 2, 3, 4 ORDER BY ALL
"""
NAIVE_TABLE = """
CREATE TABLE IF NOT EXISTS naive_hours (account_id String, hour DateTime('UTC'), total Int128)
ENGINE = SummingMergeTree ORDER BY (account_id, hour)
"""
NAIVE_VIEW = """
CREATE MATERIALIZED VIEW IF NOT EXISTS naive TO naive_hours AS
SELECT account_id, toStartOfHour(time) AS hour, sum(toInt128(total_nanos)) AS total FROM usage GROUP BY account_id, hour
"""


class Dying:
    """A ledger that is away after so many statements."""

    def __init__(self, ledger: Ledger, statements: int) -> None:
        self._ledger, self._left, self.ran = ledger, statements, 0
        self.query = ledger.query

    async def run(self, statement: str, parameters: dict[str, Any] | None = None) -> None:
        if self.ran == self._left:
            raise LedgerUnavailable("away")
        self.ran += 1
        await self._ledger.run(statement, parameters)


@pytest.fixture
async def ledger(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Ledger]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig:
        await bootstrap(rig.config)
        yield rig.ledger


def some_event(account_id: str, chance: random.Random) -> UsageRecorded:
    return recorded(
        account_id,
        request_id=request_id_at(START_MS + chance.randrange(3 * HOUR_MS)),
        tokens=chance.randrange(1, 10**6),
        usage={"input_tokens": chance.randrange(10**6), "output_tokens": chance.randrange(10**5)},
        key_id=chance.choice(["key_1", "key_2"]),
        member_id=chance.choice(["", "memb_1"]),
        model_answered=chance.choice(["claude-sonnet-4-6", "claude-haiku-4-5"]),
        outcome=chance.choice(["expired", "partial", "measured"]),
        client=chance.choice(["", "claude-code"]),
        status=chance.choice([200, 429, 500, 0]),
        first_byte_us=chance.choice([0, 250_000]),
        version=chance.randint(1, 3),
    )


def newer(event: UsageRecorded, chance: random.Random) -> UsageRecorded:
    """A later version of it, in which anything may be otherwise."""
    corrects = Correction(version=event.version, total_nanos=1, reason="test", actor="test")
    other = some_event(event.account_id, chance)
    version = event.version + 1
    return recorded(
        event.account_id,
        request_id=event.request_id,
        usage=other.usage,
        key_id=event.key_id,
        model_answered=other.model_answered,
        outcome="measured",
        version=version,
        corrects=corrects if version > 3 else None,
    )


async def deliver(ledger: Ledger, hours: Rollups, batch: list[UsageRecorded]) -> None:
    entries, unsettled = price_batch(batch)
    assert not unsettled
    await ledger.append_usage([entry.row for entry in entries])
    for event in batch:
        hours.touched(event.account_id, ids.id_time_ms(event.request_id))


async def same(ledger: Ledger, account_id: str) -> list[Any]:
    rows = [tuple(row) for row in await ledger.query(GROUPS, {"account": account_id})]
    rolled = [tuple(row) for row in await ledger.query(ROLLED, {"account": account_id})]
    assert rolled == rows
    days = [[tuple(row) for row in await ledger.query(text, {"account": account_id})] for text in (DAYS, DAYS_OF_ROWS)]
    assert days[0] == [day for day in days[1] if day[0] < clock.unix_ms() // 86_400_000 * 86_400]
    return rows


@pytest.mark.parametrize("seed", range(2))
async def test_sums_are_sums_of_rows_and_not_of_deliveries(ledger: Ledger, seed: int) -> None:
    chance, account_id = random.Random(seed), ids.new_account_id()
    await ledger.run(NAIVE_TABLE)
    await ledger.run(NAIVE_VIEW)
    two = [Rollups(ledger, Metrics(), every_s=1) for _ in range(2)]
    known = [some_event(account_id, chance) for _ in range(60)]
    for _ in range(8):
        known += [newer(chance.choice(known), chance) for _ in range(15)]
        batch = chance.sample(
            known, chance.randint(1, len(known))
        )  # some for the first time, some again, in any grouping
        await deliver(ledger, chance.choice(two), batch)
        if chance.random() < 0.5:
            await asyncio.gather(*(one.flush() for one in two))
        if chance.random() < 0.2:
            await ledger.run("OPTIMIZE TABLE usage FINAL")
            await ledger.run("OPTIMIZE TABLE usage_by_hour FINAL")
    await asyncio.gather(*(one.flush() for one in two))
    rows = await same(ledger, account_id)
    assert len(rows) > 5
    ((naive,),) = await ledger.query(
        "SELECT sum(total) FROM naive_hours WHERE account_id = {a:String}", {"a": account_id}
    )
    assert int(naive) != sum(row[9] for row in rows)  # what it would be if deliveries were added up
    await ledger.run("DROP VIEW naive")


async def test_hours_a_dead_worker_had_in_hand_are_found_by_the_next(ledger: Ledger) -> None:
    chance, account_id = random.Random(9), ids.new_account_id()
    dead = Rollups(ledger, Metrics(), every_s=1)
    await deliver(ledger, dead, [some_event(account_id, chance) for _ in range(50)])
    await Rollups(ledger, Metrics(), every_s=1).flush()
    assert await same(ledger, account_id)


async def test_hours_a_dead_worker_had_in_hand_are_found_by_one_that_goes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id, chance = ids.new_account_id(), random.Random(3)
    living, dead = (Rollups(ledger, Metrics(), every_s=1) for _ in range(2))
    await living.flush()
    await deliver(ledger, dead, [some_event(account_id, chance) for _ in range(20)])
    await deliver(ledger, living, [some_event(account_id, chance) for _ in range(3)])
    await living.flush()
    monkeypatch.setattr(rollups, "_SWEEP_S", 0.0)
    await living.flush()
    assert await same(ledger, account_id)
    assert await living.flush() == 0, "what is summed up is left alone"


async def test_rows_from_before_are_all_made_anew_in_pages(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that ends in the middle begins again; what it finds done it passes over."""
    chance, accounts = random.Random(4), [ids.new_account_id() for _ in range(5)]
    idle = Rollups(ledger, Metrics(), every_s=1)
    for account_id in accounts:
        await deliver(ledger, idle, [some_event(account_id, chance) for _ in range(40)])
    await ledger.run("TRUNCATE TABLE usage_by_hour")
    await ledger.run("TRUNCATE TABLE usage_by_day")
    monkeypatch.setattr(rollups, "_PAGE_HOURS", 4)
    dying = Dying(ledger, statements=2)
    with pytest.raises(LedgerUnavailable):
        await Rollups(dying, Metrics(), every_s=1).flush()
    ((done,),) = await ledger.query("SELECT count() FROM usage_by_hour")
    assert done
    whole = Dying(ledger, statements=10**9)
    await Rollups(whole, Metrics(), every_s=1).flush()
    for account_id in accounts:
        assert await same(ledger, account_id)
    assert whole.ran > 4


async def test_a_worker_sums_up_what_it_settles(nats_url: str, redis_url: str, clickhouse_url: str) -> None:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig:
        account_id = await rig.new_account()
        async with rig.worker():
            for tokens in range(1, 11):
                await rig.publish([recorded(account_id, tokens)])
            await rig.settled(account_id, 10, 55 * 3_000)
        assert await same(rig.ledger, account_id)
