"""The archive of memory and the real one: what is appended twice or replaced reads the same from both."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from libs.common import clock, ids
from libs.common.balances import Settlement
from libs.common.events import Attempt, UsageRecorded
from libs.common.pricing import price_event
from services.accounting.ledger import Ledger, LedgerUnavailable
from services.accounting.migrate import Layout, migrate
from services.accounting.rows import USAGE_COLUMNS, Row, control_row, credit_row, refusal_row, usage_row
from tests.contract.fakes import MemoryLedger
from tests.unit.accounting.samples import account, changed, credit, recorded, refused, request_id_at

pytestmark = pytest.mark.anyio

DAY_MS: Final = 86_400_000


@pytest.fixture
async def ledger(clickhouse_url: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(clickhouse_url)
    await migrate(opened)
    yield opened
    await opened.close()


def row(event: UsageRecorded) -> Row:
    return usage_row(event, price_event(event))


async def stored(ledger: Ledger, account_id: str) -> dict[str, dict[str, Any]]:
    statement = f"SELECT {', '.join(USAGE_COLUMNS)} FROM usage FINAL WHERE account_id = '{account_id}'"
    rows = [dict(zip(USAGE_COLUMNS, found, strict=True)) for found in await ledger.query(statement)]
    return {found["request_id"]: found for found in rows}


async def test_migrations_may_be_repeated(ledger: Ledger) -> None:
    assert await migrate(ledger) == []
    await asyncio.gather(*(migrate(ledger, Layout(detail_days=days)) for days in (10, 20)))
    await migrate(ledger)
    assert await ledger.answers()


async def test_every_field_comes_back_as_it_went(ledger: Ledger) -> None:
    event = recorded(
        ids.new_account_id(),
        usage={"input_tokens": 2, "output_tokens": 3, "odd": "é\\'\"\n\t\0😀"},
        outcome="free",
        declined_models=("claude-opus-4-6", "é'\\"),
        version=255,
        status=65_535,
        member_id="memb_1",
        tries=(
            Attempt(upstream_id="env", status=529, duration_us=2**63 - 1),
            Attempt(upstream_id="upst_1", status=0, error="connect"),
        ),
        multiplier_ppm=2**32 - 1,
        duration_us=2**63 - 1,
        bytes_out=2**53 + 1,
        stop_reason="\\N",
        stream=True,
    )
    other = recorded(event.account_id, tokens=3)
    await ledger.append_usage([row(event), row(other)])
    found = await stored(ledger, event.account_id)
    for sent in (event, other):
        wanted = dict(zip(USAGE_COLUMNS, row(sent), strict=True))
        wanted["time"] = wanted["time"].replace(tzinfo=None)  # the client gives UTC without saying so
        assert found[sent.request_id] == wanted


async def test_repetitions_and_versions_read_as_from_memory(ledger: Ledger) -> None:
    """Regrouped, reordered, over months: the same request has the same time, so it stays in one partition."""
    draw, memory, account_id = random.Random(3), MemoryLedger(), ids.new_account_id()
    names = [request_id_at(clock.unix_ms() - draw.randrange(400) * DAY_MS) for _ in range(40)]
    events = [
        recorded(account_id, request_id=name, version=version, tokens=draw.randint(1, 10**6))
        for name in names
        for version in draw.sample([1, 2, 3, 4, 9], draw.randint(1, 4))
    ]
    deliveries = events * 2
    draw.shuffle(deliveries)
    while deliveries:
        rows = [row(event) for event in deliveries[: draw.randint(1, 20)]]
        deliveries = deliveries[len(rows) :]
        await ledger.append_usage(rows)
        await memory.append_usage(rows)
    found = await stored(ledger, account_id)
    assert {name: (one["version"], one["total_nanos"]) for name, one in found.items()} == {
        name: (one["version"], one["total_nanos"]) for name, one in memory.usage.items()
    }
    assert sum(one["total_nanos"] for one in found.values()) == memory.total(account_id)
    await ledger.run("OPTIMIZE TABLE usage FINAL")
    assert await stored(ledger, account_id) == found


async def test_rows_of_more_months_than_one_insert_may_touch(ledger: Ledger) -> None:
    account_id = ids.new_account_id()
    months = [datetime(2090 + month // 12, 1 + month % 12, 15, tzinfo=UTC) for month in range(105)]
    events = [recorded(account_id, request_id=request_id_at(int(time.timestamp() * 1000))) for time in months]
    await ledger.append_usage([row(event) for event in events])
    assert len(await stored(ledger, account_id)) == 105
    await ledger.run("ALTER TABLE usage " + ", ".join(f"DROP PARTITION {month:%Y%m}" for month in months))


async def test_what_was_settled_before(ledger: Ledger) -> None:
    memory, account_id = MemoryLedger(), ids.new_account_id()
    old = recorded(account_id, request_id=request_id_at(clock.unix_ms() - 9 * DAY_MS), version=3, tokens=7)
    newer = recorded(account_id, request_id=old.request_id, version=4, tokens=9)
    fresh = recorded(account_id)
    rows = [row(old), row(newer), row(fresh)]
    await ledger.append_usage(rows)
    await memory.append_usage(rows)
    asked = [
        Settlement(account_id, one.request_id, one.version, 0) for one in (old, newer, fresh, recorded(account_id))
    ]
    for before_ms in (clock.unix_ms() + DAY_MS, clock.unix_ms() - DAY_MS):
        assert await ledger.settled_before(asked, before_ms) == await memory.settled_before(asked, before_ms)
    assert (await ledger.settled_before(asked, clock.unix_ms() + DAY_MS))[old.request_id] == (4, 27_000)


async def test_many_old_events_of_many_accounts_are_asked_for_in_portions(ledger: Ledger) -> None:
    """Seen: two hundred at once were a query that the engine could not read, and the batch came again for ever."""
    old_ms = clock.unix_ms() - 9 * DAY_MS
    events = [recorded(ids.new_account_id(), request_id=request_id_at(old_ms + n), version=3) for n in range(400)]
    await ledger.append_usage([row(event) for event in events])
    asked = [Settlement(one.account_id, one.request_id, 3, 0) for one in events]
    found = await ledger.settled_before(asked, clock.unix_ms() + DAY_MS)
    assert set(found) == {one.request_id for one in events}


async def test_control_and_credits_appended_twice_are_there_once(ledger: Ledger) -> None:
    account_id = ids.new_account_id()
    entry = credit(account_id, -(2**62))
    events = [changed(account(account_id)), changed(entry)]
    for _ in range(2):
        await ledger.append_control([control_row(event, number) for number, event in enumerate(events, 1)])
        await ledger.append_credits([credit_row(entry, "operator")])
    where = f"FINAL WHERE account_id = '{account_id}'"
    assert list(await ledger.query(f"SELECT count() FROM control {where}")) == [(2,)]
    assert list(await ledger.query(f"SELECT amount_nanos, actor FROM credits {where}")) == [(-(2**62), "operator")]


async def test_sums_of_money_do_not_wrap(ledger: Ledger) -> None:
    ((total,),) = await ledger.query(
        "SELECT sum(toInt128(x)) FROM (SELECT toInt64(9223372036854775807) AS x FROM numbers(3))"
    )
    assert total == 3 * (2**63 - 1)


async def test_an_archive_that_cannot_be_asked(clickhouse_url: str) -> None:
    with pytest.raises(LedgerUnavailable):
        await Ledger.open("http://127.0.0.1:1/relay")
    ledger = await Ledger.open(clickhouse_url)
    with pytest.raises(LedgerUnavailable, match="UNKNOWN_TABLE"):
        await ledger.query("SELECT 1 FROM no_such_table")
    with pytest.raises(LedgerUnavailable):
        await ledger.run("NONSENSE")
    await ledger.append_usage([])
    await ledger.close()


async def test_counts_of_refusals_only_grow(ledger: Ledger) -> None:
    """Whatever comes twice, late, or from a gateway that was started anew."""
    draw, memory, account_id = random.Random(5), MemoryLedger(), ids.new_account_id()
    names = [(f"key_{number % 3}", f"g{number % 2}", number) for number in range(12)]
    told = [
        refused(account_id, key_id=key_id, gateway_id=gateway_id, minute=29_000_000 + number % 4, refused=count)
        for key_id, gateway_id, number in names
        for count in draw.sample(range(1, 10**6), 3)
    ]
    deliveries = told * 2
    draw.shuffle(deliveries)
    while deliveries:
        rows = [refusal_row(one) for one in deliveries[:5]]
        deliveries = deliveries[5:]
        await ledger.append_refusals(rows)
        await memory.append_refusals(rows)
    statement = (
        "SELECT account_id, minute, key_id, reason, gateway_id, refused, member_id FROM refusals FINAL "
        f"WHERE account_id = '{account_id}'"
    )
    found = {
        (account, minute.replace(tzinfo=UTC), *name): (count, member)
        for account, minute, *name, count, member in await ledger.query(statement)
    }
    assert found == memory.refusals
    assert len(found) == 12
