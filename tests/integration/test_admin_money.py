"""Credits, promotions that end, redeem codes, statements: entries that add up."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from libs.common import clock, ids, money
from libs.common.leases import Admission, Granted, Leases
from services.admin.ledger import Ledger, Row
from services.admin.promotions_end import PromotionsEnd
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import LOCALHOST, Admin
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, recorded

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made, made.worker():
        yield made


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    async with Admin.over(rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url) as made:
        yield made


def key(text: str) -> dict[bytes, bytes]:
    return {b"idempotency-key": text.encode()}


async def member_token(admin: Admin, account_id: str, role: str = "billing") -> str:
    body = {"name": "t", "role": role, "scopes": ["money:read", "money:write", "usage:read"]}
    return str((await admin.done("POST", f"/accounts/{account_id}/tokens", json=body))["token"])


async def test_the_same_key_is_the_same_credit_and_another_body_is_refused(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    path, body = f"/accounts/{account_id}/credits", {"amount_usd": "5", "reason": "top-up"}
    answers = [await admin.done("POST", path, headers=key("k1"), json=body) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    refused = await admin.refused("POST", path, 422, headers=key("k1"), json=body | {"amount_usd": "6"})
    assert "another request" in refused
    assert (await admin.balance(account_id))["granted_usd"] == "5.00"
    together = [admin.done("POST", path, headers=key("k2"), json=body) for _ in range(20)]
    assert len({one["id"] for one in await asyncio.gather(*together)}) == 1
    assert (await admin.balance(account_id))["granted_usd"] == "10.00"


async def test_credits_are_listed_with_who_made_them(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    path = f"/accounts/{account_id}/credits"
    for amount in ("1", "2", "-0.5"):
        await admin.done("POST", path, json={"amount_usd": amount, "reason": f"of {amount}"})

    async def all_there() -> bool:
        return len((await admin.done("GET", path))["data"]) == 3

    await until(all_there)
    first = await admin.done("GET", f"{path}?limit=2")
    second = await admin.done("GET", f"{path}?limit=2&cursor={first['next_cursor']}")
    entries = first["data"] + second["data"]
    assert [one["amount_usd"] for one in entries] == ["1.00", "2.00", "-0.50"]
    assert [one["kind"] for one in entries] == ["credit", "credit", "adjustment"]
    assert {one["actor"] for one in entries} == {"admin-token"} and second["next_cursor"] is None


async def test_a_code_is_redeemed_once_by_an_account_and_never_beyond_its_uses(admin: Admin) -> None:
    body = {"count": 2, "amount_usd": "3", "uses_max": 5, "reason": "spring"}
    made = await admin.done("POST", "/codes", headers=key(ids.uuid7_hex()), json=body)
    code = made["codes"][0]
    accounts = [await admin.new_account(None) for _ in range(8)]
    tokens = [await member_token(admin, one) for one in accounts]
    written = code.lower().replace("-", " ")

    async def redeem(account_id: str, token: str) -> tuple[int, dict[str, Any]]:
        answer = await admin.send("POST", f"/accounts/{account_id}/redemptions", token=token, json={"code": written})
        return answer.status_code, answer.json()

    found = await asyncio.gather(*(redeem(*one) for one in zip(accounts, tokens, strict=True)))
    assert sorted(status for status, _ in found) == [201] * 5 + [404] * 3
    for (status, answer), account_id, token in zip(found, accounts, tokens, strict=True):
        assert (await admin.balance(account_id))["granted_usd"] == ("3.00" if status == 201 else "0.00")
        if status == 201:
            assert (await redeem(account_id, token)) == (201, answer)
            assert (await admin.balance(account_id))["granted_usd"] == "3.00"


async def test_codes_are_shown_once_and_can_be_revoked(admin: Admin) -> None:
    name = ids.uuid7_hex()
    body = {"count": 3, "amount_usd": "1", "reason": "r"}
    made = await admin.done("POST", "/codes", headers=key(name), json=body)
    assert await admin.done("POST", "/codes", headers=key(name), json=body) == made
    await admin.refused("POST", "/codes", 422, headers=key(name), json=body | {"amount_usd": "2"})

    async def listed() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await admin.done("GET", f"/codes?limit=1000{cursor}")
            rows += [one for one in page["data"] if one["batch_id"] == made["batch_id"]]
            if page["next_cursor"] is None:
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    async def there() -> bool:
        return len(await listed()) == 3

    await until(there)
    shown = str(await listed())
    assert not [code for code in made["codes"] if code in shown]
    one = next(row for row in await listed() if made["codes"][0].startswith(row["hint"][:-1]))
    await admin.done("DELETE", f"/codes/{one['id']}")
    account_id = await admin.new_account(None)
    token = await member_token(admin, account_id)
    path = f"/accounts/{account_id}/redemptions"
    await admin.refused("POST", path, 404, token=token, json={"code": made["codes"][0]})
    for _ in range(9):
        await admin.refused("POST", path, 404, token=token, json={"code": "nothing"})
    await admin.refused("POST", path, 429, token=token, json={"code": made["codes"][1]})


async def test_a_code_that_was_redeemed_before_pays_for_no_more_guesses(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    token, path = await member_token(admin, account_id), f"/accounts/{account_id}/redemptions"
    (code,) = (await admin.done("POST", "/codes", json={"count": 1, "amount_usd": "1", "reason": "r"}))["codes"]
    await admin.done("POST", path, token=token, json={"code": code})
    for _ in range(3):
        for _ in range(3):
            last = await admin.send("POST", path, token=token, json={"code": "nothing"})
        await admin.send("POST", path, token=token, json={"code": code})
    assert last.status_code == 429


async def test_what_is_left_of_a_promotion_is_taken_back_once(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account("10")
    ends = clock.utc_now() + timedelta(seconds=1.5)
    body = {"amount_usd": "1", "reason": "trial", "kind": "promotion", "expires_at": ends.isoformat()}
    promotion = await admin.done("POST", f"/accounts/{account_id}/credits", json=body)
    assert promotion["kind"] == "promotion" and promotion["expires_at"]
    await rig.publish([recorded(account_id)])
    spent = ONE_TOKEN_NANOS

    async def settled() -> bool:
        balance = await admin.balance(account_id)
        return balance["spent_usd"] == money.format_usd(spent) and await rig.archived(account_id) == (1, spent)

    await until(settled)
    await asyncio.sleep(max((ends - clock.utc_now()).total_seconds(), 0) + 0.05)
    context = admin.context
    await until(lambda: _archived_credits(rig, account_id, 2))
    for _ in range(2):
        await PromotionsEnd(context, settled_after_ms=0).run()
    left = money.format_usd(10**9 - spent)
    granted = money.format_usd(11 * 10**9 - (10**9 - spent))
    assert (await admin.balance(account_id))["granted_usd"] == granted
    await until(lambda: _archived_credits(rig, account_id, 3))
    entries = (await admin.done("GET", f"/accounts/{account_id}/credits"))["data"]
    assert (entries[-1]["kind"], entries[-1]["amount_usd"]) == ("expiry", f"-{left}")
    assert (entries[-1]["about_id"], entries[-1]["actor"]) == (promotion["id"], "relay")


async def test_a_promotion_waits_for_what_began_before_its_end(admin: Admin, rig: Rig) -> None:
    """However late it is settled: it may take an hour, or accounting is behind, or its gateway's spool is."""
    account_id = await admin.new_account("10")
    api_key = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "k"})
    ends = clock.utc_now() + timedelta(seconds=1.5)
    body = {"amount_usd": "1", "reason": "trial", "kind": "promotion", "expires_at": ends.isoformat()}
    await admin.done("POST", f"/accounts/{account_id}/credits", json=body)
    event = recorded(account_id, 100, key_id=api_key["id"])
    admission = Admission(
        request_id=event.request_id,
        account_id=account_id,
        key_id=api_key["id"],
        address=LOCALHOST,
        models=("claude-sonnet-4-6",),
        input_tokens=1,
        hold_nanos=1,
        memo=b"{}",
    )
    assert isinstance(await Leases(rig.redis).admit(admission), Granted)
    await asyncio.sleep(max((ends - clock.utc_now()).total_seconds(), 0) + 0.05)
    await until(lambda: _archived_credits(rig, account_id, 2))
    await PromotionsEnd(admin.context, settled_after_ms=0).run()
    assert (await admin.balance(account_id))["granted_usd"] == "11.00"
    await rig.publish([event])
    await until(lambda: _rows(rig, account_id, 1))

    async def settled() -> bool:
        return (await admin.balance(account_id))["spent_usd"] != "0.00"

    await until(settled)
    await PromotionsEnd(admin.context, settled_after_ms=0).run()
    granted = money.format_usd(10 * 10**9 + 100 * ONE_TOKEN_NANOS)
    assert (await admin.balance(account_id))["granted_usd"] == granted


