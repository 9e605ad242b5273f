"""Usage: one question with metrics, groups and filters, answered from the ledger as JSON, CSV or NDJSON."""

from collections.abc import AsyncIterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from starlette.responses import Response, StreamingResponse

from libs.common import clock, money
from libs.common.events import Account, ApiKey, Member
from services.admin import tables
from services.admin.access import EVERYBODY, OPERATORS
from services.admin.problems import BadInput, Problem, Unprocessable
from services.admin.resource import Call, Context, Operation, is_id, respond, time_of
from services.admin.resources.accounts import check_time_zone, find_account
from services.admin.resources.times import query_ms
from services.admin.tables import Amount
from services.admin.usage.engine import Figures, Group, TooMuch, UsageEngine, nothing_of
from services.admin.usage.query import FILTERS, GROUPS, METRICS, Query

_DAYS_DEFAULT: Final = 30
_KINDS: Final[Mapping[str, tuple[str, type[Any]]]] = {
    "account": ("acct", Account), "key": ("key", ApiKey), "member": ("memb", Member),
}  # fmt: skip
_FORMATS: Final = ("json", "csv", "ndjson")


class UsageGroup(msgspec.Struct, kw_only=True):
    """One line."""

    values: dict[str, str]
    """By the groups that were asked for. A time is where it begins, in the zone of the answer."""
    names: dict[str, str]
    """What keys, members and accounts among the values are called."""
    other: bool
    """It is the rest: all groups beyond the largest ones."""
    metrics: dict[str, int | str | None]
    """`cost_usd` is a decimal string, all others are integers. `first_byte_ms` is a mean; null without any."""


