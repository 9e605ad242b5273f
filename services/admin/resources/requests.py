"""Ledger rows and receipts."""

import base64
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from starlette.responses import Response

from libs.common import ids, money
from services.admin.access import EVERYBODY, OPERATORS
from services.admin.ledger import Names, Row, name_at
from services.admin.problems import BadInput, Missing
from services.admin.resource import (
    PAGING,
    Call,
    Context,
    Operation,
    encode_cursor,
    is_id,
    page_limit,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account
from services.admin.resources.times import bounded_ms, query_ms

_WORD_CHARS_MAX: Final = 200
_ANY_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)
_ATTOS_PER_USD: Final = 10**18
_MTOK: Final = 10**6


class LineView(msgspec.Struct, kw_only=True, rename={"price_class": "class"}):
    """One line of a receipt."""

    model: str
    price_class: str
    quantity: int
    """Tokens, or searches."""
    unit_price_usd_per_mtok: str
    """Per million tokens (or searches), modifiers and the account's multiplier included."""
    amount_usd: str


class AttemptView(msgspec.Struct, kw_only=True):
    """One try at the upstream."""

    upstream_id: str
    status: int
    """0 if no answer came."""
    error: str
    """`connect`, `timeout`, `broke` where no answer came; `left` where nobody waited for it any more."""
    duration_us: int


class CorrectionView(msgspec.Struct, kw_only=True):
    """Why the amount is not what it was."""

    version: int
    """The version that was corrected."""
    total_usd: str
    """What it cost then."""
    total_nanos: int
    reason: str
    actor: str


class RequestView(msgspec.Struct, kw_only=True):
    """A ledger row. Lines add up to the total exactly."""

    request_id: str
    version: int
    time: str
    account_id: str
    key_id: str
    key_name: str | None
    """What the key was called when the request began; null: not known yet."""
    member_id: str
    member_name: str | None
    path: str
    model_asked: str
    model_answered: str
    stream: bool
    status: int
    outcome: str
    stop_reason: str
    usage: dict[str, Any]
    lines: list[LineView]
    total_usd: str
    total_nanos: int
    price_book_version: str
    multiplier_ppm: int
    cache_ttl_1h: bool
    declined_models: list[str]
    upstream_request_id: str
    attempts: list[AttemptView]
    """In order; the last one is what the caller saw."""
    first_byte_us: int
    duration_us: int
    bytes_in: int
    bytes_out: int
    client: str
    corrects: CorrectionView | None
    """Of a corrected row: what it was before. Else null."""


class RequestPage(msgspec.Struct):
    """Newest first."""

    data: list[RequestView]
    next_cursor: str | None


async def list_page(context: Context, call: Call) -> Response:
    """GET /requests, GET /accounts/{account_id}/requests."""
    query = call.query_params
    filters: dict[str, Any] = {}
    for name, prefix in (("account_id", "acct"), ("key_id", "key"), ("member_id", "memb")):
        if name in query:
            if not is_id(prefix, query[name]):
                raise BadInput(f"{name} must be an id such as {prefix}_ and 32 hex digits.")
            filters[name] = query[name]
    for name in ("model", "outcome", "client"):
        if name in query:
            filters[name] = query[name][:_WORD_CHARS_MAX]
    filters |= _bounds_of(call)
    for name in ("from", "to"):
        if name in query:
            filters[f"{name}_ms"] = query_ms(name, query[name])
    if "cursor" in query:
        filters["before_ms"], filters["before_id"] = _cursor(query["cursor"])
    limit = page_limit(call)
    rows = await context.ledger.requests(filters, limit + 1)
    if not rows and call.account_id:
        await find_account(context, call.account_id)
    views = await _views(context, rows[:limit])
    more = len(rows) > limit
    return respond(RequestPage(views, encode_cursor(views[-1].request_id) if more else None))


async def show(context: Context, call: Call) -> Response:
    """GET /requests/{request_id}: by our id, or by the upstream's."""
    request_id = str(call.path_params["request_id"])
    row = await context.ledger.request(request_id) if _ANY_ID.fullmatch(request_id) else None
    bounds = _bounds_of(call)
    if row is None or any(row[name] != value for name, value in bounds.items()):
        raise Missing("There is no such request in the ledger (a request stands there a moment after its end).")
    (view,) = await _views(context, [row])
    return respond(view)


