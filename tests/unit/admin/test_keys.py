"""Keys: for whom, for what, from where, how long; and that the secret stays nowhere."""

import json
from typing import Any

import pytest

from libs.common import apikeys, clock, ids
from libs.common.events import ApiKey
from tests.unit.admin.desk import Desk

pytestmark = pytest.mark.anyio
FREE: dict[str, Any] = {"member_id": None, "models": None, "ip_allowlist": None, "expires_at": None}


async def new_key(desk: Desk, account_id: str, **fields: Any) -> dict[str, Any]:
    return await desk.done("POST", f"/accounts/{account_id}/keys", {"name": "laptop", **fields})


async def new_member(desk: Desk, account_id: str) -> str:
    return str((await desk.done("POST", f"/accounts/{account_id}/members", {"name": "Zoë"}))["id"])


async def test_a_key_without_restrictions(desk: Desk) -> None:
    created = await new_key(desk, await desk.new_account())
    assert {name: created[name] for name in FREE} == FREE
    assert set(created["limits"].values()) == {None}
    assert apikeys.is_well_formed(created["key"].encode())
    assert created["key"].encode() not in b"".join(desk.control.log)


async def test_a_key_with_everything(desk: Desk) -> None:
    account_id = await desk.new_account()
    member_id = await new_member(desk, account_id)
    created = await new_key(
        desk,
        account_id,
        member_id=member_id,
        limits={"rpm": 5, "budget_day_usd": "1.5"},
        models=["claude-haiku-4-5-20251001", "claude-haiku-4-5", "claude-sonnet-4-6"],
        ip_allowlist=["10.0.0.0/8", "2001:DB8:0::1"],
        expires_at="2099-01-01T00:00:00+01:00",
    )
    assert (created["member_id"], created["limits"]["budget_day_usd"]) == (member_id, "1.50")
    assert created["models"] == ["claude-haiku-4-5", "claude-sonnet-4-6"]
    assert created["ip_allowlist"] == ["10.0.0.0/8", "2001:db8::1"]
    assert created["expires_at"] == "2098-12-31T23:00:00.000Z"
    (listed,) = (await desk.done("GET", f"/accounts/{account_id}/keys"))["data"]
    assert listed == {name: value for name, value in created.items() if name != "key"}


async def test_several_things_change_at_once_and_the_rest_stays(desk: Desk) -> None:
    account_id = await desk.new_account()
    created = await new_key(desk, account_id, limits={"rpm": 5}, models=["claude-sonnet-4-6"], ip_allowlist=["::1"])
    path = f"/accounts/{account_id}/keys/{created['id']}"
    body = {
        "name": "desk",
        "status": "disabled",
        "models": None,
        "limits": {"otpm": 6},
        "expires_at": "2099-01-01T00:00:00Z",
    }
    changed = await desk.done("PATCH", path, body)
    assert (changed["name"], changed["status"], changed["models"]) == ("desk", "disabled", None)
    assert (changed["limits"]["rpm"], changed["limits"]["otpm"]) == (5, 6)
    assert (changed["ip_allowlist"], changed["expires_at"]) == (["::1"], "2099-01-01T00:00:00.000Z")
    freed = await desk.done("PATCH", path, {"ip_allowlist": None, "expires_at": None, "limits": {"rpm": None}})
    assert (freed["ip_allowlist"], freed["expires_at"], freed["limits"]["rpm"]) == (None, None, None)
    assert (freed["name"], freed["status"]) == ("desk", "disabled")


async def test_what_is_stored_is_what_admission_compares(desk: Desk) -> None:
    account_id = await desk.new_account()
    created = await new_key(
        desk, account_id, ip_allowlist=["::ffff:10.0.0.0/104", "192.0.2.1/32", "192.0.2.1", "10.0.0.0/255.0.0.0"]
    )
    found = await desk.control.find(ApiKey, created["id"])
    assert found is not None and found.entity.ip_allowlist == ("10.0.0.0/8", "192.0.2.1")
    assert (found.entity.member_id, found.entity.expires_at_ms) == ("", None)


async def test_a_key_goes_from_one_member_to_another_and_back(desk: Desk) -> None:
    account_id = await desk.new_account()
    first, second = await new_member(desk, account_id), await new_member(desk, account_id)
    path = f"/accounts/{account_id}/keys/{(await new_key(desk, account_id, member_id=first))['id']}"
    assert (await desk.done("PATCH", path, {"member_id": second}))["member_id"] == second
    assert (await desk.done("PATCH", path, {"name": "x"}))["member_id"] == second
    assert (await desk.done("PATCH", path, {"member_id": None}))["member_id"] is None


