"""From a condition to a receiver: opened once by whoever comes first, sent until it arrives, and what is seen of it."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from standardwebhooks.webhooks import Webhook

from libs.common import failpoints, ids
from libs.common.entities import AlertRule, Channel, Delivery, Incident
from libs.common.sealing import Sealer, new_key
from services.admin.resource import Context
from tests import apart
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import Admin
from tests.integration.alerts_rig import BY, Alerts
from tests.unit.accounting.samples import credit
from tests.unit.gateway.upstreams import Asked, Server, Wire, serving

pytestmark = [pytest.mark.anyio, pytest.mark.alone]
nats_url, redis_url = apart.nats_url, apart.redis_url
"""Stores of its own: the control plane of another test that is still up would do the chores of this one."""
OK, BUSY, NO = (b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status for status in (200, 503, 410))
USD = 10**9


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def alerts(rig: Rig) -> AsyncIterator[Alerts]:
    async with Alerts.over(rig) as made:
        yield made


class Case:
    """An account whose balance is low, a rule about it, and a receiver that answers as it is told."""

    def __init__(self, alerts: Alerts, server: Server, rule: AlertRule, secret: str) -> None:
        self.alerts, self.server, self.rule, self.secret = alerts, server, rule, secret
        self.answer = OK
        self.meanwhile = self.nothing

    async def nothing(self) -> None:
        """Between a notice and its answer."""

    async def close(self) -> None:
        """By hand."""
        one = self.alerts.incidents(self.rule)[-1]
        found = await self.alerts.context.control.find(Incident, one.id)
        assert found is not None
        await self.alerts.put(msgspec.structs.replace(found.entity, closed_at_ms=9), over=found, by=BY)

    @property
    def asked(self) -> list[Asked]:
        return [asked for wire in self.server.wires for asked in wire.asked]

    def told(self) -> list[tuple[str, str]]:
        """Type and id of each notice; every signature is right."""
        return [(str(self.verified(one)["type"]), headers(one)["webhook-id"]) for one in self.asked]

    def verified(self, asked: Asked) -> dict[str, Any]:
        found: dict[str, Any] = Webhook(self.secret).verify(asked.body, headers(asked))
        assert found == json.loads(asked.body)
        return found

    def sent(self) -> list[Delivery]:
        return list(self.alerts.incidents(self.rule)[-1].deliveries)

    async def add(self, nanos: int) -> None:
        await self.alerts.put(credit(self.rule.account_id, nanos), over=None, by=BY)

    async def due(self) -> None:
        """The next tries are due now."""
        one = self.alerts.incidents(self.rule)[-1]
        found = await self.alerts.context.control.find(Incident, one.id)
        assert found is not None
        now = tuple(msgspec.structs.replace(delivery, next_at_ms=0) for delivery in found.entity.deliveries)
        await self.alerts.put(msgspec.structs.replace(found.entity, deliveries=now), over=found, by=BY)


def headers(asked: Asked) -> dict[str, str]:
    lines = [line.decode().split(": ", 1) for line in asked.head.split(b"\r\n")[1:] if line]
    return {name.lower(): value for name, value in lines}


@contextlib.asynccontextmanager
async def receiving(alerts: Alerts) -> AsyncIterator[Case]:
    async def answer(wire: Wire) -> None:
        await wire.request()
        await made.meanwhile()
        wire.send(made.answer)

    account_id = await alerts.new_account(4 * USD)
    async with serving(answer) as server:
        channel_id, secret = await alerts.new_channel(account_id, f"{server.url}/hook")
        told: dict[str, Any] = {"account_id": account_id, "window_minutes": 0, "channel_ids": (channel_id,)}
        made = Case(alerts, server, await alerts.new_rule("balance_below", 5 * USD, **told), secret)
        yield made


@pytest.fixture
async def case(alerts: Alerts) -> AsyncIterator[Case]:
    async with receiving(alerts) as made:
        yield made


async def test_two_watchers_at_once_open_one_incident(case: Case, rig: Rig) -> None:
    """Their mirrors do not know of each other yet: both want to open it, and both to close it."""
    async with Alerts.over(rig, sealer=case.alerts.context.sealer) as other:
        await until(lambda: knows(other, case.rule))
        for wanted in (True, False):
            await asyncio.gather(case.alerts.watcher.run(), other.watcher.run())
            for one in (case.alerts, other):
                await until(functools.partial(stands, one, case.rule, wanted))
            await case.add(2 * USD)
        for _ in range(10):  # one may be in the other's way, and tries again at its next turn
            await asyncio.gather(case.alerts.outbox.run(), other.outbox.run())
    assert [kind for kind, _ in case.told()] == ["alert.opened", "alert.closed"]


async def knows(alerts: Alerts, rule: AlertRule) -> bool:
    return alerts.context.mirror.get(AlertRule, rule.id) is not None


async def stands(alerts: Alerts, rule: AlertRule, is_open: bool) -> bool:
    return alerts.stands(rule) == [is_open]


async def test_a_watcher_that_is_behind_opens_nothing_twice(case: Case, rig: Rig) -> None:
    """It has seen nothing of the first incident: the id it would open is taken."""
    await case.alerts.comes_to(case.rule, True)
    async with Alerts.over(rig) as behind:
        await until(lambda: knows(behind, case.rule))
        behind.context.mirror._entities[Incident].clear()
        await behind.watcher.run()
        (one,) = case.alerts.incidents(case.rule)
        found = await case.alerts.context.control.find(Incident, one.id)
        assert found is not None
        assert found.entity == one


async def test_a_receiver_is_told_once_and_can_verify_it(case: Case) -> None:
    await case.alerts.comes_to(case.rule, True)
    for _ in range(3):
        await case.alerts.outbox.run()
    (asked,) = case.asked
    told = case.verified(asked)
    incident = case.alerts.incidents(case.rule)[0]
    assert told["data"]["title"] == "account test: 4.00 USD are available, less than 5.00 USD"
    assert told["data"]["details"]["incident_id"] == incident.id
    assert headers(asked)["webhook-id"] == incident.deliveries[0].id
    assert [(one.status, one.tries) for one in incident.deliveries] == [("delivered", 1)]
    await case.add(USD)
    await case.alerts.comes_to(case.rule, False)
    await case.alerts.outbox.run()
    assert [kind for kind, _ in case.told()] == ["alert.opened", "alert.closed"]
    assert len({name for _, name in case.told()}) == 2


async def test_it_is_tried_again_under_the_same_id(case: Case) -> None:
    case.answer = BUSY
    await case.alerts.comes_to(case.rule, True)
    await case.alerts.outbox.run()
    await case.alerts.outbox.run()
    (one,) = case.sent()
    assert (one.status, one.tries, one.error) == ("pending", 1, "The receiver answered with status 503.")
    await case.due()
    case.answer = OK
    await case.alerts.outbox.run()
    assert [(one.status, one.tries, one.error) for one in case.sent()] == [("delivered", 2, "")]
    assert len(case.told()) == 2
    assert len({name for _, name in case.told()}) == 1


async def test_a_failure_is_seen(case: Case) -> None:
    case.answer = NO
    await case.alerts.comes_to(case.rule, True)
    await case.alerts.outbox.run()
    (one,) = case.sent()
    assert (one.status, one.next_at_ms, one.error) == ("failed", 0, "The receiver answered with status 410.")


async def test_who_dies_before_he_notes_it_sends_again_under_the_same_id(case: Case) -> None:
    await case.alerts.comes_to(case.rule, True)
    failpoints.arm("notices_sent", dies)
    try:
        with pytest.raises(RuntimeError):
            await case.alerts.outbox.run()
    finally:
        failpoints.disarm()
    await case.alerts.outbox.run()
    assert len(case.told()) == 1  # its next try is not due yet
    assert case.sent()[0].status == "pending"
    await case.due()
    await case.alerts.outbox.run()
    assert len(case.told()) == 2
    assert len({name for _, name in case.told()}) == 1
    assert case.sent()[0].status == "delivered"


def dies() -> None:
    raise RuntimeError("died")


async def test_an_incident_may_be_closed_while_its_notice_is_on_its_way(case: Case) -> None:
    await case.alerts.comes_to(case.rule, True)
    case.meanwhile = case.close
    await case.alerts.outbox.run()
    (after,) = case.alerts.incidents(case.rule)
    assert (after.closed_at_ms, after.deliveries[0].status) == (9, "delivered")


@pytest.mark.parametrize("what", ["deleted", "shut"])
async def test_a_channel_that_cannot_be_used(case: Case, what: str) -> None:
    await case.alerts.comes_to(case.rule, True)
    context = case.alerts.context
    if what == "deleted":
        await change_channel(context, case.rule.channel_ids[0], status="deleted", sealed="")
    else:
        case.alerts.outbox._context = msgspec.structs.replace(context, sealer=Sealer(new_key()))
    await case.alerts.outbox.run()
    (one,) = case.sent()
    assert one.status == ("failed" if what == "deleted" else "pending")
    assert one.error
    assert case.asked == []


async def change_channel(context: Context, channel_id: str, **fields: Any) -> None:
    found = await context.control.find(Channel, channel_id)
    assert found is not None
    await context.control.put(msgspec.structs.replace(found.entity, **fields), over=found, by=BY)


async def test_closed_by_hand_it_stays_quiet_until_it_is_over(case: Case) -> None:
    await case.alerts.comes_to(case.rule, True)
    await case.close()
    await case.alerts.stays(case.rule, False)
    await case.add(USD)
    await case.alerts.stays(case.rule, False)
    assert [one.event for one in case.sent()] == ["opened"]  # who has closed it is not told that it is
    await case.add(-USD)
    await case.alerts.comes_to(case.rule, False, True)


@pytest.mark.parametrize("status", ["disabled", "deleted"])
async def test_a_rule_that_is_off_closes_what_it_opened_and_tells_nobody(case: Case, status: str) -> None:
    await case.alerts.comes_to(case.rule, True)
    await case.alerts.change(AlertRule, case.rule.id, status=status)
    await case.alerts.comes_to(case.rule, False)
    assert [one.event for one in case.sent()] == ["opened"]


async def test_of_many_rules_one_that_conflicts_does_not_stop_the_others(alerts: Alerts) -> None:
    account_id = await alerts.new_account(USD)
    told: dict[str, Any] = {"account_id": account_id, "window_minutes": 0}
    rules = [await alerts.new_rule("balance_below", 2 * USD, **told) for _ in range(2)]
    taken = Incident(
        id=ids.derived_id("inc", rules[0].id, "1"),
        account_id="",
        rule_id="rule_of_nobody",
        number=1,
        kind="drift",
        title="t",
        value=1,
        opened_at_ms=1,
        closed_at_ms=1,
        over_at_ms=1,
    )
    await alerts.put(taken, over=None, by=BY)
    await alerts.comes_to(rules[1], True)
    assert alerts.incidents(rules[0]) == []


async def test_the_whole_of_it_over_the_api(rig: Rig, case: Case) -> None:
    """As people use it: chores at work, a channel with its secret, a test, a rule, an incident with its notices."""
    urls = (rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url)
    settings: dict[str, Any] = {"alerts_seconds": 0.2, "webhook_networks": "127.0.0.1/32, ::1/128"}
    async with Admin.over(*urls, **settings) as admin:
        account_id = await admin.new_account("10.00")
        account = f"/accounts/{account_id}"
        body = {"name": "hook", "kind": "webhook", "address": f"{case.server.url}/other"}
        channel = await admin.done("POST", f"{account}/channels", json=body)
        case.secret = channel["secret"]
        assert (await admin.done("POST", f"{account}/channels/{channel['id']}/test"))["error"] is None
        case.answer = NO
        tried = await admin.done("POST", f"{account}/channels/{channel['id']}/test")
        assert (tried["delivered"], tried["error"]) == (False, "The receiver answered with status 410.")
        case.answer = OK
        asked = {"name": "low", "kind": "balance_below", "threshold_usd": "5.00", "channel_ids": [channel["id"]]}
        rule = await admin.done("POST", f"{account}/rules", json=asked)
        (tried,) = (await admin.done("POST", f"{account}/rules/{rule['id']}/test"))["data"]
        assert tried["delivered"]
        assert [kind for kind, _ in case.told()] == ["alert.test"] * 3
        await admin.done("POST", f"{account}/credits", json={"amount_usd": "-5.01", "reason": "test"})
        await until(lambda: shows(admin, account, ["delivered"]))
        await admin.done("POST", f"{account}/credits", json={"amount_usd": "5.00", "reason": "test"})
        await until(lambda: shows(admin, account, ["delivered", "delivered"]))
        (incident,) = (await admin.done("GET", f"{account}/incidents?status=closed"))["data"]
        assert (incident["value_usd"], incident["severity"], incident["number"]) == ("4.99", "critical", 1)
        await admin.refused("POST", f"{account}/incidents/{incident['id']}/close", 409)
    assert [kind for kind, _ in case.told()] == ["alert.test"] * 3 + ["alert.opened", "alert.closed"]


async def test_incidents_are_turned_page_by_page(rig: Rig, alerts: Alerts) -> None:
    account_id, times = await alerts.new_account(), [3_000, 1_000, 2_000, 2_000, 4_000]
    for number, at_ms in enumerate(times):
        told: dict[str, Any] = {"account_id": account_id, "rule_id": "r", "number": number, "kind": "error_share"}
        name = ids.derived_id("inc", account_id, str(number))
        await alerts.put(Incident(id=name, title="t", value=number, opened_at_ms=at_ms, **told), over=None, by=BY)
    async with Admin.over(rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url) as admin:
        path, seen, cursor = f"/accounts/{account_id}/incidents?limit=2", list[int](), ""
        while cursor is not None:
            page = await admin.done("GET", path + (f"&cursor={cursor}" if cursor else ""))
            seen += [one["value"] for one in page["data"]]
            cursor = page["next_cursor"]
        assert [times[number] for number in seen] == sorted(times, reverse=True)
        assert len(set(seen)) == len(times)
        await admin.refused("GET", path + "&cursor=aW5jXzA", 400)


async def shows(admin: Admin, account: str, statuses: list[str]) -> bool:
    """What the API says of the notices of the first incident."""
    for one in (await admin.done("GET", f"{account}/incidents"))["data"]:
        whole = await admin.done("GET", f"{account}/incidents/{one['id']}")
        return [each["status"] for each in whole["deliveries"]] == statuses
    return False
