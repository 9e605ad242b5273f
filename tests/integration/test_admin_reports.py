"""The shape of Anthropic's Admin API, where names and times are awkward: each figure stands once, and none is lost."""

import base64
from typing import Any
from urllib.parse import quote

import pytest

from libs.common import money
from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import Admin
from tests.integration.test_admin_usage import Account, admin, rig
from tests.unit.accounting.samples import ONE_TOKEN_NANOS

pytestmark = pytest.mark.anyio
__all__ = ["admin", "rig"]
_USAGE = "/v1/organizations/usage_report/messages"
_COST = "/v1/organizations/cost_report"


async def _start(rig: Rig, account: Account) -> str:
    ((day,),) = await rig.ledger.query(f"SELECT DISTINCT toDate(time) FROM usage WHERE account_id = '{account.id}'")
    return f"{day.isoformat()}T00:00:00Z"


def _results(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for bucket in report["data"] for one in bucket["results"]]


async def test_members_and_workspaces_are_told_apart(admin: Admin, rig: Rig) -> None:
    """Anthropic's account_id is our member's: a column of that name must not take its place."""
    account = await Account(admin, rig).made()
    token = await account.token()
    start = await _start(rig, account)
    for group in ("account_id", "workspace_id"):
        report = await admin.done("GET", f"{_USAGE}?starting_at={start}&group_by[]={group}", token=token)
        wanted = {None, account.member_id} if group == "account_id" else {account.id}
        assert {one[group] for one in _results(report)} == wanted
    path = f"{_USAGE}?starting_at={start}&group_by[]=account_id&group_by[]=workspace_id"
    for told in (path, f"{path}&workspace_ids[]={account.id}"):
        report = await admin.done("GET", told, token=token)
        assert {(one["account_id"], one["workspace_id"]) for one in _results(report)} == {
            (None, account.id),
            (account.member_id, account.id),
        }
    report = await admin.done("GET", f"{path}&account_ids[]={account.member_id}", token=token)
    assert [one["account_id"] for one in _results(report)] == [account.member_id]


async def test_costs_stay_when_details_are_no_longer_kept(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    token = await account.token()
    start = await _start(rig, account)
    emptied = ", ".join(f"[] AS {name}" for name in ("line_models", "line_unit_prices_attos", "line_amounts_nanos"))
    await rig.ledger.run(
        f"INSERT INTO usage SELECT * REPLACE ({emptied}, '' AS usage, toUInt8(version + 1) AS version) FROM usage FINAL"
        f" WHERE account_id = '{account.id}' LIMIT 1"
    )
    for group in ("", "&group_by[]=description", "&group_by[]=workspace_id"):
        report = await admin.done("GET", f"{_COST}?starting_at={start}{group}", token=token)
        cents = sum(money.parse_usd(one["amount"]) for one in _results(report))
        assert cents == 100 * 3 * ONE_TOKEN_NANOS
    receipts = await admin.done("GET", f"/accounts/{account.id}/requests", token=token)
    assert sorted(one["total_nanos"] for one in receipts["data"]) == [ONE_TOKEN_NANOS] * 3


async def test_filters_take_both_spellings_and_leave_nothing_out(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    start = await _start(rig, account)
    path = f"{_USAGE}?starting_at={start}&group_by=api_key_id&group_by[]=model&workspace_ids={account.id}"
    report = await admin.done("GET", f"{path}&api_key_ids={account.keys[0]}&api_key_ids[]={account.keys[1]}")
    assert {one["api_key_id"] for one in _results(report)} == set(account.keys)
    evil = quote("x') OR 1=1 --")
    report = await admin.done("GET", f"{path}&models[]={evil}")
    assert _results(report) == []
    many = "".join(f"&models={number}" for number in range(1001))
    assert "models" in await admin.refused("GET", f"{path}{many}", 400)


async def test_pages_have_every_bucket_once(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    token = await account.token()
    start = await _start(rig, account)
    path = f"{_USAGE}?starting_at={start}&ending_at={start[:10]}T23:59:59Z&bucket_width=1h&limit=7"
    report = await admin.done("GET", path, token=token)
    buckets = report["data"]
    while report["has_more"]:
        report = await admin.done("GET", f"{path}&page={report['next_page']}", token=token)
        buckets += report["data"]
    assert [one["starting_at"] for one in buckets] == [f"{start[:10]}T{hour:02}:00:00Z" for hour in range(24)]
    assert report["next_page"] is None
    whole = await admin.done("GET", f"{_USAGE}?starting_at={start}&bucket_width=1d", token=token)
    assert sum(one["output_tokens"] for one in _results({"data": buckets})) == _results(whole)[0]["output_tokens"]


async def test_a_page_that_was_made_up_loses_nothing(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    token = await account.token()
    start = await _start(rig, account)
    page = "page_" + base64.urlsafe_b64encode(f"{start[:10]}T00:00:00.500Z".encode()).decode()
    report = await admin.done("GET", f"{_USAGE}?starting_at={start}&page={page}", token=token)
    assert report["data"][0]["starting_at"] == start and _results(report)
    await admin.refused("GET", f"{_USAGE}?starting_at={start}&page=page_%C3%A4", 400, token=token)