async def test_members_that_are_none(desk: Desk) -> None:
    account_id, elsewhere = await desk.new_account(), await desk.new_account()
    deleted = await new_member(desk, account_id)
    await desk.done("DELETE", f"/accounts/{account_id}/members/{deleted}")
    path = f"/accounts/{account_id}/keys"
    key_id = (await new_key(desk, account_id))["id"]
    for name in (deleted, await new_member(desk, elsewhere), ids.new_member_id(), account_id, "", "memb_>"):
        for method, where in (("POST", path), ("PATCH", f"{path}/{key_id}")):
            detail = await desk.refused(method, where, 422, {"name": "x", "member_id": name})
            assert detail == "member_id: this account has no such member."


@pytest.mark.parametrize(
    ("field", "value", "status", "said"),
    [
        ("models", [], 422, "null allows all"),
        ("models", ["claude-sonnet-4-6", "gpt-5"], 422, "'gpt-5'"),
        ("models", ["x" * 5000], 422, "models: "),
        ("models", "claude-sonnet-4-6", 400, "$.models"),
        ("models", ["claude-sonnet-4-6"] * 101, 400, "$.models"),
        ("ip_allowlist", [], 422, "null allows every one"),
        ("ip_allowlist", ["10.0.0.1/8"], 422, "bits beyond the mask"),
        ("ip_allowlist", ["::1", "localhost"], 422, "'localhost'"),
        ("ip_allowlist", ["10.0.0.0/33"], 422, "'10.0.0.0/33'"),
        ("ip_allowlist", ["1"], 422, "'1'"),
        ("ip_allowlist", [" ::1"], 422, "ip_allowlist: "),
        ("ip_allowlist", ["fe80::1%eth0"], 422, "zone"),
        ("ip_allowlist", [16909060], 400, "$.ip_allowlist"),
        ("ip_allowlist", ["::1"] * 101, 400, "$.ip_allowlist"),
        ("expires_at", "2099-01-01", 400, "$.expires_at"),
        ("expires_at", "2099-01-01T00:00:00", 400, "$.expires_at"),
        ("expires_at", 4070908800, 400, "$.expires_at"),
        ("expires_at", "2100-01-01T00:00:00Z", 422, "expires_at must lie"),
        ("expires_at", "9999-12-31T23:59:59-23:59", 422, "expires_at must lie"),
        ("expires_at", "0001-01-01T00:00:00+23:59", 422, "expires_at must lie"),
        ("limits", {"itpm": 0}, 400, "$.limits.itpm"),
        ("limits", {"budget_day_usd": "1e9"}, 422, "limits.budget_day_usd"),
        ("scopes", ["x"], 400, "scopes"),
    ],
)
async def test_a_wrong_option_is_named_and_nothing_is_changed(
    desk: Desk, field: str, value: Any, status: int, said: str
) -> None:
    account_id = await desk.new_account()
    path = f"/accounts/{account_id}/keys"
    key_id = (await new_key(desk, account_id))["id"]
    for method, where in (("POST", path), ("PATCH", f"{path}/{key_id}")):
        detail = await desk.refused(method, where, status, {"name": "good", field: value})
        assert said in detail and len(detail) < 300


async def test_a_key_is_not_made_for_the_past_but_may_be_ended(desk: Desk) -> None:
    account_id = await desk.new_account()
    path = f"/accounts/{account_id}/keys"
    past = clock.iso_utc(clock.unix_ms() - 1000)
    assert "expires_at" in await desk.refused("POST", path, 422, {"name": "x", "expires_at": past})
    key_id = (await new_key(desk, account_id))["id"]
    assert (await desk.done("PATCH", f"{path}/{key_id}", {"expires_at": past}))["expires_at"] == past


async def test_a_deleted_key_is_gone(desk: Desk) -> None:
    account_id, elsewhere = await desk.new_account(), await desk.new_account()
    key_id = (await new_key(desk, account_id))["id"]
    await desk.refused("DELETE", f"/accounts/{elsewhere}/keys/{key_id}", 404)
    path = f"/accounts/{account_id}/keys/{key_id}"
    assert (await desk.done("DELETE", path))["status"] == "deleted"
    for method, body in (("PATCH", {"status": "active"}), ("DELETE", None)):
        await desk.refused(method, path, 404, body)


async def test_a_key_from_before_these_options_reads_as_one_without(desk: Desk) -> None:
    """CONTROL holds events of the first release for ever."""
    account_id = await desk.new_account()
    key_id = ids.new_key_id()
    entity = {"type": "key", "id": key_id, "account_id": account_id, "name": "old", "created_at_ms": 1_700_000_000_000}
    entity |= {"sha256": "0" * 64, "hint": "sk-cr-Old1…", "status": "active"}
    desk.control.log.append(json.dumps({"entity": entity, "actor": "a", "reason": "r", "at_ms": 1}).encode())
    changed = await desk.done("PATCH", f"/accounts/{account_id}/keys/{key_id}", {"name": "new"})
    assert {name: changed[name] for name in FREE} == FREE
