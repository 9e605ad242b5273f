"""One turn of the outbox without stores: what is noted when others write the incident too, and when a sender breaks."""

import asyncio
from typing import Any

import msgspec
import pytest

from libs.common import clock, runtime
from libs.common.entities import Channel, Incident
from services.admin.alerts import deliveries, outbox
from services.admin.alerts.outbox import Outbox
from services.admin.control import By, Found, Put
from services.admin.notices import targets
from services.admin.notices.notices import ChannelTarget, Notice
from services.admin.notices.senders import Senders, SenderSettings
from services.admin.problems import Conflict
from tests.unit.admin.desk import Desk, MemoryControl

pytestmark = pytest.mark.anyio
BY = By(actor="test", address="", reason="test")


class BusyControl(MemoryControl):
    """Another change comes first, as often as it is told."""

    conflicts_at: frozenset[int] = frozenset()
    puts = 0

    async def put_all(self, puts: Any, *, by: By) -> list[Found[Any]]:
        self.puts += 1
        if self.puts in self.conflicts_at:
            raise Conflict("first")
        told: list[Put] = list(puts)
        return await super().put_all(told, by=by)


class Sent(Senders):
    """Takes note of what it is given, and breaks if it is told to."""

    def __init__(self) -> None:
        super().__init__(SenderSettings())
        self.ids: list[str] = []
        self.accounts: list[str] = []
        self.breaks_at = ""
        self.slow_for = "nobody"
        self.over = asyncio.Event()

    async def send(self, channel: ChannelTarget, notice: Notice) -> None:
        self.ids.append(notice.id)
        self.accounts.append(notice.account_id)
        if notice.account_id == self.slow_for:
            await self.over.wait()
        if channel.address.endswith(self.breaks_at or "?"):
            raise ZeroDivisionError


class Case:
    """An incident with a notice for each of two channels."""

    def __init__(self, desk: Desk, control: BusyControl, sent: Sent) -> None:
        self.control, self.sent = control, sent
        self.outbox = Outbox(msgspec.structs.replace(desk.context, senders=sent))
        self.context = desk.context

    async def fill(self) -> None:
        for name in ("chan_a", "chan_b"):
            target = ChannelTarget(kind="email", address=f"{name}@example.com")
            sealed = targets.seal(self.context.sealer, name, target)
            channel = Channel(id=name, account_id="", name=name, kind="email", sealed=sealed, hint="", created_at_ms=1)
            await self.control.put(channel, over=None, by=BY)
        told = deliveries.to("inc_1", ["chan_a", "chan_b"], "opened")
        incident = Incident(
            id="inc_1", account_id="", rule_id="rule_1", number=1, kind="drift", title="t", value=1, opened_at_ms=clock.unix_ms(),
            deliveries=told,
        )  # fmt: skip
        await self.control.put(incident, over=None, by=BY)
        self.control.puts = 0

    async def add(self, incident_id: str, account_id: str) -> None:
        found = await self.control.find(Incident, "inc_1")
        assert found is not None
        told = deliveries.to(incident_id, ["chan_a"], "opened")
        more = msgspec.structs.replace(found.entity, id=incident_id, account_id=account_id, deliveries=told)
        await self.control.put(more, over=None, by=BY)

    def statuses(self) -> list[tuple[str, int]]:
        incident = self.control.mirror.get(Incident, "inc_1")
        assert incident is not None
        return [(one.status, one.tries) for one in incident.deliveries]


@pytest.fixture
async def case() -> Case:
    control = BusyControl()
    made = Case(Desk.opened("a" * 43 + "=", control=control), control, Sent())
    await made.fill()
    return made


async def test_both_are_sent_with_two_changes(case: Case) -> None:
    await case.outbox.run()
    await case.outbox.run()
    assert case.statuses() == [("delivered", 1)] * 2
    assert (len(set(case.sent.ids)), case.control.puts) == (2, 2)


async def test_who_loses_the_claim_sends_nothing(case: Case) -> None:
    case.control.conflicts_at = frozenset({1})
    await case.outbox.run()
    assert case.statuses() == [("pending", 0)] * 2
    assert case.sent.ids == []


async def test_what_came_of_it_is_noted_although_others_write_too(case: Case) -> None:
    case.control.conflicts_at = frozenset({2, 3})
    await case.outbox.run()
    assert case.statuses() == [("delivered", 1)] * 2


async def test_what_cannot_be_noted_is_left_for_the_next_try(case: Case) -> None:
    case.control.conflicts_at = frozenset(range(2, 99))
    await case.outbox.run()
    assert case.statuses() == [("pending", 1)] * 2


async def test_one_that_breaks_does_not_hold_up_the_other(case: Case) -> None:
    case.sent.breaks_at = "chan_a@example.com"
    await case.outbox.run()
    assert case.statuses() == [("pending", 1), ("delivered", 1)]


async def test_slow_receivers_of_an_account_hold_up_nobody_else(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is due with them, nor what comes while they are waited for."""
    monkeypatch.setattr(outbox, "_LOOK_S", 0.01)
    case.sent.slow_for = "acct_slow"
    for number in range(100):
        await case.add(f"inc_0{number}", "acct_slow")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        turn = group.create_task(case.outbox.run())
        while case.statuses() != [("delivered", 1)] * 2:
            await asyncio.sleep(0.01)
        await case.add("inc_2", "acct_late")
        while "acct_late" not in case.sent.accounts:
            await asyncio.sleep(0.01)
        assert not turn.done() and case.sent.accounts.count("acct_slow") < 100
        case.sent.over.set()
    assert case.sent.accounts.count("acct_slow") == len(set(case.sent.ids)) - 3 == 100


async def test_a_turn_that_is_cancelled_leaves_nothing_running(case: Case) -> None:
    case.sent.slow_for = "acct_slow"
    await case.add("inc_2", "acct_slow")
    turn = asyncio.get_running_loop().create_task(case.outbox.run())
    while "acct_slow" not in case.sent.accounts:
        await asyncio.sleep(0.01)
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    assert runtime.running() == []
