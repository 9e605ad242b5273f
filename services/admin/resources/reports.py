"""Usage and cost in the shape of Anthropic's Admin API, for tools that read it: buckets of UTC, every account a workspace."""

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from starlette.responses import Response

from libs.common import clock
from services.admin.access import LEADERS, OPERATORS, PAYERS
from services.admin.ledger import Row
from services.admin.problems import BadInput
from services.admin.resource import Call, Context, Operation, respond
from services.admin.resources.times import query_ms

_WIDTHS_MS: Final = {"1m": 60_000, "1h": 3_600_000, "1d": 86_400_000}
_BUCKETS: Final = {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)}
"""How many of a page: if not said, and at most."""
_VALUES_MAX: Final = 1_000
"""Of a filter."""
_NANOS_PER_CENT: Final = 10_000_000
_CONTEXT: Final = (
    "if(arraySum((c, q) -> if(c IN ('input', 'cache_read', 'cache_write_5m', 'cache_write_1h'), q, 0), line_classes,"
    " line_quantities) > 200000, '200k-1M', '0-200k')"
)
_TIER: Final = "if(JSONExtractString(usage, 'service_tier') = '', 'standard', JSONExtractString(usage, 'service_tier'))"
_GEO: Final = (
    "if(JSONExtractString(usage, 'inference_geo') = '', 'not_available', JSONExtractString(usage, 'inference_geo'))"
)
_GROUPS: Final = {
    "api_key_id": "key_id",
    "account_id": "member_id",
    "workspace_id": "account_id",
    "model": "model_answered",
    "service_tier": _TIER,
    "context_window": _CONTEXT,
    "inference_geo": _GEO,
}
_FILTERS: Final = {
    "api_key_ids": "api_key_id",
    "account_ids": "account_id",
    "workspace_ids": "workspace_id",
    "models": "model",
    "service_tiers": "service_tier",
    "context_window": "context_window",
    "inference_geos": "inference_geo",
}
_NO_DETAILS: Final = "empty(line_amounts_nanos) AND total_nanos != 0"
_LINES: Final = (
    f"ARRAY JOIN if({_NO_DETAILS}, [toString(model_answered)], arrayMap(one -> toString(one), line_models)) AS line_model,"
    f" if({_NO_DETAILS}, [''], if(empty(line_amounts_nanos), [], arrayMap(one -> toString(one), line_classes))) AS line_class,"
    f" if({_NO_DETAILS}, [total_nanos], line_amounts_nanos) AS line_amount"
)
"""Of a row whose details are no longer kept (migrate.py), the total is one line of no class."""
_TOKEN_TYPES: Final = {
    "input": "uncached_input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write_5m": "cache_creation.ephemeral_5m_input_tokens",
    "cache_write_1h": "cache_creation.ephemeral_1h_input_tokens",
}


class CacheCreation(msgspec.Struct):
    """Tokens written to the cache."""

    ephemeral_1h_input_tokens: int
    ephemeral_5m_input_tokens: int


class ServerTools(msgspec.Struct):
    """Tools that ran at the upstream."""

    web_search_requests: int


class UsageResult(msgspec.Struct, kw_only=True):
    """One group of a bucket; what it was not grouped by is null."""

    uncached_input_tokens: int
    cache_creation: CacheCreation
    cache_read_input_tokens: int
    output_tokens: int
    server_tool_use: ServerTools
    api_key_id: str | None
    account_id: str | None
    """The member's id."""
    workspace_id: str | None
    """The account's id."""
    model: str | None
    service_tier: str | None
    context_window: str | None
    inference_geo: str | None


class UsageBucket(msgspec.Struct):
    """A minute, an hour or a day of UTC."""

    starting_at: str
    ending_at: str
    results: list[UsageResult]


class UsageReport(msgspec.Struct):
    """Buckets in order."""

    data: list[UsageBucket]
    has_more: bool
    next_page: str | None


class CostResult(msgspec.Struct, kw_only=True):
    """One group of a day."""

    amount: str
    """Cents, as a decimal string."""
    currency: str
    workspace_id: str | None
    description: str | None
    cost_type: str | None
    model: str | None
    token_type: str | None
    service_tier: str | None
    context_window: str | None


class CostBucket(msgspec.Struct):
    """A day of UTC."""

    starting_at: str
    ending_at: str
    results: list[CostResult]


class CostReport(msgspec.Struct):
    """Days in order."""

    data: list[CostBucket]
    has_more: bool
    next_page: str | None


