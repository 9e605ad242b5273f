"""Asks the ledger about usage and shapes the answer. Figures are exact integers, and totals are the sums of what is shown."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from libs.common import clock
from services.admin.ledger import Ledger
from services.admin.usage import query as usage_query
from services.admin.usage import times as usage_time
from services.admin.usage.query import Plan, Query
from services.admin.usage.times import Range

OTHER: Final = "other"
Sums = tuple[int, ...]
Figures = dict[str, int | None]
Key = tuple[tuple[str, ...], bool]
"""Values of a line's groups, and whether it is the rest."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an answer."""

    values: tuple[str, ...]
    """In the order of the query's groups. A time is where it begins, in the zone of the query."""
    other: bool = False
    """It is the rest: all groups beyond the largest ones."""
    metrics: Figures
    """Cost in nano-dollars. `first_byte_ms` is a mean, None without any; with it come `first_bytes`, how many it is the mean of,
    and `first_byte_us`, their sum."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Groups by time, then the largest first and the rest last; without a group there is one line."""

    groups: list[Group]
    totals: Figures
    previous: Figures | None = None
    """Totals of the time before; None if they were not asked for."""
    previous_span: Range | None = None


class TooMuch(ValueError):
    """The answer has too many lines for one piece: narrow the question, or export it."""


class UsageEngine:
    """See the module's docstring."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def ask(self, query: Query) -> Answer:
        """Raises Unavailable, TooMuch; ValueError for too many times."""
        plan = usage_query.plan(query, clock.unix_ms())
        shape = _Shape(query, plan)
        found = await self._ledger.rows(plan.sql, plan.parameters)
        if len(found) > usage_query.ROWS_MAX:
            raise TooMuch(f"more than {usage_query.ROWS_MAX} lines")
        sums = shape.filled({shape.key(row): shape.sums(row) for row in found})
        if len(sums) > usage_query.ROWS_MAX:
            raise TooMuch(f"more than {usage_query.ROWS_MAX} lines, empty ones included")
        groups = [
            Group(values=key[0], other=key[1], metrics=metrics_of(query, sums[key])) for key in shape.in_order(sums)
        ]
        totals = metrics_of(query, added(sums.values(), len(plan.sums)))
        if not query.previous:
            return Answer(groups=groups, totals=totals)
        before = usage_time.previous(query.span, query.zone)
        return Answer(groups=groups, totals=totals, previous=await self._totals(query, before), previous_span=before)

    async def export(self, query: Query) -> AsyncIterator[Group]:
        """All groups, however many, by time and then by name, as the ledger gives them. Raises Unavailable, also in the middle.

        Times without usage are left out where something else is grouped too.
        """
        plan = usage_query.plan(query, clock.unix_ms(), everything=True)
        shape = _Shape(query, plan)
        missing = list(shape.labels) if query.group == (query.time,) and query.time else []
        nothing = nothing_of(query)
        async for row in self._ledger.stream(plan.sql, plan.parameters):
            while missing and missing[0] <= int(row[0]):
                start_s = missing.pop(0)
                if start_s < int(row[0]):
                    yield Group(values=(shape.labels[start_s],), metrics=nothing)
            yield Group(values=shape.key(row)[0], metrics=metrics_of(query, shape.sums(row)))
        for start_s in missing:
            yield Group(values=(shape.labels[start_s],), metrics=nothing)

    async def _totals(self, query: Query, span: Range) -> Figures:
        if not 0 <= span[0] < span[1]:
            return nothing_of(query)
        before = msgspec.structs.replace(query, from_ms=span[0], to_ms=span[1], group=(), previous=False)
        return (await self.ask(before)).totals


def metrics_of(query: Query, sums: Sums) -> Figures:
    """Sums as metrics. Half a millisecond is rounded up."""
    found: Figures = dict(zip(usage_query.sums_of(query.metrics), sums, strict=True))
    if "first_byte_ms" in query.metrics:
        total_us, count = found["first_byte_us"] or 0, found["first_bytes"] or 0
        found["first_byte_ms"] = (2 * total_us + 1000 * count) // (2000 * count) if count else None
    return found


def nothing_of(query: Query) -> Figures:
    """The metrics of no request."""
    return metrics_of(query, added((), len(usage_query.sums_of(query.metrics))))


def added(lines: Iterable[Sums], width: int) -> Sums:
    """Line by line; zeros if there are none."""
    total = [0] * width
    for line in lines:
        total = [one + other for one, other in zip(total, line, strict=True)]
    return tuple(total)


class _Shape:
    """How rows of a plan become lines of an answer."""

    def __init__(self, query: Query, plan: Plan) -> None:
        self._query = query
        self._width = len(query.group)
        self._sums = plan.sums
        self._time = query.group.index(query.time) if query.time else None
        self.labels = {one.start_s: one.label for one in plan.buckets}
        self._position = {label: number for number, label in enumerate(self.labels.values())}

    def key(self, row: Sequence[Any]) -> Key:
        """Of a row of the ledger."""
        other = bool(row[self._width])
        values = [OTHER if other else str(value) for value in row[: self._width]]
        if self._time is not None:
            values[self._time] = self.labels[int(row[self._time])]
        return tuple(values), other

    def sums(self, row: Sequence[Any]) -> Sums:
        """Of a row of the ledger."""
        return tuple(int(value) for value in row[self._width + 1 :])

    def filled(self, lines: Mapping[Key, Sums]) -> dict[Key, Sums]:
        """Every time stands there for every group."""
        found = dict(lines)
        if self._time is None:
            return found
        nothing = (0,) * len(self._sums)
        named = {self._named(key) for key in lines} if self._width > 1 else {((), False)}
        for values, other in named:
            for label in self._position:
                whole = (*values[: self._time], label, *values[self._time :])
                found.setdefault((whole, other), nothing)
        return found

    def in_order(self, lines: Mapping[Key, Sums]) -> list[Key]:
        """By time, then the largest first, over all times; the rest last."""
        weights: dict[Key, Sums] = defaultdict(lambda: (0,) * len(self._sums))
        for key, sums in lines.items():
            weights[self._named(key)] = added((weights[self._named(key)], sums), len(self._sums))
        order = self._query.order or self._query.metrics[0]
        weight = {key: metrics_of(self._query, sums)[order] for key, sums in weights.items()}

        def place(key: Key) -> tuple[int, bool, int, tuple[str, ...]]:
            named, heavy = self._named(key), weight[self._named(key)]
            at = 0 if self._time is None else self._position[key[0][self._time]]
            return at, key[1], 1 if heavy is None else -heavy, named[0]

        return sorted(lines, key=place)

    def _named(self, key: Key) -> Key:
        """Without the time."""
        values = tuple(value for number, value in enumerate(key[0]) if number != self._time)
        return values, key[1]
