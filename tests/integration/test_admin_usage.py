"""Usage over the API: bounds of callers, exports, receipts, and the shape of Anthropic's Admin API; each figure from the rows."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from libs.common import money
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import Admin
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


class Account:
    """An account with two keys, one of a member, and three requests."""

    def __init__(self, admin: Admin, rig: Rig) -> None:
        self.admin, self.rig = admin, rig
        self.id = self.member_id = ""
        self.keys: list[str] = []

    async def made(self) -> "Account":
        self.id = await self.admin.new_account("10")
        body: dict[str, Any] = {"name": "Ada"}
        self.member_id = (await self.admin.done("POST", f"/accounts/{self.id}/members", json=body))["id"]
        for body in ({"name": "=own", "tag": "web"}, {"name": "hers", "member_id": self.member_id}):
            self.keys.append((await self.admin.done("POST", f"/accounts/{self.id}/keys", json=body))["id"])
        sent = [recorded(self.id) for _ in range(3)]
        owners = [(self.keys[0], ""), (self.keys[1], self.member_id), (self.keys[1], self.member_id)]
        events = [
            msgspec.structs.replace(one, key_id=key_id, member_id=member_id)
            for one, (key_id, member_id) in zip(sent, owners, strict=True)
        ]
        await self.rig.publish(events)
        await until(self._archived)
        return self

    async def _archived(self) -> bool:
        return (await self.rig.archived(self.id))[0] == 3

    async def usage(self, query: str = "", **options: Any) -> dict[str, Any]:
        return await self.admin.done("GET", f"/accounts/{self.id}/usage{query}", **options)

    async def token(self, role: str = "billing") -> str:
        body = {"name": "t", "role": role, "scopes": ["usage:read"]}
        return str((await self.admin.done("POST", f"/accounts/{self.id}/tokens", json=body))["token"])


async def test_groups_names_and_totals(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    answer = await account.usage("?group=key&metrics=requests,cost,input,errors&previous=true")
    found = {one["values"]["key"]: one for one in answer["groups"]}
    assert {key: one["metrics"]["requests"] for key, one in found.items()} == dict(
        zip(account.keys, (1, 2), strict=True)
    )
    assert found[account.keys[1]]["names"] == {"key": "hers"}
    assert answer["totals"]["requests"] == 3
    assert answer["totals"]["cost_usd"] == money.format_usd(3 * ONE_TOKEN_NANOS)
    assert answer["previous"]["metrics"]["requests"] == 0
    by_tag = await account.usage("?group=tag&metrics=requests")
    assert {one["values"]["tag"]: one["metrics"]["requests"] for one in by_tag["groups"]} == {"web": 1, "": 2}
    by_day = await account.usage("?group=day,member&metrics=requests&zone=Asia/Kolkata")
    assert sum(one["metrics"]["requests"] for one in by_day["groups"]) == 3
    one = await account.usage(f"?member={account.member_id}")
    assert one["totals"]["requests"] == 2
    deleted = account.keys[1]
    await admin.done("DELETE", f"/accounts/{account.id}/keys/{deleted}")
    again = await account.usage(f"?group=key&key={deleted}")
    assert again["groups"][0]["names"] == {"key": "hers"}


async def test_exports_are_the_same_figures(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    answer = await admin.send("GET", f"/accounts/{account.id}/usage?group=key&metrics=requests,cost&format=csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert {row["key"]: int(row["requests"]) for row in rows} == dict(zip(account.keys, (1, 2), strict=True))
    assert "'=own" in {row["key_name"] for row in rows}
    lines = (await admin.send("GET", f"/accounts/{account.id}/usage?group=key&format=ndjson")).text.splitlines()
    assert sum(json.loads(line)["metrics"]["requests"] for line in lines) == 3


async def test_questions_that_cannot_be_answered(admin: Admin) -> None:
    account_id = await admin.new_account()
    path = f"/accounts/{account_id}/usage"
    for query in (
        "?metrics=nothing", "?group=key,model,day", "?group=hour,day", "?top=0", "?top=x", "?order=cost&metrics=input",
        "?from=2026-01-02&to=2026-01-01", "?from=yesterday", "?format=xml", "?group=hour&from=2000-01-01",
        "?to=2099-01-01&from=2098-13-01", "?unknown=1", "?metrics=",
    ):  # fmt: skip
        assert await admin.refused("GET", path + query, 400), query
    await admin.refused("GET", f"{path}?zone=Mars/Olympus", 422)


async def test_callers_see_what_is_theirs(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    other = await Account(admin, rig).made()
    token = await account.token()
    mine = await admin.done("GET", f"/accounts/{account.id}/requests", token=token)
    assert len(mine["data"]) == 3
    foreign = (await admin.done("GET", f"/accounts/{other.id}/requests"))["data"][0]["request_id"]
    await admin.refused("GET", f"/accounts/{account.id}/requests/{foreign}", 404, token=token)
    await admin.refused("GET", f"/requests/{foreign}", 403, token=token)
    await admin.refused("GET", "/usage", 403, token=token)
    receipt = mine["data"][0]
    lines = [money.parse_usd(line["amount_usd"]) for line in receipt["lines"]]
    assert sum(lines) == receipt["total_nanos"]


async def test_the_shape_of_the_admin_api(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    other = await Account(admin, rig).made()
    token = await account.token()
    key = {b"x-api-key": token.encode(), b"authorization": b""}
    path = "/v1/organizations/usage_report/messages?starting_at=2026-01-01T00:00:00Z&limit=31"
    rows = await rig.ledger.query(
        f"SELECT toDate(time), sum(arraySum(line_quantities)) FROM usage FINAL WHERE account_id = '{account.id}' GROUP BY 1"
    )
    ((day, tokens),) = rows
    start = f"{day.isoformat()}T00:00:00Z"
    path = f"/v1/organizations/usage_report/messages?starting_at={start}&group_by[]=api_key_id&group_by[]=model"
    report = await admin.done("GET", path, headers=key)
    (bucket,) = report["data"]
    assert bucket["starting_at"] == start and report["has_more"] is False
    assert {one["api_key_id"] for one in bucket["results"]} == set(account.keys)
    names = ("uncached_input_tokens", "output_tokens", "cache_read_input_tokens")
    counted = sum(one[name] for one in bucket["results"] for name in names)
    counted += sum(sum(one["cache_creation"].values()) for one in bucket["results"])
    assert counted == int(tokens)
    assert bucket["results"][0]["workspace_id"] is None
    costs = await admin.done(
        "GET", f"/v1/organizations/cost_report?starting_at={start}&group_by[]=description", headers=key
    )
    cents = sum(float(one["amount"]) for one in costs["data"][0]["results"])
    assert round(cents * 10_000_000) == 3 * ONE_TOKEN_NANOS
    theirs = f"/v1/organizations/cost_report?starting_at={start}&group_by[]=workspace_id"
    assert {one["workspace_id"] for one in (await admin.done("GET", theirs, headers=key))["data"][0]["results"]} == {
        account.id
    }
    everything = (await admin.done("GET", theirs))["data"][0]["results"]
    assert {account.id, other.id} <= {one["workspace_id"] for one in everything}
    pages = await admin.done(
        "GET", "/v1/organizations/cost_report?starting_at=2026-01-01T00:00:00Z&limit=5", headers=key
    )
    assert pages["has_more"] and len(pages["data"]) == 5
    following = f"/v1/organizations/cost_report?starting_at=2026-01-01T00:00:00Z&limit=5&page={pages['next_page']}"
    assert (await admin.done("GET", following, headers=key))["data"][0]["starting_at"] == "2026-01-06T00:00:00Z"
    for bad in (
        "",
        "?starting_at=x",
        f"?starting_at={start}&bucket_width=1w",
        f"?starting_at={start}&limit=32",
        f"?starting_at={start}&group_by=x",
    ):
        await admin.refused("GET", f"/v1/organizations/usage_report/messages{bad}", 400)


async def test_a_receipt_names_keys_and_members_as_they_were_called(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    await asyncio.sleep(0.01)
    await admin.done("PATCH", f"/accounts/{account.id}/keys/{account.keys[1]}", json={"name": "renamed"})
    await admin.done("DELETE", f"/accounts/{account.id}/members/{account.member_id}")

    async def archived() -> bool:
        names = await admin.context.ledger.names([account.keys[1], account.member_id])
        return {len(told) for told in names.values()} == {2}

    await until(archived)
    rows = (await admin.done("GET", f"/accounts/{account.id}/requests?key_id={account.keys[1]}"))["data"]
    assert {(row["key_name"], row["member_name"]) for row in rows} == {("hers", "Ada")}
    later = msgspec.structs.replace(recorded(account.id), key_id=account.keys[1])
    await rig.publish([later])

    async def there() -> bool:
        return (await admin.send("GET", f"/requests/{later.request_id}")).status_code == 200

    await until(there)
    receipt = await admin.done("GET", f"/requests/{later.request_id}")
    assert (receipt["key_name"], receipt["member_name"]) == ("renamed", None)
