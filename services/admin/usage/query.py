"""Questions about usage, and the statements that answer them. Pure; values travel as parameters and are never pasted.

A statement adds up four sources: rows where a boundary cuts an hour and for the last hours, sums of hours, sums of days where
neither key nor member is asked for, and refusals. A refusal has no model, outcome or client: they count as empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from services.admin.usage import times as usage_time
from services.admin.usage.times import Bucket, Cover, Range

METRICS: Final = (
    "cost", "requests", "input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "errors", "rate_limited",
    "first_byte_ms",
)  # fmt: skip
TIMES: Final = ("hour", "day", "month")
FILTERS: Final = ("model", "key", "member", "tag", "outcome", "client")
GROUPS: Final = (*FILTERS, *TIMES, "account")
RATE_REASONS: Final = ("requests", "input", "output", "free", "in_flight", "budget", "budget_held", "balance_held")
ROWS_MAX: Final = 100_000
TOP_MAX: Final = 1_000
TAGGED_KEYS_MAX: Final = 10_000
_TAGS_A_PARAMETER: Final = 2_000
_VALUES_MAX: Final = 1_000
_TOKENS: Final = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_ROW_SUMS: Final = {
    "cost": "sum(toInt128(total_nanos))",
    "requests": "count()",
    "errors": "countIf(status >= 400 OR status = 0)",
    "rate_limited": "countIf(status = 429)",
    "first_byte_us": "sum(first_byte_us)",
    "first_bytes": "countIf(first_byte_us > 0)",
} | {
    name: f"sum(toUInt64(arraySum((class, quantity) -> if(class = '{name}', quantity, 0), line_classes, line_quantities)))"
    for name in _TOKENS
}
_ARRAYS: Final = {
    "cost": "total_nanos",
    "requests": "requests",
    "errors": "errors",
    "rate_limited": "rate_limited",
    "first_byte_us": "first_byte_us",
    "first_bytes": "first_bytes",
} | {name: f"{name}_tokens" for name in _TOKENS}
_ELEMENTS: Final = {
    "key": "key_ids",
    "member": "member_ids",
    "model": "models",
    "outcome": "outcomes",
    "client": "clients",
}
_ROW_NAMES: Final = {
    "key": "key_id",
    "member": "member_id",
    "model": "model_answered",
    "outcome": "outcome",
    "client": "client",
}
_REFUSAL_NAMES: Final = {"key": "key_id", "member": "member_id", "model": "''", "outcome": "''", "client": "''"}
_NOT_IN_DAYS: Final = frozenset({"key", "member", "tag"})
_SETTINGS: Final = "SETTINGS do_not_merge_across_partitions_select_final = 1"
"""The month of a row is a part of its sort key: two versions of a row never lie in two partitions."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Raises ValueError if it cannot be."""

    metrics: tuple[str, ...]
    from_ms: int
    to_ms: int
    accounts: tuple[str, ...] = ()
    """Empty: the whole relay."""
    group: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = {}
    zone: str = "UTC"
    top: int = 100
    """Groups beyond so many are one; times do not count."""
    order: str = ""
    """The metric that orders groups, largest first; empty: the first one."""
    previous: bool = False
    tags: Mapping[str, str] = {}
    """Key id → tag, of keys that have one."""

    def __post_init__(self) -> None:
        """Check all of it."""
        _check(bool(self.metrics) and set(self.metrics) <= set(METRICS), "unknown metric")
        _check(len(set(self.metrics)) == len(self.metrics), "a metric twice")
        _check(set(self.group) <= set(GROUPS) and len(set(self.group)) == len(self.group) <= 2, "no such group")
        _check(len(set(self.group) & set(TIMES)) <= 1, "one of hour, day and month")
        _check(set(self.filters) <= set(FILTERS), "unknown filter")
        _check(
            all(0 < len(values) <= _VALUES_MAX for values in self.filters.values()),
            "a filter has no or too many values",
        )
        _check(len(self.accounts) <= _VALUES_MAX, "too many accounts")
        _check(0 <= self.from_ms < self.to_ms < 2_524_608_000_000, "no range of time between 1970 and 2050")
        _check(1 <= self.top <= TOP_MAX, f"top is a number from 1 to {TOP_MAX}")
        _check(self.order in {"", *self.metrics}, "the order is one of the metrics")
        _check(len(self.tags) <= TAGGED_KEYS_MAX, "too many keys with a tag")

    @property
    def span(self) -> Range:
        """The range of time."""
        return self.from_ms, self.to_ms

    @property
    def time(self) -> str:
        """`hour`, `day`, `month`, or empty."""
        return next((name for name in self.group if name in TIMES), "")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A statement, and how its rows read: values of groups, whether it is the rest, then sums."""

    sql: str
    parameters: dict[str, Any]
    sums: tuple[str, ...]
    buckets: list[Bucket]


def sums_of(metrics: Sequence[str]) -> tuple[str, ...]:
    """What has to be added up for these metrics."""
    plain = [name for name in metrics if name != "first_byte_ms"]
    return (*plain, "first_byte_us", "first_bytes") if "first_byte_ms" in metrics else tuple(plain)


def plan(query: Query, now_ms: int, *, everything: bool = False) -> Plan:
    """The statement for a query. `everything`: all groups, in order, for an export."""
    times = usage_time.buckets(query.time, query.span, query.zone) if query.time else []
    by_day = not _NOT_IN_DAYS & {*query.group, *query.filters}
    parts = usage_time.cover(query.span, [one.start_s for one in times], now_ms, by_day=by_day)
    builder = _Builder(query, times)
    inner = builder.union(parts)
    sql = builder.all_of(inner) if everything else builder.top_of(inner)
    return Plan(sql=f"{sql} {_SETTINGS}", parameters=builder.parameters, sums=builder.sums, buckets=times)


class _Builder:
    """Writes the statement, and collects its parameters."""

    def __init__(self, query: Query, times: Sequence[Bucket]) -> None:
        self._query = query
        self.sums = sums_of(query.metrics)
        self.parameters: dict[str, Any] = {}
        if times:
            self.parameters["edges"] = [one.start_s for one in times]
        if query.accounts:
            self.parameters["accounts"] = list(query.accounts)
        for name, values in query.filters.items():
            self.parameters[f"only_{name}"] = list(values)
        self._groups = [f"g{number}" for number in range(len(query.group))]
        self._tag = self._tags() if "tag" in {*query.group, *query.filters} else ""

    def union(self, parts: Cover) -> str:
        """Groups and sums over all sources."""
        branches = [
            *([self._rows(parts.rows)] if parts.rows else []),
            *([self._stored("usage_by_hour", "hour", parts.hours)] if parts.hours else []),
            *([self._stored("usage_by_day", "day", parts.days)] if parts.days else []),
            *([self._refusals()] if "rate_limited" in self.sums else []),
        ]
        return (
            f"SELECT {self._listed(self._groups, self._added())} FROM ({' UNION ALL '.join(branches)}){self._grouped()}"  # noqa: S608
        )

    def all_of(self, inner: str) -> str:
        """All groups: times first, then by name."""
        order = sorted(self._groups, key=lambda name: self._query.group[int(name[1:])] not in TIMES)
        chosen = self._listed(self._groups, ["0 AS rest"], [f"s_{name}" for name in self.sums])
        return f"SELECT {chosen} FROM ({inner})" + (f" ORDER BY {', '.join(order)}" if order else "")  # noqa: S608

    def top_of(self, inner: str) -> str:
        """The largest groups, and one that is the rest."""
        named = [name for name in self._groups if self._query.group[int(name[1:])] not in TIMES]
        if not named:
            return f"{self.all_of(inner)} LIMIT {ROWS_MAX + 1}"
        self.parameters["top"] = self._query.top
        names = ", ".join(named)
        sums = [f"s_{name}" for name in self.sums]
        weighed = self._weighed(f"OVER (PARTITION BY {names})", inner)
        order = f"dense_rank() OVER (ORDER BY weight DESC, {names}) > {{top:UInt32}} AS rest"
        ranked = f"SELECT {self._listed(self._groups, sums, [order])} FROM ({weighed})"  # noqa: S608
        shown = [f"if(rest, '', {one}) AS o{one}" if one in named else f"{one} AS o{one}" for one in self._groups]
        outer = ", ".join(f"o{one}" for one in self._groups)
        chosen = self._listed(shown, ["rest"], [f"sum({one})" for one in sums])
        return f"SELECT {chosen} FROM ({ranked}) GROUP BY {outer}, rest LIMIT {ROWS_MAX + 1}"  # noqa: S608

    def _weighed(self, over: str, inner: str) -> str:
        """Every group with what it weighs, over all times."""
        order = self._query.order or self._query.metrics[0]
        if order != "first_byte_ms":
            return f"SELECT *, sum(s_{order}) {over} AS weight FROM ({inner})"  # noqa: S608
        whole = f"SELECT *, sum(s_first_byte_us) {over} AS us, sum(s_first_bytes) {over} AS n FROM ({inner})"  # noqa: S608
        return f"SELECT *, if(n = 0, -1, intDiv(2 * us + 1000 * n, 2000 * if(n = 0, 1, n))) AS weight FROM ({whole})"  # noqa: S608

    def _rows(self, ranges: Sequence[Range]) -> str:
        where = self._where(self._within("time", ranges, "r"), _ROW_NAMES)
        sums = [f"toInt128({_ROW_SUMS[name]}) AS s_{name}" for name in self.sums]
        groups = self._group_columns(_ROW_NAMES, "time")
        return f"SELECT {self._listed(groups, sums)} FROM usage FINAL {where}{self._grouped()}"  # noqa: S608

    def _stored(self, table: str, column: str, ranges: Sequence[Range]) -> str:
        """Groups of an hour or a day lie in arrays, and beside them what all come to."""
        asked = {"key" if name == "tag" else name for name in (*self._query.group, *self._query.filters)} & set(
            _ELEMENTS
        )
        names = {name: f"e_{name}" for name in _ELEMENTS}
        unfolded = [f"{_ELEMENTS[name]} AS e_{name}" for name in sorted(asked)]
        sums = [f"toInt128(sum(all_{name})) AS s_{name}" for name in self.sums]
        if asked:
            unfolded += [f"{_ARRAYS[name]} AS v_{name}" for name in self.sums]
            sums = [f"toInt128(sum(v_{name})) AS s_{name}" for name in self.sums]
        where = self._where(self._within(column, ranges, column[0]), names)
        source = f"{table} FINAL" + (f" ARRAY JOIN {', '.join(unfolded)}" if asked else "")
        groups = self._group_columns(names, column)
        return f"SELECT {self._listed(groups, sums)} FROM {source} {where}{self._grouped()}"  # noqa: S608

    def _refusals(self) -> str:
        self.parameters["rate_reasons"] = list(RATE_REASONS)
        where = [
            self._within("minute", [self._query.span], "m"),
            "reason IN {rate_reasons:Array(String)}",
            *self._conditions(_REFUSAL_NAMES),
        ]
        sums = [f"toInt128({'sum(refused)' if name == 'rate_limited' else '0'}) AS s_{name}" for name in self.sums]
        groups = self._group_columns(_REFUSAL_NAMES, "minute")
        return f"SELECT {self._listed(groups, sums)} FROM refusals FINAL WHERE {' AND '.join(where)}{self._grouped()}"  # noqa: S608

    def _group_columns(self, names: Mapping[str, str], time: str) -> list[str]:
        columns = []
        for alias, group in zip(self._groups, self._query.group, strict=True):
            if group in TIMES:
                columns.append(f"roundDown(toUnixTimestamp({time}), {{edges:Array(UInt32)}}) AS {alias}")
            else:
                columns.append(f"toString({self._expression(group, names)}) AS {alias}")
        return columns

    def _where(self, within: str, names: Mapping[str, str]) -> str:
        """Times are a part of the sort key: they may be looked at before versions are put together, and the rest is not read."""
        return " WHERE ".join([f"PREWHERE {within}", *filter(None, [" AND ".join(self._conditions(names))])])

    def _conditions(self, names: Mapping[str, str]) -> list[str]:
        wanted = ["account_id IN {accounts:Array(String)}"] if self._query.accounts else []
        return wanted + [
            f"{self._expression(one, names)} IN {{only_{one}:Array(String)}}" for one in self._query.filters
        ]

    def _expression(self, group: str, names: Mapping[str, str]) -> str:
        if group == "account":
            return "account_id"
        return self._tag.replace("{key}", names["key"]) if group == "tag" else names[group]

    def _tags(self) -> str:
        """From key to tag; in parts, because what travels in one parameter has a largest size."""
        tags = sorted(self._query.tags.items())
        if not tags:
            return "substring({key}, 1, 0)"
        expression, keys = "''", "toString({key})"
        for number, start in enumerate(range(0, len(tags), _TAGS_A_PARAMETER)):
            part = tags[start : start + _TAGS_A_PARAMETER]
            self.parameters[f"keys_{number}"] = [key for key, _ in part]
            self.parameters[f"tags_{number}"] = [tag for _, tag in part]
            found = f"transform({keys}, {{keys_{number}:Array(String)}}, {{tags_{number}:Array(String)}}, '')"
            expression = found if not number else f"concat({expression}, {found})"
        return expression

    def _within(self, column: str, ranges: Sequence[Range], letter: str) -> str:
        """A parameter for each end of each range."""
        kind = "DateTime64(3, 'UTC')" if column == "time" else "DateTime('UTC')"
        parts = []
        for number, (start_ms, end_ms) in enumerate(ranges):
            names = f"{letter}{number}_from", f"{letter}{number}_to"
            for name, edge_ms in zip(names, (start_ms, end_ms), strict=True):
                self.parameters[name] = edge_ms if column == "time" else -(-edge_ms // 1000)
            from_, to = (self._time(kind, name) for name in names)
            parts.append(f"({column} >= {from_} AND {column} < {to})")
        return f"({' OR '.join(parts)})"

    def _time(self, kind: str, name: str) -> str:
        return (
            f"fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')"
            if "64" in kind
            else f"toDateTime({{{name}:UInt32}}, 'UTC')"
        )

    def _added(self) -> list[str]:
        return [f"sum(s_{name}) AS s_{name}" for name in self.sums]

    def _grouped(self) -> str:
        return f" GROUP BY {', '.join(self._groups)}" if self._groups else ""

    def _listed(self, *columns: Sequence[str]) -> str:
        return ", ".join(one for part in columns for one in part)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