class Counting(Ledger):
    """Counts what is asked about one account."""

    account_id = ""
    asked = 0

    async def query(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        self.asked += parameters.get("account_id") == self.account_id
        return await super().query(sql, parameters)


async def test_a_promotion_that_was_spent_is_not_looked_at_for_ever(admin: Admin, rig: Rig) -> None:
    """Nothing is taken back, so no entry says that it has ended."""
    account_id = await admin.new_account("10")
    ends = clock.utc_now() + timedelta(seconds=1)
    body = {"amount_usd": "0.000001", "reason": "trial", "kind": "promotion", "expires_at": ends.isoformat()}
    await admin.done("POST", f"/accounts/{account_id}/credits", json=body)
    await rig.publish([recorded(account_id)])
    await until(lambda: _rows(rig, account_id, 1))
    await until(lambda: _archived_credits(rig, account_id, 2))
    await asyncio.sleep(max((ends - clock.utc_now()).total_seconds(), 0) + 0.05)
    ledger = Counting(rig.config.clickhouse_url)
    ledger.account_id = account_id
    chore = PromotionsEnd(msgspec.structs.replace(admin.context, ledger=ledger), settled_after_ms=0)
    await chore.run()
    asked = ledger.asked
    assert asked >= 2
    await chore.run()
    assert ledger.asked == asked
    await ledger.close()


async def _archived_credits(rig: Rig, account_id: str, count: int) -> bool:
    ((found,),) = await rig.ledger.query(f"SELECT count() FROM credits FINAL WHERE account_id = '{account_id}'")
    return int(found) == count


async def test_a_statement_adds_up(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account("10")
    await admin.done("PATCH", f"/accounts/{account_id}", json={"name": "=cmd()"})
    await rig.publish([recorded(account_id), recorded(account_id)])
    await until(lambda: _rows(rig, account_id, 2))
    await until(lambda: _archived_credits(rig, account_id, 1))
    month = datetime.now(UTC).strftime("%Y-%m")
    answer = await admin.send("GET", f"/accounts/{account_id}/statements/{month}")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    amounts = {row["entry"]: money.parse_usd(row["amount_usd"]) for row in rows}
    assert amounts["opening"] == 0 and amounts["credit"] == 10**10
    assert amounts["usage"] == -2 * ONE_TOKEN_NANOS
    assert amounts["closing"] == amounts["opening"] + amounts["credit"] + amounts["usage"]
    balance = await admin.balance(account_id)
    assert money.format_usd(amounts["closing"]) == balance["available_usd"]
    for bad in ("2026-13", "26-01", "2026-1", "x"):
        await admin.refused("GET", f"/accounts/{account_id}/statements/{bad}", 400)


async def _rows(rig: Rig, account_id: str, count: int) -> bool:
    return (await rig.archived(account_id))[0] == count
