"""Usage figures equal a fold over the rows of the ledger, for any range, zone, group and filter."""

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from libs.common import clock, ids
from libs.common.metrics import Metrics
from services.accounting.app import bootstrap
from services.accounting.ledger import Ledger as Archive
from services.accounting.rollups import Rollups
from services.accounting.settlement import price_batch
from services.admin.ledger import Ledger
from services.admin.usage import query as usage_query
from services.admin.usage.engine import Answer, TooMuch, UsageEngine
from services.admin.usage.query import FILTERS, METRICS, Query
from tests.integration import usage_oracle
from tests.integration.accounting_rig import Rig
from tests.integration.usage_oracle import Asked, Line
from tests.unit.accounting.samples import recorded, request_id_at

pytestmark = pytest.mark.anyio
HOUR = timedelta(hours=1)
ZONES = ("UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo")
CLOCKS_ARE_SET = [datetime(2025, *day, tzinfo=UTC) for day in ((3, 9), (4, 5), (4, 25), (10, 4), (10, 31), (11, 2))]
MODELS = ["claude-sonnet-4-6", "claude-haiku-4-5", "claude-opus-4-8"]
YEAR: Any = {"from_ms": 1_735_689_600_000, "to_ms": 1_767_225_600_000}  # 2025
REASONS = [*sorted(usage_oracle.COUNTED_REASONS), "balance", "key", "model"]
EVIL = (
    "'; DROP TABLE usage; --",
    "\\",
    "\\'",
    "{accounts:Array(String)}",
    "%s",
    "') OR 1=1 --",
    "a\nb\tc",
    "é",
    "",
    "['",
    "`",
)
COLUMNS = (
    "request_id, account_id, key_id, member_id, model_answered, outcome, client, status, total_nanos, first_byte_us,"
    " line_classes, line_quantities, toUnixTimestamp64Milli(time)"
)


class World:
    """Rows of every kind, their sums, and refusals."""

    def __init__(self, archive: Archive, chance: random.Random) -> None:
        self.archive, self.chance = archive, chance
        self.accounts = tuple(ids.new_account_id() for _ in range(4))
        self.keys = [ids.new_key_id() for _ in range(6)]
        self.tags = {key: chance.choice(["red", "blue", "it's"]) for key in self.keys[:4]}
        self.rows: list[Line] = []
        self.refusals: list[Line] = []

    def some_time(self) -> datetime:
        """Near a change of clocks, anywhere in the year, or a moment ago."""
        kind = self.chance.random()
        if kind < 0.65:
            return self.chance.choice(CLOCKS_ARE_SET) + HOUR * self.chance.uniform(-60, 60)
        if kind < 0.8:
            return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=self.chance.uniform(0, 364))
        return clock.utc_now() - HOUR * self.chance.uniform(0, 30)

    async def fill(self) -> None:
        """Deliver, sum up, refuse; then read what stands there."""
        events = [self._event(request_id_at(_ms(self.some_time())), version=3) for _ in range(3000)]
        events += [self._event(one.request_id, version=4, account_id=one.account_id) for one in events[::9]]
        hours = Rollups(self.archive, Metrics(), every_s=1)
        for start in range(0, len(events), 1000):
            entries, unsettled = price_batch(events[start : start + 1000])
            assert not unsettled
            await self.archive.append_usage([entry.row for entry in entries])
        for event in events:
            hours.touched(event.account_id, ids.id_time_ms(event.request_id))
        await hours.flush()
        await self._refuse()
        await self._read()

    def _event(self, request_id: str, *, version: int, account_id: str = "") -> Any:
        chance = self.chance
        usage = {
            "input_tokens": chance.randrange(10**5),
            "output_tokens": chance.randrange(10**4),
            "cache_read_input_tokens": chance.choice([0, chance.randrange(10**5)]),
            "cache_creation_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
        }
        return recorded(
            account_id or chance.choice(self.accounts),
            request_id=request_id,
            usage=usage,
            key_id=chance.choice(self.keys),
            member_id=chance.choice(["", "memb_1", "memb_2"]),
            model_asked=MODELS[0],
            model_answered=chance.choice(MODELS),
            outcome=chance.choice(["measured", "measured", "partial", "free"]),
            client=chance.choice(["", "claude-code", *EVIL]),
            status=chance.choice([200, 200, 200, 429, 500, 0]),
            first_byte_us=chance.choice([0, chance.randrange(1, 10**7)]),
            version=version,
        )

    async def _refuse(self) -> None:
        columns = ("account_id", "minute", "key_id", "member_id", "reason", "gateway_id", "refused")
        lines = []
        for _ in range(400):
            minute = self.some_time().replace(second=0, microsecond=0)
            line = (self.chance.choice(self.accounts), minute, self.chance.choice(self.keys), "memb_1")
            refused = self.chance.randrange(1, 50)
            lines += [(*line, self.chance.choice(REASONS), "gw_1", refused + more) for more in (0, 5)][
                : self.chance.randint(1, 2)
            ]
        await self.archive._insert("refusals", lines, columns)

    async def _read(self) -> None:
        where = "FINAL WHERE account_id IN {accounts:Array(String)} OR toYear(time) = 2025"
        asked = {"accounts": list(self.accounts)}
        names = [name.strip() for name in COLUMNS.split(",")]
        for row in await self.archive.query(f"SELECT {COLUMNS} FROM usage {where}", asked):
            line = dict(zip(names, row, strict=True))
            self.rows.append(line | {"time": _time(line[names[-1]])})
        refused = "account_id, key_id, member_id, reason, refused, toUnixTimestamp(minute)"
        for row in await self.archive.query(f"SELECT {refused} FROM refusals {where.replace('time', 'minute')}", asked):
            line = dict(zip([name.strip() for name in refused.split(",")], row, strict=True))
            self.refusals.append(line | {"time": _time(int(row[-1]) * 1000)})


