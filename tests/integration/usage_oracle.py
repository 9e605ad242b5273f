"""What usage figures are, by their definition: rows one by one, local time by zoneinfo. Shares nothing with the engine."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

TIMES = {"hour", "day", "month"}
COUNTED_REASONS = {"requests", "input", "output", "free", "in_flight", "budget", "budget_held", "balance_held"}
NAMES = {"model": "model_answered", "key": "key_id", "member": "member_id", "account": "account_id"}
Line = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question, in plain words."""

    metrics: tuple[str, ...]
    group: tuple[str, ...]
    start: datetime
    end: datetime
    zone: str
    top: int
    order: str
    accounts: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def answer(asked: Asked, rows: list[Line], refusals: list[Line]) -> list[tuple[tuple[Any, ...], bool, dict[str, Any]]]:
    """Lines in order: values, whether it is the rest, figures."""
    found: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in _wanted(asked, rows, refusals):
        found[tuple(value_of(asked, line, name) for name in asked.group)].append(line)
    timed = [number for number, name in enumerate(asked.group) if name in TIMES]
    plain = [number for number, name in enumerate(asked.group) if name not in TIMES]

    def without_time(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[number] for number in plain)

    whole: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for values, lines in found.items():
        whole[without_time(values)] += lines
    heaviest = sorted(whole, key=lambda one: (-_weight(asked, whole[one]), one))
    kept = heaviest[: asked.top] if plain else heaviest
    shown: dict[tuple[tuple[Any, ...], bool], list[Line]] = defaultdict(list)
    for values, lines in found.items():
        rest = without_time(values) not in kept
        shown[tuple("other" if rest and number in plain else value for number, value in enumerate(values)), rest] += (
            lines
        )
    named = {(without_time(values), rest) for values, rest in shown} if plain else {((), False)}
    if timed:
        shown = _with_empty_times(asked, shown, named, timed[0])
    if not asked.group:
        shown[(), False] = shown.get(((), False), [])
    weight = {(one, False): (-_weight(asked, whole[one]), one) for one in kept}

    def place(key: tuple[tuple[Any, ...], bool]) -> tuple[Any, ...]:
        return ([key[0][number] for number in timed], key[1], weight.get((without_time(key[0]), key[1]), (0, ())))

    return [(key[0], key[1], figures(asked, shown[key])) for key in sorted(shown, key=place)]


def figures(asked: Asked, lines: list[Line]) -> dict[str, Any]:
    """The metrics of some rows and refusals."""
    rows = [line for line in lines if "request_id" in line]
    found: dict[str, Any] = {}
    for metric in asked.metrics:
        match metric:
            case "cost":
                found[metric] = sum(row["total_nanos"] for row in rows)
            case "requests":
                found[metric] = len(rows)
            case "errors":
                found[metric] = len([row for row in rows if row["status"] == 0 or row["status"] >= 400])
            case "rate_limited":
                refused = sum(line["refused"] for line in lines if "refused" in line)
                found[metric] = refused + len([row for row in rows if row["status"] == 429])
            case "first_byte_ms":
                times = [row["first_byte_us"] for row in rows if row["first_byte_us"]]
                mean = Fraction(sum(times), 1000 * len(times)) if times else None
                found |= {"first_byte_us": sum(times), "first_bytes": len(times)}
                found[metric] = None if mean is None else math.floor(mean + Fraction(1, 2))
            case _:
                found[metric] = sum(_tokens(row, metric) for row in rows)
    return found


def before(asked: Asked) -> tuple[datetime, datetime]:
    """The same stretch of the local calendar, ending where this one begins."""
    zone = ZoneInfo(asked.zone)
    start, end = asked.start.astimezone(zone), asked.end.astimezone(zone)
    shown = end.replace(tzinfo=None) - start.replace(tzinfo=None)
    if shown <= timedelta(0):
        return asked.start - (asked.end - asked.start), asked.start
    earlier = (start.replace(tzinfo=None) - shown).replace(tzinfo=zone, fold=start.fold)
    return earlier.astimezone(UTC), asked.start


def value_of(asked: Asked, line: Line, name: str) -> Any:
    """By what a line is told from others."""
    if name in TIMES:
        return _time_key(name, line["time"].astimezone(ZoneInfo(asked.zone)))
    if name == "tag":
        return asked.tags.get(line["key_id"], "")
    return line.get(NAMES.get(name, name), "")


def read_label(unit: str, label: str) -> Any:
    """What the engine calls a time, as the key of the same time here."""
    match unit:
        case "hour":
            return _time_key(unit, datetime.fromisoformat(label))
        case "day":
            return date.fromisoformat(label)
        case _:
            return tuple(int(part) for part in label.split("-"))


def _time_key(unit: str, local: datetime) -> Any:
    """An hour that comes twice is two; they differ in their offset, and the one that is further ahead comes first."""
    match unit:
        case "hour":
            offset = local.utcoffset()
            assert offset is not None
            return local.date(), local.hour, -offset
        case "day":
            return local.date()
        case _:
            return local.year, local.month


def _wanted(asked: Asked, rows: list[Line], refusals: list[Line]) -> Iterator[Line]:
    counted = [one for one in refusals if one["reason"] in COUNTED_REASONS] if "rate_limited" in asked.metrics else []
    for line in [*rows, *counted]:
        if asked.accounts and line["account_id"] not in asked.accounts:
            continue
        if asked.start <= line["time"] < asked.end and all(
            value_of(asked, line, name) in values for name, values in asked.filters.items()
        ):
            yield line


def _weight(asked: Asked, lines: list[Line]) -> int:
    weight = figures(asked, lines)[asked.order]
    return -1 if weight is None else int(weight)


def _tokens(row: Line, name: str) -> int:
    return sum(
        quantity
        for price_class, quantity in zip(row["line_classes"], row["line_quantities"], strict=True)
        if price_class == name
    )


def _with_empty_times(asked: Asked, shown: Any, named: set[Any], position: int) -> Any:
    """Every quarter of an hour of the range is in some time: no clock is set by less."""
    whole, at = dict(shown), asked.start
    times = set()
    while at < asked.end:
        times.add(_time_key(asked.group[position], at.astimezone(ZoneInfo(asked.zone))))
        at = datetime.fromtimestamp((at.timestamp() // 900 + 1) * 900, UTC)
    for values, rest in named:
        for time in times:
            whole.setdefault(((*values[:position], time, *values[position:]), rest), [])
    return whole
