"""The JSON of a caller's own state: money as strings, nothing where there is nothing."""

import json
from typing import Any

from libs.common.limits import Limits
from libs.common.standing import Budget, ScopeStanding, Standing
from services.gateway import own_usage


def scope(**changes: Any) -> ScopeStanding:
    fields: dict[str, Any] = {
        "status": "active", "limits": Limits(), "held_nanos": 0, "spent_nanos": 0, "in_flight": 0, "budgets": (),
    }  # fmt: skip
    return ScopeStanding(**(fields | changes))


def shown(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "account": scope(), "available_nanos": 0, "granted_nanos": 0, "member_id": "", "member": None, "key": scope(),
        "expires_at_ms": None, "models": (),
    }  # fmt: skip
    page: dict[str, Any] = json.loads(own_usage.body("acct_1", "key_1", Standing(**(fields | changes))))
    return page


def test_nothing_is_null_or_zero() -> None:
    limits = dict.fromkeys(("rpm", "itpm", "otpm", "free_rpm", "in_flight"))
    same = {
        "status": "active", "held_usd": "0.00", "spent_usd": "0.00", "in_flight": 0, "limits": limits, "budgets": [],
    }  # fmt: skip
    assert shown() == {
        "account": {"id": "acct_1", "available_usd": "0.00", "granted_usd": "0.00", **same},
        "member": None,
        "key": {"id": "key_1", **same, "models": None, "expires_at": None},
    }


def test_money_is_exact_and_times_are_utc() -> None:
    budgets = (Budget("day", 5 * 10**9, 1, 1_764_028_800), Budget("total", 0, 2, 0))
    page = shown(
        account=scope(held_nanos=3, spent_nanos=9 * 10**15, limits=Limits(rpm=7, budget_day_nanos=5 * 10**9)),
        available_nanos=-1,
        member=scope(status="disabled", in_flight=4),
        member_id="memb_1",
        key=scope(budgets=budgets),
        expires_at_ms=1_764_028_800_001,
        models=("claude-sonnet-4-6",),
    )
    account, member, key = page["account"], page["member"], page["key"]
    assert (account["held_usd"], account["spent_usd"]) == ("0.000000003", "9000000.00")
    assert account["available_usd"] == "-0.000000001"
    assert (account["limits"]["rpm"], account["limits"]["itpm"]) == (7, None)
    assert (member["id"], member["status"], member["in_flight"]) == ("memb_1", "disabled", 4)
    assert key["budgets"] == [
        {"period": "day", "limit_usd": "5.00", "spent_usd": "0.000000001", "resets_at": "2025-11-25T00:00:00.000Z"},
        {"period": "total", "limit_usd": "0.00", "spent_usd": "0.000000002", "resets_at": None},
    ]
    assert (key["models"], key["expires_at"]) == (["claude-sonnet-4-6"], "2025-11-25T00:00:00.001Z")