_worlds: dict[str, World] = {}
"""One for all tests: they only read."""


@pytest.fixture
async def world(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[World]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig:
        await bootstrap(rig.config)
        if clickhouse_url not in _worlds:
            _worlds[clickhouse_url] = World(rig.ledger, random.Random(11))
            await _worlds[clickhouse_url].fill()
        yield _worlds[clickhouse_url]


@pytest.fixture
async def ledger(clickhouse_url: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(clickhouse_url)
    yield ledger
    await ledger.close()


def some_question(world: World, chance: random.Random) -> Asked:
    """Ranges that begin and end at odd times as well as at local midnights."""
    metrics = tuple(chance.sample(METRICS, chance.randint(1, len(METRICS))))
    group = chance.sample(usage_query.GROUPS, chance.randint(0, 2))
    while len(set(group) & usage_oracle.TIMES) > 1:
        group = chance.sample(usage_query.GROUPS, 2)
    zone = chance.choice(ZONES)
    start = world.some_time()
    long_h = 24 * 6 if "hour" in group else 24 * 90
    end = start + HOUR * chance.choice([0.001, 0.7, 24, 72, chance.uniform(1, long_h), long_h])
    if chance.random() < 0.5:
        zoneinfo = ZoneInfo(zone)
        start, end = (
            edge.astimezone(zoneinfo).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
            for edge in (start, end)
        )
        end = end if end > start else end + timedelta(days=1)
    start, end = (_time(_ms(edge)) for edge in (start, end))
    everywhere = end.year == 2025 and chance.random() < 0.3
    return Asked(
        metrics=metrics,
        group=tuple(group),
        start=start,
        end=max(end, start + timedelta(milliseconds=1)),
        zone=zone,
        top=chance.choice([1, 2, 5, 1000]),
        order=chance.choice(metrics),
        accounts=() if everywhere else tuple(chance.sample(world.accounts, chance.randint(1, 4))),
        filters=some_filters(world, chance),
        tags=chance.choice([{}, world.tags]),
    )


def some_filters(world: World, chance: random.Random) -> dict[str, tuple[str, ...]]:
    values: dict[str, Sequence[str]] = {
        "model": MODELS,
        "key": world.keys,
        "member": ["", "memb_1", "memb_2"],
        "tag": ["", "red", "it's"],
        "outcome": ["measured", "partial"],
        "client": ["", "claude-code", *EVIL],
    }
    names = chance.sample(FILTERS, chance.choice([0, 0, 1, 2]))
    return {name: tuple(chance.sample(values[name], chance.randint(1, len(values[name])))) for name in names}


def query_of(asked: Asked, **changes: Any) -> Query:
    fields: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("metrics", "group", "zone", "top", "order", "accounts", "filters", "tags")
    }
    return Query(**fields | {"from_ms": _ms(asked.start), "to_ms": _ms(asked.end)} | changes)


def read(asked: Asked, answer: Answer) -> list[tuple[tuple[Any, ...], bool, dict[str, Any]]]:
    return [
        (
            tuple(
                usage_oracle.read_label(name, value) if name in usage_oracle.TIMES else value
                for name, value in zip(asked.group, group.values, strict=True)
            ),
            group.other,
            group.metrics,
        )
        for group in answer.groups
    ]


@pytest.mark.parametrize("seed", [20251102])
async def test_figures_are_what_a_fold_over_the_rows_says(world: World, ledger: Ledger, seed: int) -> None:
    engine, chance, sources = UsageEngine(ledger), random.Random(seed), [0, 0, 0, 0]
    for number in range(200):
        asked = some_question(world, chance)
        query = query_of(asked, previous=True)
        answer = await engine.ask(query)
        assert read(asked, answer) == usage_oracle.answer(asked, world.rows, world.refusals), (number, asked)
        one = changed_to(asked, group=())
        ((_, _, totals),) = usage_oracle.answer(one, world.rows, world.refusals)
        assert answer.totals == totals, (number, asked)
        start, end = usage_oracle.before(asked)
        ((_, _, earlier),) = usage_oracle.answer(changed_to(one, start=start, end=end), world.rows, world.refusals)
        assert answer.previous == earlier, (number, asked)
        for index, table in enumerate(("usage FINAL", "usage_by_hour", "usage_by_day", "refusals")):
            sources[index] += table in usage_query.plan(query, clock.unix_ms()).sql
    assert min(sources) > 20  # every source was asked


async def test_an_export_has_every_group_however_many(world: World, ledger: Ledger) -> None:
    engine, chance = UsageEngine(ledger), random.Random(5)
    for _ in range(20):
        asked = some_question(world, chance)
        lines = [line async for line in engine.export(query_of(asked, top=1))]
        whole = usage_oracle.answer(changed_to(asked, top=10**9), world.rows, world.refusals)
        found = read(asked, Answer(groups=lines, totals={}))
        if len(asked.group) > 1 and set(asked.group) & usage_oracle.TIMES:  # empty times are left out
            whole = [one for one in whole if any(one[2].values()) or one in found]
        assert sorted(found, key=str) == sorted(whole, key=str)
        times = [one[0][asked.group.index(name)] for one in found for name in asked.group if name in usage_oracle.TIMES]
        assert times == sorted(times)


@pytest.mark.parametrize("name", [*FILTERS, "account"])
async def test_values_stay_values(world: World, ledger: Ledger, name: str) -> None:
    engine = UsageEngine(ledger)
    for value in EVIL:
        lines = world.rows
        asked: dict[str, Any] = {"accounts": world.accounts, "filters": {name: (value,)}}
        if name == "account":
            asked = {"accounts": (value,)}
        answer = await engine.ask(Query(metrics=("requests",), tags={value: value} if value else {}, **asked, **YEAR))
        key = {"model": "model_answered", "key": "key_id", "member": "member_id", "account": "account_id"}.get(
            name, name
        )
        wanted = [
            one
            for one in lines
            if one["time"].year == 2025 and one["account_id"] in asked["accounts"] and one.get(key, "") == value
        ]
        assert answer.totals == {"requests": len(wanted)}, value
    found = await engine.ask(Query(metrics=("requests",), accounts=world.accounts, from_ms=0, to_ms=2_000_000_000_000))
    assert found.totals == {"requests": len([row for row in world.rows if row["account_id"] in world.accounts])}


async def test_a_day_has_as_many_hours_as_its_clock_shows(world: World, ledger: Ledger) -> None:
    zone = ZoneInfo("America/New_York")
    for (month, date), hours in (((3, 9), 23), ((11, 2), 25), ((11, 3), 24)):
        day = datetime(2025, month, date, tzinfo=zone)
        start, end = _ms(day), _ms(day + timedelta(days=1))
        query = Query(
            metrics=("requests",), group=("hour",), zone=zone.key, from_ms=start, to_ms=end, accounts=world.accounts
        )
        assert len((await UsageEngine(ledger).ask(query)).groups) == hours


async def test_too_many_lines_are_refused_and_not_cut(
    world: World, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_query, "ROWS_MAX", 5)
    for group in (("day",), ("key", "day"), ("key", "model")):
        with pytest.raises(TooMuch):
            await UsageEngine(ledger).ask(Query(metrics=("cost",), group=group, accounts=world.accounts, **YEAR))


async def test_many_tags_travel_in_parts(world: World, ledger: Ledger) -> None:
    tags = {ids.new_key_id(): "none" for _ in range(9_000)} | world.tags
    query = Query(metrics=("requests",), group=("tag",), accounts=world.accounts, tags=tags, **YEAR)
    found = {one.values[0]: one.metrics["requests"] for one in (await UsageEngine(ledger).ask(query)).groups}
    rows = [row for row in world.rows if row["time"].year == 2025 and row["account_id"] in world.accounts]
    for tag in ("", "red", "blue", "it's"):
        assert found.get(tag, 0) == len([row for row in rows if world.tags.get(row["key_id"], "") == tag])


async def test_pages_are_the_rows_newest_first(world: World, ledger: Ledger) -> None:
    """Wherever the windows that a page is looked for in begin and end."""
    chance, columns = random.Random(3), {"model": "model_answered"}
    for _ in range(30):
        only = {name: values[0] for name, values in some_filters(world, chance).items() if name in {"model", "outcome"}}
        filters: dict[str, Any] = {**only, "account_id": chance.choice(world.accounts)}
        filters |= chance.choice([{}, {"key_id": chance.choice(world.keys)}, {"member_id": ""}, {"client": EVIL[0]}])
        filters |= chance.choice([{}, {"errors": True}, {"to_ms": _ms(world.some_time())}])
        rows = [
            row
            for row in world.rows
            if all(row[columns.get(n, n)] == v for n, v in filters.items() if n in {*row, *columns})
        ]
        rows = [row for row in rows if row["time"] < _time(filters.get("to_ms", 4_102_444_800_000))]
        rows = [row for row in rows if "errors" not in filters or row["status"] == 0 or row["status"] >= 400]
        wanted = [
            row["request_id"] for row in sorted(rows, key=lambda row: (row["time"], row["request_id"]), reverse=True)
        ]
        found: list[str] = []
        limit = chance.choice([1 + len(wanted) // 3, 50, 1000])
        while page := await ledger.requests(filters, limit):
            assert len(page) == min(limit, len(wanted) - len(found))
            found += [row["request_id"] for row in page]
            filters |= {"before_ms": ids.id_time_ms(found[-1]), "before_id": found[-1]}
        assert found == wanted


def changed_to(asked: Asked, **changes: Any) -> Asked:
    return Asked(**(vars(asked) | changes))


def _ms(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _time(value_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(value_ms))