class UsageBefore(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """The time before, as long by the calendar."""

    from_: str
    to: str
    metrics: dict[str, int | str | None]


class UsageAnswer(msgspec.Struct, kw_only=True, rename={"from_": "from"}):
    """Totals are the sums of the groups, the rest included."""

    from_: str
    to: str
    zone: str
    groups: list[UsageGroup]
    totals: dict[str, int | str | None]
    previous: UsageBefore | None


async def show(context: Context, call: Call) -> Response:
    """GET /usage, GET /accounts/{account_id}/usage."""
    query = await _query(context, call)
    format_ = call.query_params.get("format", "json")
    if format_ not in _FORMATS:
        raise BadInput(f"format must be one of {', '.join(_FORMATS)}.")
    engine = UsageEngine(context.ledger)
    if format_ != "json":
        lines = _lines(context, engine, query, is_csv=format_ == "csv")
        return await _streamed(lines, tables.CSV if format_ == "csv" else tables.NDJSON, f"usage.{format_}")
    try:
        answer = await engine.ask(query)
    except TooMuch as error:
        raise Unprocessable(f"The answer would have {error}. Narrow the question, or ask for format=csv.") from None
    except ValueError as error:
        raise BadInput(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    previous = None
    if answer.previous is not None and answer.previous_span is not None:
        from_ms, to_ms = answer.previous_span
        previous = UsageBefore(from_=time_of(from_ms), to=time_of(to_ms), metrics=_metrics(answer.previous))
    shown = UsageAnswer(
        from_=time_of(query.from_ms),
        to=time_of(query.to_ms),
        zone=query.zone,
        groups=[_group(context, query, one) for one in answer.groups],
        totals=_metrics(answer.totals),
        previous=previous,
    )
    return respond(shown)


async def _query(context: Context, call: Call) -> Query:
    asked = call.query_params
    accounts, zone = await _whose(context, call)
    to_ms = _time_ms("to", asked["to"], zone) if "to" in asked else clock.unix_ms()
    from_ms = _time_ms("from", asked["from"], zone) if "from" in asked else _days_before(to_ms, zone)
    filters = {name: tuple(dict.fromkeys(asked.getlist(name))) for name in FILTERS if name in asked}
    if call.principal.only_member_id:
        filters["member"] = (call.principal.only_member_id,)
    top = asked.get("top", "100")
    if not (top.isascii() and top.isdigit() and len(top) <= 6):
        raise BadInput("top must be a number from 1 to 1000.")
    group = _words(asked.get("group", ""))
    try:
        return Query(
            metrics=_words(asked.get("metrics", "cost,requests")),
            from_ms=from_ms,
            to_ms=to_ms,
            accounts=accounts,
            group=group,
            filters=filters,
            zone=zone,
            top=int(top),
            order=asked.get("order", ""),
            previous=asked.get("previous", "") == "true",
            tags=_tags(context, accounts) if "tag" in {*group, *filters} else {},
        )
    except ValueError as error:
        text = str(error)
        raise BadInput(
            f"{text[:1].upper()}{text[1:]}. Metrics: {', '.join(METRICS)}; groups: {', '.join(GROUPS)}."
        ) from None


async def _whose(context: Context, call: Call) -> tuple[tuple[str, ...], str]:
    zone = call.query_params.get("zone", "")
    if zone:
        check_time_zone("zone", zone)
    if call.account_id:
        account = (await find_account(context, call.account_id)).entity
        return (account.id,), zone or account.time_zone
    accounts = tuple(dict.fromkeys(call.query_params.getlist("account_id")))
    if not all(is_id("acct", one) for one in accounts):
        raise BadInput("account_id must be an id such as acct_ and 32 hex digits.")
    return accounts, zone or "UTC"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _time_ms(name: str, text: str, zone: str) -> int:
    """A date is its midnight in the zone of the question."""
    if len(text) == 10 and text[4:5] == "-":
        try:
            day = datetime.combine(date.fromisoformat(text), time(), ZoneInfo(zone))
        except ValueError:
            raise BadInput(f"{name} is no date.") from None
        return query_ms(name, str(max(clock.to_unix_ms(day), 0)))
    return query_ms(name, text)


def _days_before(to_ms: int, zone: str) -> int:
    day = clock.from_unix_ms(to_ms).astimezone(ZoneInfo(zone)).date() - timedelta(days=_DAYS_DEFAULT - 1)
    return max(clock.to_unix_ms(datetime.combine(day, time(), ZoneInfo(zone))), 0)


def _tags(context: Context, accounts: tuple[str, ...]) -> dict[str, str]:
    keys = (
        [key for one in accounts for key in context.mirror.of_account(ApiKey, one)]
        if accounts
        else context.mirror.all(ApiKey)
    )
    return {key.id: key.tag for key in keys if key.tag}


def _metrics(figures: Figures) -> dict[str, int | str | None]:
    shown: dict[str, int | str | None] = dict(figures)
    if (cost := shown.pop("cost", None)) is not None:
        shown = {"cost_usd": money.format_usd(int(cost)), **shown}
    return shown


def _group(context: Context, query: Query, group: Group) -> UsageGroup:
    values = dict(zip(query.group, group.values, strict=True))
    return UsageGroup(
        values=values,
        names={} if group.other else _names(context, values),
        other=group.other,
        metrics=_metrics(group.metrics),
    )


def _names(context: Context, values: Mapping[str, str]) -> dict[str, str]:
    """What is deleted keeps its name."""
    found = {}
    for name, value in values.items():
        if name in _KINDS and is_id(_KINDS[name][0], value):
            entity = context.mirror.get(_KINDS[name][1], value)
            if entity is not None:
                found[name] = entity.name
    return found


async def _lines(context: Context, engine: UsageEngine, query: Query, *, is_csv: bool) -> AsyncIterator[str]:
    """All of it: nothing is cut off, and where it breaks off, the answer does too."""
    named = [name for name in query.group if name in _KINDS]
    head = tables.csv_line([*query.group, *(f"{name}_name" for name in named), *_metrics(nothing_of(query))])
    async for one in engine.export(query):
        shown = _group(context, query, one)
        if not is_csv:
            yield tables.ndjson_line(shown)
            continue
        if head:
            yield head
            head = ""
        numbers = [Amount(value) if isinstance(value, str) else value for value in shown.metrics.values()]
        yield tables.csv_line([*shown.values.values(), *(shown.names.get(name, "") for name in named), *numbers])
    if is_csv and head:
        yield head  # a table without lines is a table


async def _streamed(lines: AsyncIterator[str], media_type: str, name: str) -> Response:
    """The first line is waited for: what is wrong with the question or the ledger is a problem, not half an answer."""
    try:
        first = await anext(lines, "")
    except Problem:
        raise
    except ValueError as error:
        raise BadInput(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for line in lines:
            yield line

    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(all_lines(), headers=headers, media_type=media_type)


_QUERY: Final = {
    "metrics": f"with commas between: {', '.join(METRICS)}",
    "group": f"at most two of: {', '.join(GROUPS)}",
    "from": "a date (midnight in the zone), RFC 3339, or Unix milliseconds; 30 days if not given",
    "to": "before this time; now if not given",
    "zone": "IANA name: where days and months begin; the account's if not given",
    **{name: f"only this {name}; may be given more than once" for name in FILTERS},
    "top": "groups beyond so many are one, called other: 1 to 1000",
    "order": "the metric that orders groups; the first one if not given",
    "previous": "true: the totals of the time before, as long by the calendar",
    "format": "json, csv or ndjson; the latter two have every group",
}
_MEDIA: Final = ("text/csv", "application/x-ndjson")
OPERATIONS = (
    Operation(
        method="GET", path="/usage", handler=show, summary="Usage of the whole relay", answer=UsageAnswer, media=_MEDIA,
        query={"account_id": "of this account; may be given more than once", **_QUERY}, repeatable=(*FILTERS, "account_id"),
        roles=OPERATORS, scope="usage:read",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/usage", handler=show, summary="Usage of an account", answer=UsageAnswer,
        media=_MEDIA, query=_QUERY, repeatable=FILTERS, roles=EVERYBODY, scope="usage:read", name="usage_show_of_account",
    ),
)  # fmt: skip
