"""Channels, rules and incidents as callers see them: what is taken, what is refused and why, and what is never shown."""

from typing import Any

import msgspec
import pytest

from libs.common import ids
from libs.common.entities import AlertRule, Channel, Incident
from services.admin import access
from services.admin.alerts import deliveries
from services.admin.app import OPERATIONS
from services.admin.control import By
from services.admin.notices import targets
from services.admin.notices.notices import ChannelTarget
from services.admin.resources import channels, rules
from tests.unit.admin.desk import Desk

pytestmark = pytest.mark.anyio
BY = By(actor="test", address="", reason="test")
HOOK = {"name": "hook", "kind": "webhook", "address": "https://hooks.example/c4n4ry"}
CHAT = {"name": "chat", "kind": "telegram", "address": "@c4n4ry_chat", "secret": "12345:" + "c" * 35}
LOW = {"name": "low", "kind": "balance_below", "threshold_usd": "5"}


@pytest.fixture
async def account(desk: Desk) -> str:
    return f"/accounts/{await desk.new_account()}"


@pytest.mark.parametrize("whose", ["relay", "account"])
async def test_a_channel_is_made_listed_and_deleted(desk: Desk, account: str, whose: str) -> None:
    path = account if whose == "account" else ""
    made = await desk.done("POST", f"{path}/channels", HOOK)
    secret = made.pop("secret")
    (listed,) = (await desk.done("GET", f"{path}/channels"))["data"]
    assert listed == made
    assert (made["account_id"] or "") == path.removeprefix("/accounts/")
    channel = desk.context.mirror.get(Channel, made["id"])
    assert channel is not None
    opened = targets.opened(desk.context.sealer, channel)
    assert opened == ChannelTarget(kind="webhook", address=HOOK["address"], secret=secret)
    deleted = await desk.done("DELETE", f"{path}/channels/{made['id']}")
    assert deleted["status"] == "deleted"
    await desk.refused("DELETE", f"{path}/channels/{made['id']}", 404)
    assert desk.context.mirror.get(Channel, made["id"]) == msgspec.structs.replace(channel, status="deleted", sealed="")


async def test_what_is_sealed_is_in_no_change_and_no_answer(desk: Desk, account: str) -> None:
    for body in (HOOK, CHAT, {"name": "m", "kind": "email", "address": "c4n4ry@example.com"}):
        answer = await desk.done("POST", f"{account}/channels", body)
        assert "c4n4ry" not in str(answer)
        assert (answer["secret"] is None) == (body["kind"] != "webhook")
    assert b"c4n4ry" not in b"".join(desk.control.log)
    hints = [one["hint"] for one in (await desk.done("GET", f"{account}/channels"))["data"]]
    assert sorted(hints) == sorted(["hooks.example…n4ry", "…chat", "c…@example.com"])  # made within one millisecond


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"address": "http://hooks.example/"}, "https://"),
        ({"address": "https://127.0.0.1/"}, "not public"),
        ({"secret": "whsec_mine"}, "secret"),
        ({"kind": "slack"}, "hooks.slack.com"),
        ({"kind": "email"}, "e-mail"),
    ],
)
async def test_what_is_no_channel(desk: Desk, account: str, body: dict[str, Any], named: str) -> None:
    assert named in await desk.refused("POST", f"{account}/channels", 422, HOOK | body)


async def test_without_a_key_for_secrets_there_are_no_channels() -> None:
    desk = Desk.opened()
    assert "RELAY_SECRETS_KEY" in await desk.refused("POST", "/channels", 409, HOOK)


async def test_channels_and_rules_are_bounded(desk: Desk, account: str) -> None:
    for path, body, most in (("channels", CHAT, channels.CHANNELS_MAX), ("rules", LOW, rules.RULES_MAX)):
        for _ in range(most):
            last = await desk.done("POST", f"{account}/{path}", body)
        assert str(most) in await desk.refused("POST", f"{account}/{path}", 409, body)
        await desk.done("DELETE", f"{account}/{path}/{last['id']}")
        await desk.done("POST", f"{account}/{path}", body)


async def test_a_channel_that_rules_use_stays(desk: Desk, account: str) -> None:
    channel = await desk.done("POST", f"{account}/channels", HOOK)
    rule = await desk.done("POST", f"{account}/rules", {**LOW, "channel_ids": [channel["id"]] * 2})
    assert rule["channel_ids"] == [channel["id"]]
    assert "low" in await desk.refused("DELETE", f"{account}/channels/{channel['id']}", 409)
    await desk.done("PATCH", f"{account}/rules/{rule['id']}", {"channel_ids": []})
    await desk.done("DELETE", f"{account}/channels/{channel['id']}")