class _Page(msgspec.Struct, frozen=True):
    """Which buckets of which width: Unix milliseconds."""

    from_ms: int
    to_ms: int
    width_ms: int
    has_more: bool

    @property
    def starts(self) -> range:
        """Where each bucket begins."""
        return range(self.from_ms, self.to_ms, self.width_ms)

    @property
    def following(self) -> str | None:
        """The token of the next page."""
        text = base64.urlsafe_b64encode(clock.iso_utc(self.to_ms).encode()).decode()
        return f"page_{text}" if self.has_more else None


async def usage(context: Context, call: Call) -> Response:
    """GET /v1/organizations/usage_report/messages."""
    page = _page(call, call.query_params.get("bucket_width", "1d"))
    groups = _chosen(call, "group_by", _GROUPS)
    where, parameters = _bounds(call, page)
    columns = "".join(f", toString({_GROUPS[name]}) AS by_{name}" for name in groups)
    sums = "".join(
        f", sum(arraySum((c, q) -> if(c = '{name}', q, 0), line_classes, line_quantities)) AS sum_{name}"
        for name in (*_TOKEN_TYPES, "web_search")
    )
    rows = await context.ledger.query(
        f"SELECT intDiv(toUnixTimestamp64Milli(time), {{width:Int64}}) * {{width:Int64}} AS start{columns}{sums}"  # noqa: S608
        f" FROM usage FINAL WHERE {where} GROUP BY start{''.join(f', by_{name}' for name in groups)} ORDER BY ALL",
        parameters,
    )
    by_start = _by_start(rows)
    buckets = [
        UsageBucket(start, end, [_usage_result(row, groups) for row in found])
        for start, end, found in _cut(page, by_start)
    ]
    return respond(UsageReport(buckets, page.has_more, page.following))


async def cost(context: Context, call: Call) -> Response:
    """GET /v1/organizations/cost_report: grouped by workspace, or by description: model, kind of token, tier, context."""
    if call.query_params.get("bucket_width", "1d") != "1d":
        raise BadInput("bucket_width: costs come by 1d only.")
    page = _page(call, "1d")
    groups = _chosen(call, "group_by", {"workspace_id": "", "description": ""})
    where, parameters = _bounds(call, page)
    columns = ", account_id AS workspace_id" if "workspace_id" in groups else ""
    if "description" in groups:
        columns += ", line_model AS model, line_class AS class"
        columns += f", {_TIER} AS service_tier, {_CONTEXT} AS context_window"
    rows = await context.ledger.query(
        f"SELECT intDiv(toUnixTimestamp64Milli(time), {{width:Int64}}) * {{width:Int64}} AS start{columns},"  # noqa: S608
        f" sum(toInt128(line_amount)) AS nanos FROM usage FINAL {_LINES} WHERE {where} GROUP BY ALL ORDER BY ALL",
        parameters,
    )
    buckets = [
        CostBucket(start, end, [_cost_result(row) for row in found])
        for start, end, found in _cut(page, _by_start(rows))
    ]
    return respond(CostReport(buckets, page.has_more, page.following))