async def _views(context: Context, rows: Sequence[Row]) -> list[RequestView]:
    names = await context.ledger.names({row[name] for row in rows for name in ("key_id", "member_id") if row[name]})
    return [_view(row, names) for row in rows]


def _bounds_of(call: Call) -> dict[str, str]:
    """What bounds the caller, whatever he asks for."""
    account_id = call.account_id or call.principal.account_id
    bounds = {"account_id": account_id} if account_id else {}
    if call.principal.only_member_id:
        bounds["member_id"] = call.principal.only_member_id
    return bounds


def _view(row: Row, names: Names) -> RequestView:
    lines = [
        LineView(
            model=model,
            price_class=price_class,
            quantity=quantity,
            unit_price_usd_per_mtok=_usd_per_mtok(unit_price_attos),
            amount_usd=money.format_usd(amount_nanos),
        )
        for model, price_class, quantity, unit_price_attos, amount_nanos in zip(
            row["line_models"],
            row["line_classes"],
            row["line_quantities"],
            row["line_unit_prices_attos"],
            row["line_amounts_nanos"],
            strict=False,  # when details are no longer kept, classes and quantities still are
        )
    ]
    attempts = [
        AttemptView(upstream_id=upstream_id, status=status, error=error, duration_us=duration_us)
        for upstream_id, status, error, duration_us in zip(
            row["attempt_upstreams"],
            row["attempt_statuses"],
            row["attempt_errors"],
            row["attempt_durations_us"],
            strict=True,
        )
    ]
    plain = {name: row[name] for name in RequestView.__struct_fields__ if name in row}
    plain |= {
        "time": time_of(ids.id_time_ms(row["request_id"])),
        "usage": msgspec.json.decode(row["usage"] or "{}"),  # empty: details are no longer kept
        "lines": lines,
        "attempts": attempts,
        "total_usd": money.format_usd(row["total_nanos"]),
        "corrects": _correction(row),
        "key_name": name_at(names, row["key_id"], row["time"]),
        "member_name": name_at(names, row["member_id"], row["time"]),
    }
    return RequestView(**plain)


def _correction(row: Row) -> CorrectionView | None:
    if not row["corrects_version"]:
        return None
    return CorrectionView(
        version=row["corrects_version"],
        total_usd=money.format_usd(row["corrects_total_nanos"]),
        total_nanos=row["corrects_total_nanos"],
        reason=row["correction_reason"],
        actor=row["correction_actor"],
    )


def _usd_per_mtok(attos: int) -> str:
    value = Decimal(attos) * _MTOK / _ATTOS_PER_USD
    text = format(value.normalize(), "f")
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.ljust(2, '0')}"


def _cursor(text: str) -> tuple[int, str]:
    try:
        request_id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        return bounded_ms("cursor", ids.id_time_ms(request_id)), request_id
    except ValueError:
        raise BadInput("cursor must be one that an earlier answer gave.") from None


_FILTERS: Final = {
    "key_id": "of one key",
    "member_id": "of one member",
    "model": "answered by this model",
    "outcome": "measured, partial, estimated, free or expired",
    "client": "of this client family",
    "from": "not before this time: RFC 3339, a date (midnight UTC), or Unix milliseconds",
    "to": "before this time",
    **PAGING,
}
OPERATIONS = (
    Operation(
        method="GET", path="/requests", handler=list_page, summary="List ledger rows, newest first", answer=RequestPage,
        query={"account_id": "of one account", **_FILTERS}, roles=OPERATORS, scope="usage:read",
    ),
    Operation(
        method="GET", path="/requests/{request_id}", handler=show, summary="Show a receipt", answer=RequestView,
        roles=OPERATORS, scope="usage:read",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/requests", handler=list_page,
        summary="List an account's ledger rows, newest first", answer=RequestPage, query=_FILTERS, roles=EVERYBODY,
        scope="usage:read", name="requests_list_of_account",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/requests/{request_id}", handler=show,
        summary="Show a receipt of an account", answer=RequestView, roles=EVERYBODY, scope="usage:read",
        name="requests_show_of_account",
    ),
)  # fmt: skip
