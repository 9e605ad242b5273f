"""Statements month after month: in odd time zones, with rows on the edge and rows that were corrected."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from libs.common import money
from libs.common.events import Correction
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import Admin
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, changed, credit, recorded, request_id_at

pytestmark = pytest.mark.anyio
YEAR = 2026


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made, made.worker():
        yield made


@pytest.mark.parametrize("zone", ["Pacific/Chatham", "Pacific/Marquesas", "America/New_York", "UTC"])
async def test_each_month_begins_where_the_last_one_ended(rig: Rig, zone: str) -> None:
    async with Admin.over(rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url) as admin:
        account_id = await admin.new_account(None)
        await admin.done("PATCH", f"/accounts/{account_id}", json={"time_zone": zone})
        edges = [round(datetime(YEAR, n, 1, tzinfo=ZoneInfo(zone)).timestamp() * 1000) for n in range(3, 13)]
        sent = [recorded(account_id, 10**n, request_id=request_id_at(at)) for n, at in enumerate(edges[:6])]
        late = [recorded(account_id, 7, request_id=request_id_at(at - 1)) for at in edges[:6]]
        corrects = Correction(version=3, total_nanos=7 * ONE_TOKEN_NANOS, reason="r", actor="a")
        again = recorded(account_id, 5, request_id=late[2].request_id, version=4, corrects=corrects)
        for event in (*sent, *late, again, late[2]):
            await rig.publish([event], again=True)
        for number, at in enumerate((edges[3] - 1, edges[3])):
            await rig.change(changed(credit(account_id, 10**12 + number, created_at_ms=at)))
        total = sum(10**n for n in range(6)) + 5 * 7 + 5

        async def settled() -> bool:
            statement = f"SELECT count() FROM credits FINAL WHERE account_id = '{account_id}'"
            credits_ = (await rig.ledger.query(statement))[0][0]
            return (await rig.archived(account_id), credits_) == ((12, total * ONE_TOKEN_NANOS), 2)

        await until(settled)
        closing = None
        for number in range(2, 12):
            rows = await statement(admin, account_id, f"{YEAR}-{number:02d}")
            amounts = [money.parse_usd(row["amount_usd"]) for row in rows]
            assert rows[0]["entry"] == "opening" and rows[-1]["entry"] == "closing"
            assert sum(amounts[:-1]) == amounts[-1]
            assert closing in (None, amounts[0])
            closing = amounts[-1]
            used = sum(amount for row, amount in zip(rows, amounts, strict=True) if row["entry"] == "usage")
            given = sum(amount for row, amount in zip(rows, amounts, strict=True) if row["entry"] == "credit")
            assert given == {5: 10**12, 6: 10**12 + 1}.get(number, 0)
            asked = [0, *(10**n for n in range(6)), 0, 0, 0][number - 2] + [7, 7, 5, 7, 7, 7, 0, 0, 0, 0][number - 2]
            assert used == -asked * ONE_TOKEN_NANOS, number


async def statement(admin: Admin, account_id: str, month: str) -> list[dict[str, str]]:
    answer = await admin.send("GET", f"/accounts/{account_id}/statements/{month}")
    return list(csv.DictReader(io.StringIO(answer.text)))
