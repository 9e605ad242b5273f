"""The shape of Anthropic's Admin API, where names and times are awkward: each figure stands once, and none is lost."""

import base64
from typing import Any

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


async def test_a_page_that_was_made_up_loses_nothing(admin: Admin, rig: Rig) -> None:
    account = await Account(admin, rig).made()
    token = await account.token()
    start = await _start(rig, account)
    page = "page_" + base64.urlsafe_b64encode(f"{start[:10]}T00:00:00.500Z".encode()).decode()
    report = await admin.done("GET", f"{_USAGE}?starting_at={start}&page={page}", token=token)
    assert report["data"][0]["starting_at"] == start and _results(report)
    await admin.refused("GET", f"{_USAGE}?starting_at={start}&page=page_%C3%A4", 400, token=token)
