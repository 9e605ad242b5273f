"""The audit log: every change with who, whence, why, before and after. From the archive, which is a second or two behind."""

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
from starlette.responses import Response, StreamingResponse

from libs.common import clock
from services.admin import tables
from services.admin.access import LEADERS, OPERATORS
from services.admin.ledger import Row
from services.admin.problems import BadInput
from services.admin.resource import PAGING, Call, Context, Operation, is_id, page_limit, respond
from services.admin.resources.times import query_ms

_HIDDEN: Final = frozenset({"password_hash", "link_sha256", "sha256", "sealed"})
_TOLD: Final = f"""replaceRegexpAll(entity, '"({"|".join(sorted(_HIDDEN))})":"[^"]*"', '')"""
"""What may be searched: a search that looks at a secret tells it, letter by letter."""
_WORD_CHARS_MAX: Final = 200
_SEQUENCE_CHARS_MAX: Final = 18
_COLUMNS: Final = "sequence, kind, entity_id, account_id, entity, actor, reason, time, address, previous, sha256"
_FILTERS: Final = {
    "kind": "kind = {kind:String}",
    "entity_id": "entity_id = {entity_id:String}",
    "actor": "actor = {actor:String}",
    "text": f"(positionCaseInsensitiveUTF8({_TOLD}, {{text:String}}) > 0"
    " OR positionCaseInsensitiveUTF8(reason, {text:String}) > 0)",
}


class ChangeView(msgspec.Struct, kw_only=True):
    """One change. Secrets are left out of both states."""

    sequence: int
    """Its place in the log of all changes."""
    time: str
    kind: str
    entity_id: str
    account_id: str | None
    actor: str
    address: str
    """Empty: the relay itself."""
    reason: str
    before: dict[str, Any] | None
    after: dict[str, Any]
    previous: str
    """SHA-256 of the change of this entity before; empty: there was none."""
    sha256: str
    """Of this change, as it stands in the log."""


class ChangePage(msgspec.Struct):
    """Newest first."""

    data: list[ChangeView]
    next_cursor: str | None


async def list_all(context: Context, call: Call) -> Response:
    """GET /audit, GET /accounts/{account_id}/audit."""
    where, parameters = _bounds(call)
    if "cursor" in call.query_params:
        parameters["before"] = _sequence(call.query_params["cursor"])
        where.append("sequence < {before:UInt64}")
    limit = page_limit(call)
    rows = await context.ledger.query(
        f"SELECT {_COLUMNS} FROM control FINAL WHERE {' AND '.join(where)} ORDER BY sequence DESC LIMIT {{limit:UInt32}}",  # noqa: S608
        parameters | {"limit": limit + 1},
    )
    shown = await _views(context, rows[:limit])
    return respond(ChangePage(shown, str(shown[-1].sequence) if len(rows) > limit else None))


async def export(context: Context, call: Call) -> Response:
    """GET /audit/export: everything that fits the filters as NDJSON, oldest first."""
    where, parameters = _bounds(call)
    statement = (
        f"SELECT {_COLUMNS} FROM control FINAL WHERE {' AND '.join([*where, 'sequence > {after:UInt64}'])}"  # noqa: S608
        " ORDER BY sequence LIMIT 1000"
    )
    first = await context.ledger.query(
        statement, parameters | {"after": 0}
    )  # what fails now is a problem, not half an answer

    async def lines() -> AsyncIterator[str]:
        rows = first
        while rows:
            for one in await _views(context, rows):
                yield tables.ndjson_line(one)
            rows = await context.ledger.query(statement, parameters | {"after": int(rows[-1]["sequence"])})

    headers = {"cache-control": "no-store", "content-disposition": 'attachment; filename="audit.ndjson"'}
    return StreamingResponse(lines(), headers=headers, media_type=tables.NDJSON)


