"""Members: made, changed, deleted for good; never seen from another account."""

from typing import Any

import pytest

from libs.common import ids
from tests.unit.admin.desk import Desk

pytestmark = pytest.mark.anyio


async def new_member(desk: Desk, account_id: str, **fields: Any) -> str:
    return str((await desk.done("POST", f"/accounts/{account_id}/members", {"name": "Zoë", **fields}))["id"])


async def test_a_member_is_made_and_found(desk: Desk) -> None:
    account_id = await desk.new_account()
    body = {"name": "Zoë", "limits": {"rpm": 3, "budget_month_usd": "50"}}
    created = await desk.done("POST", f"/accounts/{account_id}/members", body)
    assert (created["name"], created["status"], created["account_id"]) == ("Zoë", "active", account_id)
    assert (created["limits"]["rpm"], created["limits"]["budget_month_usd"]) == (3, "50.00")
    assert created["limits"]["itpm"] is None
    assert created.pop("link") is None  # he has no address
    assert await desk.done("GET", f"/accounts/{account_id}/members/{created['id']}") == created


async def test_a_member_is_changed_in_parts(desk: Desk) -> None:
    account_id = await desk.new_account()
    path = f"/accounts/{account_id}/members/{await new_member(desk, account_id, limits={'rpm': 3, 'otpm': 4})}"
    await desk.done("PATCH", path, {"status": "disabled"})
    changed = await desk.done("PATCH", path, {"name": "Z", "limits": {"rpm": None, "in_flight": 1}})
    assert (changed["name"], changed["status"]) == ("Z", "disabled")
    limits = changed["limits"]
    assert (limits["rpm"], limits["otpm"], limits["in_flight"]) == (None, 4, 1)


async def test_a_deleted_member_is_gone_and_stays_in_the_list(desk: Desk) -> None:
    account_id = await desk.new_account()
    member_id, other = await new_member(desk, account_id), await new_member(desk, account_id)
    path = f"/accounts/{account_id}/members/{member_id}"
    assert (await desk.done("DELETE", path))["status"] == "deleted"
    for method, body in (("GET", None), ("PATCH", {"status": "active"}), ("DELETE", None)):
        await desk.refused(method, path, 404, body)
    listed = (await desk.done("GET", f"/accounts/{account_id}/members"))["data"]
    assert {one["id"]: one["status"] for one in listed} == {member_id: "deleted", other: "active"}


async def test_no_member_of_another_account(desk: Desk) -> None:
    account_id, elsewhere = await desk.new_account(), await desk.new_account()
    member_id = await new_member(desk, account_id)
    for name in (member_id, ids.new_member_id(), account_id, "memb_*", "", "memb_" + "0" * 31 + ">"):
        for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
            await desk.refused(method, f"/accounts/{elsewhere}/members/{name}", 404, body)
    assert (await desk.done("GET", f"/accounts/{elsewhere}/members"))["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"name": ""}, 400, "$.name"),
        ({"name": "x", "limits": {"otpm": -1}}, 400, "$.limits.otpm"),
        ({"name": "x", "limits": {"budget_total_usd": "?"}}, 422, "limits.budget_total_usd"),
        ({"name": "x", "status": "deleted"}, 400, "status"),
        ({"name": "x", "role": "king"}, 400, "role"),
    ],
)
async def test_members_that_are_none(desk: Desk, body: dict[str, Any], status: int, said: str) -> None:
    account_id = await desk.new_account()
    path = f"/accounts/{account_id}/members"
    member_id = await new_member(desk, account_id)
    assert said in await desk.refused("POST", path, status, body)
    assert said in await desk.refused("PATCH", f"{path}/{member_id}", status, body)


async def test_no_member_of_an_account_that_does_not_exist(desk: Desk) -> None:
    path = f"/accounts/{ids.new_account_id()}/members"
    await desk.refused("POST", path, 404, {"name": "x"})
    await desk.refused("GET", path, 404)