async def test_a_rule_is_made_shown_changed_and_deleted(desk: Desk, account: str) -> None:
    made = await desk.done("POST", f"{account}/rules", LOW)
    assert (made["threshold"], made["threshold_usd"], made["unit"], made["window_minutes"]) == (
        None,
        "5.00",
        "usd",
        None,
    )
    path = f"{account}/rules/{made['id']}"
    assert await desk.done("GET", path) == made
    changed = await desk.done("PATCH", path, {"threshold_usd": "6.5", "status": "disabled", "name": "lower"})
    assert changed == {**made, "threshold_usd": "6.50", "status": "disabled", "name": "lower"}
    assert (await desk.done("GET", f"{account}/rules"))["data"] == [changed]
    assert (await desk.done("DELETE", path))["status"] == "deleted"
    for method in ("GET", "DELETE"):
        await desk.refused(method, path, 404)


async def test_a_kind_that_looks_back_has_a_window(desk: Desk, account: str) -> None:
    body = {"name": "errors", "kind": "error_share", "threshold": 5}
    assert (await desk.done("POST", f"{account}/rules", body))["window_minutes"] == 60
    made = await desk.done("POST", f"{account}/rules", {**body, "window_minutes": 5})
    assert (made["window_minutes"], made["threshold"], made["threshold_usd"]) == (5, 5, None)
    changed = await desk.done("PATCH", f"{account}/rules/{made['id']}", {"threshold": 6, "window_minutes": 7})
    assert (changed["threshold"], changed["window_minutes"]) == (6, 7)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"threshold_usd": None}, "threshold_usd"),
        ({"threshold": 5}, "threshold_usd"),
        ({"threshold_usd": "0"}, "threshold"),
        ({"threshold_usd": "1e3"}, "threshold_usd"),
        ({"kind": "error_share"}, "threshold"),
        ({"kind": "error_share", "threshold_usd": None, "threshold": 101}, "0 to 100 %|1 to 100 %"),
        ({"kind": "drift", "threshold_usd": None, "threshold": 1}, "operators"),
        ({"window_minutes": 5}, "window_minutes"),
        ({"key_id": "key_1"}, "key_id"),
        ({"pause_key": True}, "pause_key"),
        ({"channel_ids": ["chan_x"]}, "channel_ids"),
        ({"kind": "spend_velocity", "key_id": ids.new_key_id()}, "key_id"),
        ({"kind": "spend_velocity", "member_id": "memb_.>"}, "member_id"),
    ],
)
async def test_what_is_no_rule(desk: Desk, account: str, body: dict[str, Any], named: str) -> None:
    detail = await desk.refused("POST", f"{account}/rules", 422, LOW | body)
    assert any(word in detail for word in named.split("|")), detail


async def test_a_change_must_leave_a_rule_that_can_be(desk: Desk, account: str) -> None:
    made = await desk.done("POST", f"{account}/rules", LOW)
    path = f"{account}/rules/{made['id']}"
    for change in ({"threshold": 5}, {"threshold_usd": "0"}, {"window_minutes": 5}, {"pause_key": True}):
        await desk.refused("PATCH", path, 422, change)


async def test_rules_of_the_relay_are_made_without_an_account(desk: Desk) -> None:
    made = await desk.done("POST", "/rules", {"name": "parked", "kind": "parked_events", "threshold": 0})
    assert (made["account_id"], made["unit"]) == (None, "events")
    assert "/accounts/" in await desk.refused("POST", "/rules", 422, LOW)


