"""Accounts: time zones and limits, set at once or in parts."""

from typing import Any

import pytest

from libs.common.events import Account
from tests.unit.admin.desk import Desk

pytestmark = pytest.mark.anyio
DEFAULTS: dict[str, Any] = {"rpm": 1_000, "itpm": 2_000_000, "otpm": 400_000, "free_rpm": 1_000, "in_flight": 50}
DEFAULTS |= dict.fromkeys(("budget_day_usd", "budget_week_usd", "budget_month_usd", "budget_total_usd"))


async def test_a_new_account_has_the_defaults(desk: Desk) -> None:
    created = await desk.done("POST", "/accounts", {"name": "x"})
    assert (created["time_zone"], created["limits"]) == ("UTC", DEFAULTS)
    assert await desk.done("GET", f"/accounts/{created['id']}") == created


async def test_zone_and_limits_from_the_first_moment(desk: Desk) -> None:
    body = {"name": "x", "time_zone": "Asia/Shanghai", "limits": {"rpm": 5, "budget_month_usd": "200"}}
    created = await desk.done("POST", "/accounts", body)
    assert created["time_zone"] == "Asia/Shanghai"
    assert created["limits"] == DEFAULTS | {"rpm": 5, "budget_month_usd": "200.00"}


async def test_limits_are_changed_one_by_one(desk: Desk) -> None:
    path = f"/accounts/{await desk.new_account()}"
    await desk.done("PATCH", path, {"limits": {"rpm": 5, "in_flight": 2}})
    await desk.done("PATCH", path, {"limits": {"budget_day_usd": "0.50"}, "time_zone": "Europe/Berlin"})
    changed = await desk.done("PATCH", path, {"name": "new", "limits": {"rpm": None}})
    assert changed["limits"] == DEFAULTS | {"in_flight": 2, "budget_day_usd": "0.50"}
    assert (changed["name"], changed["time_zone"]) == ("new", "Europe/Berlin")


async def test_a_default_is_not_stored_so_that_it_may_change(desk: Desk) -> None:
    account_id = await desk.new_account()
    await desk.done("PATCH", f"/accounts/{account_id}", {"limits": {"rpm": 5}})
    await desk.done("PATCH", f"/accounts/{account_id}", {"limits": {"rpm": None}})
    found = await desk.control.find(Account, account_id)
    assert found is not None and found.entity.limits.rpm is None


@pytest.mark.parametrize("name", ["UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "Europe/Kyiv"])
async def test_zones_there_are(desk: Desk, name: str) -> None:
    assert (await desk.done("POST", "/accounts", {"name": "x", "time_zone": name}))["time_zone"] == name


@pytest.mark.parametrize(
    "name",
    ["", "utc+2", "Berlin", "europe/berlin", "localtime", "Factory", "../etc/passwd", "posix/UTC", "\x00", "x" * 9999],
)
async def test_zones_that_are_none(desk: Desk, name: str) -> None:
    path = f"/accounts/{await desk.new_account()}"
    for method, where in (("POST", "/accounts"), ("PATCH", path)):
        detail = await desk.refused(method, where, 422, {"name": "x", "time_zone": name})
        assert detail.startswith("time_zone must be") and len(detail) < 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"limits": None}, 400, "$.limits"),
        ({"limits": {"rpm": 0}}, 400, "$.limits.rpm"),
        ({"limits": {"rps": 1}}, 400, "rps"),
        ({"limits": {"budget_day_usd": "-1"}}, 422, "limits.budget_day_usd"),
        ({"time_zone": None}, 400, "$.time_zone"),
        ({"name": None}, 400, "$.name"),
        ({"status": None}, 400, "$.status"),
        ({"multiplier": None}, 400, "$.multiplier"),
        ({"name": "good", "multiplier": "101", "limits": {"rpm": 5}}, 422, "multiplier"),
        ({"name": "good", "limits": {"rpm": 5, "budget_week_usd": "x"}}, 422, "limits.budget_week_usd"),
    ],
)
async def test_a_refused_change_names_its_field_and_changes_nothing(
    desk: Desk, body: dict[str, Any], status: int, said: str
) -> None:
    path = f"/accounts/{await desk.new_account()}"
    assert said in await desk.refused("PATCH", path, status, body)
