"""The outbox: what is due, when the next try is, when it is given up, and what a notice says."""

from typing import Any

import msgspec
import pytest

from libs.common.entities import AlertRule, Delivery, Incident
from services.admin.alerts import deliveries
from services.admin.alerts.deliveries import Result

BEGAN_MS = 1_795_000_000_000
HOUR_MS = 3_600_000


def incident(*channels: str, **changes: Any) -> Incident:
    fields: dict[str, Any] = {
        "id": "inc_1",
        "account_id": "acct_1",
        "rule_id": "rule_1",
        "number": 1,
        "kind": "balance_below",
        "title": "little is left",
        "text": "Add credit.",
        "value": 5,
        "opened_at_ms": BEGAN_MS,
        "deliveries": deliveries.to("inc_1", channels, "opened"),
    }
    return Incident(**fields | changes)


def tried(one: Incident, now_ms: int, result: Result) -> Incident:
    """A turn of the outbox."""
    names = {delivery.id for delivery in deliveries.due(one, now_ms)}
    assert names
    return deliveries.noted(deliveries.claimed(one, names, now_ms), dict.fromkeys(names, result))


def test_each_channel_has_one_of_its_own() -> None:
    first, second = deliveries.due(incident("a", "b"), BEGAN_MS)
    assert first.id != second.id
    assert deliveries.due(incident("a", "b"), BEGAN_MS) == [first, second]
    (closed,) = deliveries.to("inc_1", ["a"], "closed")
    assert closed.id not in (first.id, second.id)


def test_what_is_claimed_is_due_for_nobody_else() -> None:
    one = incident("a")
    claimed = deliveries.claimed(one, {one.deliveries[0].id}, BEGAN_MS)
    assert deliveries.due(claimed, BEGAN_MS + 9_999) == []
    (again,) = deliveries.due(claimed, BEGAN_MS + 10_000)
    assert (again.id, again.tries) == (one.deliveries[0].id, 1)


def test_the_waits_grow_and_end_after_a_day() -> None:
    one, now_ms, waits = incident("a"), BEGAN_MS, []
    while (before := one.deliveries[0]).status == "pending":
        now_ms = max(now_ms, before.next_at_ms)
        one = tried(one, now_ms, Result("no"))
        waits.append((one.deliveries[0].next_at_ms - now_ms) // 1000)
    assert waits[:-1] == [10, 60, 300, 1_800, 7_200, 21_600, 21_600, 21_600]
    assert now_ms - BEGAN_MS < 24 * HOUR_MS
    last = one.deliveries[0]
    assert (last.status, last.tries, last.next_at_ms, last.error) == ("failed", 9, 0, "no")
    assert deliveries.due(one, now_ms + 100 * HOUR_MS) == []


@pytest.mark.parametrize(
    ("result", "status", "error"),
    [(Result(), "delivered", ""), (Result("gone", retryable=False), "failed", "gone"), (Result("x"), "pending", "x")],
)
def test_what_came_of_it(result: Result, status: str, error: str) -> None:
    done = tried(incident("a"), BEGAN_MS, result).deliveries[0]
    assert (done.status, done.error, done.tries) == (status, error, 1)


def test_what_is_settled_stays() -> None:
    one = tried(incident("a"), BEGAN_MS, Result())
    assert deliveries.noted(one, {one.deliveries[0].id: Result("late", retryable=False)}) == one


def test_that_it_is_over_is_told_after_that_it_began() -> None:
    one = incident("a", "b")
    over = deliveries.to("inc_1", ["a", "b"], "closed")
    one = msgspec.structs.replace(one, closed_at_ms=BEGAN_MS + 1, deliveries=one.deliveries + over)
    first = {one.deliveries[0].id}
    one = deliveries.noted(deliveries.claimed(one, first, BEGAN_MS), dict.fromkeys(first, Result()))
    assert [(due.channel_id, due.event) for due in deliveries.due(one, BEGAN_MS)] == [("b", "opened"), ("a", "closed")]


def test_a_day_counts_from_the_event_it_tells_of() -> None:
    closed_at_ms = BEGAN_MS + 100 * HOUR_MS
    one = incident(closed_at_ms=closed_at_ms, deliveries=deliveries.to("inc_1", ["a"], "closed"))
    assert tried(one, closed_at_ms, Result("no")).deliveries[0].status == "pending"


@pytest.mark.parametrize(
    ("event", "title", "at_ms"), [("opened", "little is left", 0), ("closed", "Over: little is left", 7)]
)
def test_a_notice(event: Any, title: str, at_ms: int) -> None:
    rule = AlertRule(id="rule_1", account_id="", name="low", kind="balance_below", threshold=1, created_at_ms=1)
    delivery = Delivery(id="ntc_1", channel_id="a", event=event)
    told = deliveries.notice(incident(closed_at_ms=BEGAN_MS + 7), delivery, rule)
    assert (told.id, told.kind, told.title, told.at_ms) == ("ntc_1", f"alert.{event}", title, BEGAN_MS + at_ms)
    assert (told.severity, told.account_id, told.data["rule"]) == ("critical", "acct_1", "low")
    assert deliveries.notice(incident(), delivery, None).data["rule"] is None


def test_a_clock_that_was_ahead_holds_nothing_up() -> None:
    """A try that was claimed then is due now: no wait is so long."""
    ahead = tried(incident("a"), BEGAN_MS + 400 * 24 * HOUR_MS, Result())
    claimed = deliveries.claimed(incident("a"), {ahead.deliveries[0].id}, BEGAN_MS + 400 * 24 * HOUR_MS)
    assert [one.id for one in deliveries.due(claimed, BEGAN_MS)] == [ahead.deliveries[0].id]
    late = deliveries.claimed(incident("a"), {ahead.deliveries[0].id}, BEGAN_MS)
    assert deliveries.due(late, BEGAN_MS) == []