def _bounds(call: Call) -> tuple[list[str], dict[str, Any]]:
    asked = call.query_params
    parameters: dict[str, Any] = {name: asked[name][:_WORD_CHARS_MAX] for name in _FILTERS if name in asked}
    where = ["1", *(_FILTERS[name] for name in parameters)]
    if "account_id" in asked and not is_id("acct", asked["account_id"]):
        raise BadInput("account_id must be an id such as acct_ and 32 hex digits.")
    account_id = call.account_id or asked.get("account_id", "")
    if account_id:
        parameters["account_id"] = account_id
        where.append("account_id = {account_id:String}")
    if not call.principal.is_operator:
        where.append("kind != 'upstream'")  # a dedicated credential is the operators', not the account's
    for name, sign in (("from", ">="), ("to", "<")):
        if name in asked:
            parameters[name] = query_ms(name, asked[name])
            where.append(f"time {sign} fromUnixTimestamp64Milli({{{name}:Int64}}, 'UTC')")
    return where, parameters


def _sequence(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _SEQUENCE_CHARS_MAX):
        raise BadInput("cursor must be one that an earlier answer gave.")
    return int(text)


async def _views(context: Context, rows: list[Row]) -> list[ChangeView]:
    if not rows:
        return []
    befores = await context.ledger.query(
        "SELECT next, entity FROM (SELECT entity, leadInFrame(sequence) OVER (PARTITION BY kind, entity_id ORDER BY sequence"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS next FROM control FINAL"
        " WHERE (kind, entity_id) IN (SELECT arrayJoin(arrayZip({kinds:Array(String)}, {ids:Array(String)}))))"
        " WHERE next IN {sequences:Array(UInt64)}",
        {
            "kinds": [row["kind"] for row in rows],
            "ids": [row["entity_id"] for row in rows],
            "sequences": [int(row["sequence"]) for row in rows],
        },
    )
    before = {int(row["next"]): row["entity"] for row in befores}
    return [_view(row, before.get(int(row["sequence"]))) for row in rows]


def _view(row: Row, before: str | None) -> ChangeView:
    return ChangeView(
        sequence=int(row["sequence"]),
        time=clock.iso_utc(clock.to_unix_ms(row["time"])),
        kind=row["kind"],
        entity_id=row["entity_id"],
        account_id=row["account_id"] or None,
        actor=row["actor"],
        address=row["address"],
        reason=row["reason"],
        before=None if before is None else _shown(msgspec.json.decode(before)),
        after=_shown(msgspec.json.decode(row["entity"])),
        previous=row["previous"],
        sha256=row["sha256"],
    )


def _shown(value: Any) -> Any:
    """Without what is secret, or would help to guess one."""
    if isinstance(value, dict):
        return {name: "…" if name in _HIDDEN and one else _shown(one) for name, one in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list) else value


_QUERY: Final = {
    "kind": "account, member, key, credit, …",
    "entity_id": "of one entity",
    "actor": "made by this operator, member or token",
    "text": "a part of the entity or of the reason",
    "from": "not before this time",
    "to": "before this time",
}
OPERATIONS = (
    Operation(
        method="GET", path="/audit", handler=list_all, summary="Search the audit log", answer=ChangePage,
        query={"account_id": "of one account", **_QUERY, **PAGING}, roles=OPERATORS, scope="audit:read",
    ),
    Operation(
        method="GET", path="/audit/export", handler=export, summary="Export the audit log", media=(tables.NDJSON,),
        query={"account_id": "of one account", **_QUERY}, roles=OPERATORS, scope="audit:read",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/audit", handler=list_all, summary="Search the audit log of an account",
        answer=ChangePage, query={**_QUERY, **PAGING}, roles=OPERATORS | LEADERS, scope="audit:read",
        name="audit_list_of_account",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/audit/export", handler=export,
        summary="Export the audit log of an account", media=(tables.NDJSON,), query=_QUERY, roles=OPERATORS | LEADERS,
        scope="audit:read", name="audit_export_of_account",
    ),
)  # fmt: skip
