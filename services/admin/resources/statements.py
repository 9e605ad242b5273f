"""Monthly statements as CSV: what an account had, got and used. Opening balance and all amounts add up to the closing one."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from starlette.responses import Response

from libs.common import clock, money
from libs.common.events import Account, ApiKey, Member
from services.admin import tables
from services.admin.access import OPERATORS, PAYERS
from services.admin.ledger import Row
from services.admin.problems import BadInput
from services.admin.resource import Call, Context, Operation, is_id
from services.admin.resources.accounts import find_account
from services.admin.tables import Amount

_MONTH: Final = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])", re.ASCII)
_HEAD: Final = (
    "date", "entry", "description", "member", "key", "model", "requests", "input_tokens", "output_tokens",
    "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "amount_usd",
)  # fmt: skip
_BEFORE: Final = """
SELECT
  (SELECT sum(toInt128(amount_nanos)) FROM credits FINAL
   WHERE account_id = {account_id:String} AND time < {start:DateTime64(3)})
  - (SELECT sum(toInt128(total_nanos)) FROM usage FINAL
   WHERE account_id = {account_id:String} AND time < {start:DateTime64(3)}) AS nanos
"""
_CREDITS: Final = """
SELECT time, kind, reason, amount_nanos FROM credits FINAL
WHERE account_id = {account_id:String} AND time >= {start:DateTime64(3)} AND time < {end:DateTime64(3)} ORDER BY time, credit_id
"""
_SUMS: Final = ", ".join(
    f"sum(arraySum((c, q) -> if(c = '{name}', q, 0), line_classes, line_quantities)) AS {name}"
    for name in ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
)
_USAGE: Final = f"""
SELECT member_id, key_id, model_answered AS model, count() AS requests, {_SUMS}, sum(toInt128(total_nanos)) AS nanos
FROM usage FINAL
WHERE account_id = {{account_id:String}} AND time >= {{start:DateTime64(3)}} AND time < {{end:DateTime64(3)}}
GROUP BY member_id, key_id, model ORDER BY member_id, key_id, model
"""  # noqa: S608 - our own words


async def show(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/statements/{month}: the month in the account's time zone, from the archive."""
    month = str(call.path_params["month"])
    match = _MONTH.fullmatch(month)
    if match is None:
        raise BadInput("A month is written like 2026-11.")
    account = (await find_account(context, call.account_id)).entity
    zone = ZoneInfo(account.time_zone)
    year, number = int(match[1]), int(match[2])
    start = datetime(year, number, 1, tzinfo=zone)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=zone)
    bounds = {"account_id": account.id, "start": start, "end": end}
    (before,) = await context.ledger.query(_BEFORE, bounds)
    entries = await context.ledger.query(_CREDITS, bounds)
    usage = await context.ledger.query(_USAGE, bounds)
    lines = _lines(context, account, month, int(before["nanos"] or 0), entries, usage)
    headers = {"cache-control": "no-store", "content-disposition": f'attachment; filename="statement-{month}.csv"'}
    return Response("".join(lines), headers=headers, media_type=tables.CSV)


def _lines(
    context: Context, account: Account, month: str, opening: int, entries: Sequence[Row], usage: Sequence[Row]
) -> list[str]:
    closing = opening + sum(row["amount_nanos"] for row in entries) - sum(int(row["nanos"]) for row in usage)
    lines = [tables.csv_line(_HEAD), _line(month, "opening", f"balance at the beginning of {month}", nanos=opening)]
    for row in entries:
        date = clock.iso_utc(clock.to_unix_ms(row["time"]))
        lines.append(_line(date, row["kind"], row["reason"], nanos=row["amount_nanos"]))
    for row in usage:
        names = (_name(context, Member, row["member_id"]), _name(context, ApiKey, row["key_id"]), row["model"])
        counts = [
            int(row[name]) for name in ("requests", "input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
        ]
        lines.append(_line(month, "usage", f"usage of {account.name}", names, counts, nanos=-int(row["nanos"])))
    return [*lines, _line(month, "closing", f"balance at the end of {month}", nanos=closing)]


def _line(
    date: str,
    entry: str,
    description: str,
    names: Sequence[str] = ("", "", ""),
    counts: Sequence[int] = (),
    *,
    nanos: int,
) -> str:
    filled: list[Any] = [*counts] or [None] * 6
    return tables.csv_line([date, entry, description, *names, *filled, Amount(money.format_usd(nanos))])


def _name(context: Context, kind: type[Any], entity_id: str) -> str:
    prefix = "memb" if kind is Member else "key"
    entity = context.mirror.get(kind, entity_id) if is_id(prefix, entity_id) else None
    return f"{entity.name} ({entity_id})" if entity is not None else entity_id


OPERATIONS = (
    Operation(
        method="GET", path="/accounts/{account_id}/statements/{month}", handler=show, summary="A month's statement as CSV",
        media=("text/csv",), roles=OPERATORS | PAYERS, scope="money:read",
    ),
)  # fmt: skip
