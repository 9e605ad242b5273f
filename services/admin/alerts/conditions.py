"""What alert rules may be about: units and bounds of their thresholds, when a condition holds, and how it is told. Pure.

A rule fires when its condition begins to hold, and may fire again once it is over: for a balance or a budget as soon as there is
enough again, for a share as soon as it is below the threshold.
"""

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from libs.common import money
from libs.common.entities import AlertRule, Incident, RuleKind

Unit = Literal["usd", "percent", "points", "events", "seconds"]
Severity = Literal["warning", "critical"]
Step = Literal["open", "over"]
WINDOW_MINUTES_MAX: Final = 1_440
REQUESTS_MIN: Final = 20
"""Fewer in the window say nothing about the share of errors."""
CACHE_REQUESTS_MIN: Final = 50
"""Fewer, now or in the same hours of the week before, say nothing about caches."""
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_NAME_CHARS_MAX: Final = 60
_EVENTS_MAX: Final = 1_000_000_000
_SECONDS_MAX: Final = 86_400


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of rule measures."""

    unit: Unit
    """Of threshold and value; `usd`: nano-dollars."""
    holds: Literal["below", "above", "reached"]
    """below: value < threshold; above: value > threshold; reached: value >= threshold."""
    title: str
    advice: str
    severity: Severity = "warning"
    threshold_min: int = 1
    threshold_max: int
    of_relay: bool = False
    """About the relay itself; else about an account."""
    narrows: bool = False
    """It may be about one member or one key."""
    has_window: bool = False
    may_pause: bool = False


KINDS: Final[Mapping[RuleKind, Kind]] = {
    "balance_below": Kind(
        unit="usd", holds="below", threshold_max=money.AMOUNT_NANOS_MAX, severity="critical",
        title="{of}: {value} USD are available, less than {threshold} USD",
        advice="Add credit, or requests will be refused when it is spent.",
    ),
    "budget_used": Kind(
        unit="percent", holds="reached", threshold_max=100, narrows=True,
        title="{of}: {value} % of a budget are spent",
        advice="When a budget is spent, requests are refused until it begins anew or is raised.",
    ),
    "rate_limited": Kind(
        unit="events", holds="above", threshold_min=0, threshold_max=_EVENTS_MAX, narrows=True, has_window=True,
        title="{of}: {value} requests met a rate limit within {window} minutes",
        advice="Raise the limit, or send fewer requests at once.",
    ),
    "error_share": Kind(
        unit="percent", holds="reached", threshold_max=100, narrows=True, has_window=True, severity="critical",
        title="{of}: {value} % of requests failed within {window} minutes",
        advice="The request list, filtered by status or outcome, shows which.",
    ),
    "cache_hit_drop": Kind(
        unit="points", holds="reached", threshold_max=100, narrows=True, has_window=True,
        title="{of}: {value} percentage points less of the input are read from caches than usual",
        advice="Something at the beginning of the prompts may have changed: caches are found by equal beginnings.",
    ),
    "spend_velocity": Kind(
        unit="usd", holds="reached", threshold_max=money.AMOUNT_NANOS_MAX, narrows=True, has_window=True,
        severity="critical", may_pause=True,
        title="{of}: {value} USD were spent within {window} minutes",
        advice="See which requests they were; a key that got into wrong hands should be deleted.",
    ),
    "breaker_open": Kind(
        unit="seconds", holds="reached", threshold_max=_SECONDS_MAX, of_relay=True, severity="critical",
        title="An upstream credential has not been usable for {value} seconds",
        advice="GET /api/v1/upstreams shows why.",
    ),
    "unknown_model": Kind(
        unit="events", holds="above", threshold_min=0, threshold_max=_EVENTS_MAX, of_relay=True,
        title="{value} models of the upstream are not in the price book",
        advice="They are refused until the price book has them.",
    ),
    "drift": Kind(
        unit="events", holds="above", threshold_min=0, threshold_max=_EVENTS_MAX, of_relay=True, has_window=True,
        severity="critical",
        title="{value} numbers in Redis were repaired within {window} minutes",
        advice="They had drifted from archive and log; find out why.",
    ),
    "parked_events": Kind(
        unit="events", holds="above", threshold_min=0, threshold_max=_EVENTS_MAX, of_relay=True, severity="critical",
        title="{value} events are parked",
        advice="No retry can settle them: look at them, then replay or drop them.",
    ),
    "settlement_lag": Kind(
        unit="seconds", holds="above", threshold_max=_SECONDS_MAX, of_relay=True, severity="critical",
        title="Settlement is {value} seconds behind",
        advice="Accounting is down, too slow, or cannot reach its stores; balances are too high until it has caught up.",
    ),
}  # fmt: skip


def check(rule: AlertRule) -> None:
    """Raises ValueError with a sentence that names the field."""
    kind = KINDS[rule.kind]
    if kind.of_relay and rule.account_id:
        raise ValueError(f"kind: {rule.kind} is about the relay itself; its operators make such rules under /rules.")
    if not kind.of_relay and not rule.account_id:
        raise ValueError(f"kind: {rule.kind} is about an account; make it under /accounts/{{account_id}}/rules.")
    if not kind.threshold_min <= rule.threshold <= kind.threshold_max:
        raise ValueError(f"threshold of {rule.kind} must be {_bounds(kind)}.")
    if (rule.member_id or rule.key_id) and not kind.narrows:
        raise ValueError(f"{'member_id' if rule.member_id else 'key_id'}: {rule.kind} is not about one member or key.")
    if rule.member_id and rule.key_id:
        raise ValueError("key_id: give a member or a key, not both.")
    if kind.has_window and not 1 <= rule.window_minutes <= WINDOW_MINUTES_MAX:
        raise ValueError(f"window_minutes must lie between 1 and {WINDOW_MINUTES_MAX}.")
    if not kind.has_window and rule.window_minutes:
        raise ValueError(f"window_minutes: {rule.kind} looks at how it is now, not at a window.")
    if rule.pause_key and not (kind.may_pause and rule.key_id):
        raise ValueError("pause_key: only spend_velocity of one key (key_id) can pause a key.")


def holds(rule: AlertRule, value: int) -> bool:
    """Whether the condition of a rule holds."""
    match KINDS[rule.kind].holds:
        case "below":
            return value < rule.threshold
        case "above":
            return value > rule.threshold
        case _:
            return value >= rule.threshold


def step(rule: AlertRule, latest: Incident | None, value: int | None) -> Step | None:
    """What is to be done about a rule whose latest incident this is. `value`: None while it cannot be measured."""
    is_on = latest is not None and latest.over_at_ms is None
    if rule.status != "active":
        return "over" if is_on else None
    if value is None or holds(rule, value) == is_on:
        return None
    return "over" if is_on else "open"


def title(rule: AlertRule, value: int, of: str) -> str:
    """One line with figures. `of`: whom it is about."""
    unit = KINDS[rule.kind].unit
    return KINDS[rule.kind].title.format(
        of=plain(of), value=figure(unit, value), threshold=figure(unit, rule.threshold), window=rule.window_minutes
    )


def text(rule: AlertRule, facts: str) -> str:
    """What is said beside the title. `facts`: sentences about what was measured."""
    kind = KINDS[rule.kind]
    told = f"Rule {plain(rule.name)}: {_WHEN[kind.holds]} {figure(kind.unit, rule.threshold)} {_UNITS[kind.unit]}."
    return " ".join(filter(None, (told, plain(facts, 2_000), kind.advice)))


def figure(unit: Unit, value: int) -> str:
    """As it is written in a sentence."""
    return money.format_usd(value) if unit == "usd" else str(value)


def plain(name: str, chars_max: int = _NAME_CHARS_MAX) -> str:
    """What people have written, fit for one line of a notice."""
    line = _UNPRINTABLE.sub(" ", name).strip()
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def percent(part: int, whole: int) -> int:
    """Rounded down, so that 80 means 80 or more; of nothing, everything is used."""
    return part * 100 // whole if whole > 0 else 100


def share_drop(read_now: int, input_now: int, read_before: int, input_before: int) -> int:
    """By how many percentage points the share of cached input fell; 0 if it did not, or nothing is known."""
    if input_now <= 0 or input_before <= 0:
        return 0
    return max((read_before * input_now - read_now * input_before) * 100 // (input_now * input_before), 0)


_WHEN: Final = {"below": "below", "above": "more than", "reached": "from"}
_UNITS: Final[Mapping[Unit, str]] = {
    "usd": "USD",
    "percent": "%",
    "points": "percentage points",
    "events": "in number",
    "seconds": "seconds",
}


def _bounds(kind: Kind) -> str:
    lowest, highest = figure(kind.unit, kind.threshold_min), figure(kind.unit, kind.threshold_max)
    return f"{lowest} to {highest} {_UNITS[kind.unit]}".replace(" in number", "")
