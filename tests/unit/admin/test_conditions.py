"""When rules fire and when they may fire again; what a rule takes; and what is told."""

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.entities import AlertRule, Incident, RuleKind
from services.admin.alerts import conditions
from services.admin.alerts.conditions import KINDS
from services.admin.notices.notices import Notice

KINDS_OF_ALL = get_args(RuleKind)


def rule(kind: RuleKind, threshold: int | None = None, **changes: Any) -> AlertRule:
    """A valid one."""
    about = KINDS[kind]
    fields: dict[str, Any] = {
        "id": "rule_1",
        "account_id": "" if about.of_relay else "acct_1",
        "name": "test",
        "kind": kind,
        "threshold": about.threshold_max if threshold is None else threshold,
        "created_at_ms": 1,
        "window_minutes": 60 if about.has_window else 0,
    }
    return AlertRule(**fields | changes)


def incident(**changes: Any) -> Incident:
    fields: dict[str, Any] = {"id": "inc_1", "account_id": "", "rule_id": "rule_1", "number": 1, "kind": "drift"}
    return Incident(**{**fields, "title": "t", "value": 1, "opened_at_ms": 1, **changes})


def test_every_kind_is_known() -> None:
    assert set(KINDS) == set(KINDS_OF_ALL)
    for kind in KINDS_OF_ALL:
        conditions.check(rule(kind))


@pytest.mark.parametrize(
    ("kind", "below", "at", "above"),
    [
        ("balance_below", True, False, False),
        ("budget_used", False, True, True),
        ("rate_limited", False, False, True),
        ("error_share", False, True, True),
        ("cache_hit_drop", False, True, True),
        ("spend_velocity", False, True, True),
        ("breaker_open", False, True, True),
        ("unknown_model", False, False, True),
        ("drift", False, False, True),
        ("parked_events", False, False, True),
        ("settlement_lag", False, False, True),
    ],
)
def test_the_edge_of_a_threshold(kind: RuleKind, below: bool, at: bool, above: bool) -> None:
    assert [conditions.holds(rule(kind, 50), value) for value in (49, 50, 51)] == [below, at, above]


OPEN, BY_HAND, OVER = incident(), incident(closed_at_ms=2), incident(closed_at_ms=2, over_at_ms=2)


@pytest.mark.parametrize(
    ("latest", "value", "step"),
    [
        (None, 5, None),
        (None, 6, "open"),
        (OPEN, 6, None),
        (OPEN, 5, "over"),
        (BY_HAND, 6, None),
        (BY_HAND, 5, "over"),
        (OVER, 5, None),
        (OVER, 6, "open"),
        (None, None, None),
        (OPEN, None, None),
        (OVER, None, None),
    ],
)
def test_a_rule_fires_once_per_crossing(latest: Incident | None, value: int | None, step: str | None) -> None:
    """Closed by hand, it stays quiet until its condition is over; unknown is no news."""
    assert conditions.step(rule("parked_events", 5), latest, value) == step


@pytest.mark.parametrize("status", ["disabled", "deleted"])
@pytest.mark.parametrize(("latest", "step"), [(None, None), (OPEN, "over"), (BY_HAND, "over"), (OVER, None)])
def test_a_rule_that_is_off_closes_what_it_opened(status: str, latest: Incident | None, step: str | None) -> None:
    for value in (None, 9):
        assert conditions.step(rule("parked_events", 5, status=status), latest, value) == step


@given(st.lists(st.integers(0, 10), max_size=40), st.integers(0, 10))
def test_incidents_are_as_many_as_crossings(values: list[int], threshold: int) -> None:
    watched, latest, opened = rule("parked_events", threshold), None, 0
    for value in values:
        match conditions.step(watched, latest, value):
            case "open":
                latest, opened = OPEN, opened + 1
            case "over":
                latest = OVER
    above = [False, *(value > threshold for value in values)]
    assert opened == sum(b and not a for a, b in itertools.pairwise(above))


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("drift", {"account_id": "acct_1"}, "kind"),
        ("balance_below", {"account_id": ""}, "kind"),
        ("balance_below", {"threshold": 0}, "threshold"),
        ("budget_used", {"threshold": 101}, "threshold"),
        ("balance_below", {"threshold": 9 * 10**15 + 1}, "0.000000001 to 9000000.00 USD"),
        ("balance_below", {"key_id": "key_1"}, "key_id"),
        ("settlement_lag", {"member_id": "memb_1"}, "member_id"),
        ("error_share", {"member_id": "memb_1", "key_id": "key_1"}, "key_id"),
        ("error_share", {"window_minutes": 0}, "window_minutes"),
        ("error_share", {"window_minutes": 1_441}, "window_minutes"),
        ("budget_used", {"window_minutes": 60}, "window_minutes"),
        ("spend_velocity", {"pause_key": True}, "pause_key"),
        ("error_share", {"pause_key": True, "key_id": "key_1"}, "pause_key"),
    ],
)
def test_what_a_kind_does_not_take(kind: RuleKind, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        conditions.check(rule(kind, **changes))


def test_a_key_may_be_paused() -> None:
    conditions.check(rule("spend_velocity", pause_key=True, key_id="key_1"))


@given(st.sampled_from(KINDS_OF_ALL), st.text(max_size=300), st.text(max_size=5_000), st.integers(-(2**63), 2**63))
def test_whatever_people_are_called_a_notice_can_be_made(kind: RuleKind, name: str, facts: str, value: int) -> None:
    one = rule(kind, name=name)
    title, text = conditions.title(one, value, name), conditions.text(one, facts)
    Notice(
        id="n", kind="k", title=f"Over: {title}", text=text, severity="s", account_id="", at_ms=1, data={"of": name[:0]}
    )


def test_a_sentence_has_its_figures() -> None:
    one = rule("balance_below", 5 * 10**9, name="low")
    assert conditions.title(one, 4_990_000_000, "account Acme") == (
        "account Acme: 4.99 USD are available, less than 5.00 USD"
    )
    assert conditions.text(one, "").startswith("Rule low: below 5.00 USD. Add credit")
    assert conditions.text(rule("error_share", 5), "3 of 60 requests failed.").startswith(
        "Rule test: from 5 %. 3 of 60 requests failed. The request list"
    )


def test_shares_are_rounded_down() -> None:
    assert [conditions.percent(*pair) for pair in ((799, 1000), (800, 1000), (1, 0), (0, 0))] == [79, 80, 100, 100]
    assert conditions.share_drop(60, 100, 90, 100) == 30
    assert conditions.share_drop(601, 1000, 90, 100) == 29
    assert conditions.share_drop(95, 100, 90, 100) == 0
    assert conditions.share_drop(0, 0, 90, 100) == conditions.share_drop(1, 9, 0, 0) == 0