async def test_of_another_account_nothing_is_found_or_used(desk: Desk, account: str) -> None:
    """Its channels are no place for one's notices, its members and keys nobody to watch."""
    other = f"/accounts/{await desk.new_account()}"
    channel = await desk.done("POST", f"{other}/channels", HOOK)
    rule = await desk.done("POST", f"{other}/rules", LOW)
    key = await desk.done("POST", f"{other}/keys", {"name": "k"})
    member = await desk.done("POST", f"{other}/members", {"name": "m"})
    spend = {**LOW, "kind": "spend_velocity"}
    await desk.refused("POST", f"{account}/rules", 422, {**LOW, "channel_ids": [channel["id"]]})
    await desk.refused("POST", f"{account}/rules", 422, {**spend, "key_id": key["id"]})
    await desk.refused("POST", f"{account}/rules", 422, {**spend, "member_id": member["id"]})
    await desk.done("POST", f"{other}/rules", {**spend, "key_id": key["id"], "pause_key": True})
    for path in (account, ""):
        await desk.refused("DELETE", f"{path}/channels/{channel['id']}", 404)
        await desk.refused("POST", f"{path}/channels/{channel['id']}/test", 404)
        await desk.refused("PATCH", f"{path}/rules/{rule['id']}", 404, {"name": "mine"})
        await desk.refused("POST", f"{path}/rules/{rule['id']}/test", 404)
        assert (await desk.done("GET", f"{path}/rules"))["data"] == []


async def incident(desk: Desk, account_id: str, at_ms: int, **fields: Any) -> str:
    name = ids.new_id("inc")
    told: dict[str, Any] = {
        "kind": "error_share",
        "title": "t",
        "text": "x",
        "value": 7,
        "rule_id": "rule_1",
        "number": 1,
    }
    made = Incident(id=name, account_id=account_id, opened_at_ms=at_ms, **{**told, **fields})
    await desk.control.put(made, over=None, by=BY)
    return name


async def test_incidents_come_newest_first(desk: Desk, account: str) -> None:
    account_id = account.removeprefix("/accounts/")
    times = [3_000, 1_000, 2_000, 2_000, 4_000]
    made = {await incident(desk, account_id, at_ms): at_ms for at_ms in times}
    await incident(desk, "", 9_000)
    listed = (await desk.done("GET", f"{account}/incidents"))["data"]
    assert [made[one["id"]] for one in listed] == sorted(times, reverse=True)
    assert {one["id"] for one in listed} == set(made)
    assert (await desk.done("GET", "/incidents"))["data"][0]["account_id"] is None


async def test_an_incident_is_shown_with_its_notices_and_closed_once(desk: Desk, account: str) -> None:
    channel = (await desk.done("POST", f"{account}/channels", HOOK))["id"]
    sent = deliveries.to("inc_1", [channel, "chan_gone"], "opened")
    account_id = account.removeprefix("/accounts/")
    name = await incident(desk, account_id, 1_000, deliveries=sent)
    money = await incident(
        desk, account_id, 2_000, kind="spend_velocity", value=10**9, closed_at_ms=3_000, over_at_ms=4_000
    )
    path = f"{account}/incidents/{name}"
    shown = await desk.done("GET", path)
    assert [(one["channel"], one["status"], one["tries"]) for one in shown["deliveries"]] == [
        ("hook", "pending", 0),
        (None, "pending", 0),
    ]
    assert (shown["status"], shown["value"], shown["value_usd"], shown["text"]) == ("open", 7, None, "x")
    closed = await desk.done("POST", f"{path}/close")
    assert (closed["status"], closed["over_at"]) == ("closed", None)
    await desk.refused("POST", f"{path}/close", 409)
    await desk.refused("GET", f"/incidents/{name}", 404)
    told = await desk.done("GET", f"{account}/incidents/{money}")
    assert (told["value"], told["value_usd"], told["over_at"]) == (None, "1.00", "1970-01-01T00:00:04.000Z")


def test_who_may_do_what() -> None:
    """Payers read, leaders write; the relay's own are its owners' to write."""
    for one in OPERATIONS:
        if "/channels" not in one.path and "/rules" not in one.path and "/incidents" not in one.path:
            continue
        is_read = one.method == "GET"
        assert one.scope == ("alerts:read" if is_read else "alerts:write")
        if one.path.startswith("/accounts/"):
            wanted = access.OPERATORS | access.PAYERS if is_read else access.SUPPORT | access.LEADERS
        else:
            wanted = access.OPERATORS if is_read else access.OPERATOR_OWNER
        assert one.roles == wanted, one.id


async def test_rules_are_kept_as_entities(desk: Desk, account: str) -> None:
    made = await desk.done("POST", f"{account}/rules", {**LOW, "kind": "spend_velocity"})
    rule = desk.context.mirror.get(AlertRule, made["id"])
    assert rule is not None
    assert (rule.threshold, rule.window_minutes, rule.account_id) == (5 * 10**9, 60, account.removeprefix("/accounts/"))