def _page(call: Call, width: str) -> _Page:
    asked = call.query_params
    if width not in _WIDTHS_MS:
        raise BadInput("bucket_width must be 1m, 1h or 1d.")
    if "starting_at" not in asked:
        raise BadInput("starting_at is missing: RFC 3339, such as 2026-11-01T00:00:00Z.")
    width_ms = _WIDTHS_MS[width]
    start_ms = query_ms("starting_at", asked["starting_at"]) // width_ms * width_ms
    end_ms = query_ms("ending_at", asked["ending_at"]) if "ending_at" in asked else clock.unix_ms()
    if "page" in asked:
        start_ms = max(start_ms, _page_start(asked["page"]) // width_ms * width_ms)
    if end_ms <= start_ms:
        raise BadInput("ending_at must be later than starting_at.")
    default, most = _BUCKETS[width]
    text = asked.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= most):
        raise BadInput(f"limit must be a number from 1 to {most} for buckets of {width}.")
    count = min(-(-(end_ms - start_ms) // width_ms), int(text))
    to_ms = start_ms + count * width_ms
    return _Page(start_ms, to_ms, width_ms, to_ms < end_ms)


def _page_start(text: str) -> int:
    try:
        time = base64.urlsafe_b64decode(text.removeprefix("page_").encode("ascii")).decode("ascii")
        return clock.to_unix_ms(datetime.fromisoformat(time))
    except ValueError:
        raise BadInput("page must be the next_page of an earlier answer.") from None


def _chosen(call: Call, name: str, known: Mapping[str, str]) -> list[str]:
    chosen = list(dict.fromkeys([*call.query_params.getlist(name), *call.query_params.getlist(f"{name}[]")]))
    if unknown := [one for one in chosen if one not in known]:
        raise BadInput(f"{name}: {unknown[0][:40]!r} is none of {', '.join(known)}.")
    return chosen


def _bounds(call: Call, page: _Page) -> tuple[str, dict[str, Any]]:
    """Conditions and their parameters; a caller of an account sees that account, whatever he asks for."""
    parameters: dict[str, Any] = {"width": page.width_ms, "from": page.from_ms, "to": page.to_ms}
    where = [
        "time >= fromUnixTimestamp64Milli({from:Int64}, 'UTC')",
        "time < fromUnixTimestamp64Milli({to:Int64}, 'UTC')",
    ]
    if not call.principal.is_operator:
        where.append("account_id = {own:String}")
        parameters["own"] = call.principal.account_id
    for name, group in _FILTERS.items():
        values = [*call.query_params.getlist(name), *call.query_params.getlist(f"{name}[]")]
        if len(values) > _VALUES_MAX:
            raise BadInput(f"{name}: at most {_VALUES_MAX} values.")
        if values:
            where.append(f"toString({_GROUPS[group]}) IN {{{name}:Array(String)}}")
            parameters[name] = values
    return " AND ".join(where), parameters


def _by_start(rows: Sequence[Row]) -> Mapping[int, list[Row]]:
    found: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        found[int(row["start"])].append(row)
    return found


def _cut(page: _Page, by_start: Mapping[int, list[Row]]) -> list[tuple[str, str, list[Row]]]:
    return [(_time(start), _time(start + page.width_ms), by_start.get(start, [])) for start in page.starts]


def _time(time_ms: int) -> str:
    return clock.iso_utc(time_ms).replace(".000Z", "Z")


def _usage_result(row: Row, groups: Sequence[str]) -> UsageResult:
    return UsageResult(
        uncached_input_tokens=int(row["sum_input"]),
        cache_creation=CacheCreation(int(row["sum_cache_write_1h"]), int(row["sum_cache_write_5m"])),
        cache_read_input_tokens=int(row["sum_cache_read"]),
        output_tokens=int(row["sum_output"]),
        server_tool_use=ServerTools(int(row["sum_web_search"])),
        **{name: (row[f"by_{name}"] or None) if name in groups else None for name in _GROUPS},
    )


def _cost_result(row: Row) -> CostResult:
    model, price_class = row.get("model"), row.get("class")
    description, token_type = None, None
    if price_class is not None:
        token_type = _TOKEN_TYPES.get(price_class)
        description = " - ".join(filter(None, (f"{model} Usage", price_class.replace("_", " "))))
    return CostResult(
        amount=_cents(int(row["nanos"])),
        currency="USD",
        workspace_id=row.get("workspace_id"),
        description=description,
        cost_type=None if price_class is None else "web_search" if price_class == "web_search" else "tokens",
        model=model,
        token_type=token_type,
        service_tier=row.get("service_tier"),
        context_window=row.get("context_window"),
    )


def _cents(nanos: int) -> str:
    sign, (whole, rest) = "-" if nanos < 0 else "", divmod(abs(nanos), _NANOS_PER_CENT)
    return f"{sign}{whole}.{rest:07d}".rstrip("0").rstrip(".")


def _both(names: Sequence[str], meaning: str) -> dict[str, str]:
    return {written: meaning for name in names for written in (name, f"{name}[]")}


_QUERY: Final = {
    "starting_at": "RFC 3339; snapped to where a bucket begins",
    "ending_at": "before this time; now if not given",
    "bucket_width": "1m, 1h or 1d, of UTC",
    "limit": "buckets of a page: at most 1440, 168 or 31",
    "page": "next_page of the page before",
}
_LISTS: Final = tuple(_both([*_FILTERS, "group_by"], ""))
OPERATIONS = (
    Operation(
        method="GET", path="/v1/organizations/usage_report/messages", handler=usage, at_root=True,
        summary="Usage in the shape of Anthropic's Admin API", answer=UsageReport,
        query={**_QUERY, **_both(list(_FILTERS), "only these"), **_both(["group_by"], f"some of: {', '.join(_GROUPS)}")},
        repeatable=_LISTS, roles=OPERATORS | LEADERS | PAYERS, scope="usage:read",
    ),
    Operation(
        method="GET", path="/v1/organizations/cost_report", handler=cost, at_root=True,
        summary="Cost in the shape of Anthropic's Admin API", answer=CostReport,
        query={**_QUERY, **_both(["group_by"], "workspace_id, description")},
        repeatable=_LISTS, roles=OPERATORS | LEADERS | PAYERS, scope="usage:read",
    ),
)  # fmt: skip
