"""Credits, adjustments and promotions: entries that change a balance. There is no way to set one."""

from typing import Annotated, Final, Literal

import msgspec
from starlette.responses import Response

from libs.common import clock, ids, money
from libs.common.events import Credit
from libs.common.scripts import StoreUnavailable
from services.admin.access import MONEY, OPERATORS, PAYERS
from services.admin.ledger import Row
from services.admin.problems import Conflict, Unprocessable
from services.admin.resource import (
    IDEMPOTENT,
    PAGING,
    Call,
    Context,
    Operation,
    Reason,
    cursor,
    digest,
    encode_cursor,
    page_limit,
    read,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account
from services.admin.resources.times import Expiry, expiry_ms

Amount = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$"})]


class NewCredit(msgspec.Struct, forbid_unknown_fields=True):
    """To grant a credit; a negative amount is an adjustment."""

    amount_usd: Amount
    """Decimal string of dollars, such as "10.00": up to nine decimals, at most 9,000,000."""
    reason: Reason
    kind: Literal["credit", "promotion"] = "credit"
    expires_at: Expiry | None = None
    """Of a promotion: what is not spent until then is taken back. It is spent before credits are."""


class CreditView(msgspec.Struct, kw_only=True):
    """An entry."""

    id: str
    account_id: str
    kind: str
    amount_usd: str
    reason: str
    actor: str | None
    """Who made it; null in the answer to its making."""
    expires_at: str | None
    about_id: str | None
    """The code that was redeemed; of an expiry, the promotion."""
    created_at: str


class CreditPage(msgspec.Struct):
    """Entries in the order they were made: from the archive, which is a second or two behind."""

    data: list[CreditView]
    next_cursor: str | None


async def create(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/credits. The same Idempotency-Key gives the same credit, once."""
    body = await read(call, NewCredit)
    account = (await find_account(context, call.account_id)).entity
    amount_nanos, name = _amount(body.amount_usd), call.derived_id("cred")
    expires_at_ms = expiry_ms(body.expires_at, in_future=False)
    if expires_at_ms is not None and (body.kind != "promotion" or amount_nanos < 0):
        raise Unprocessable("expires_at: only a promotion of a positive amount expires.")
    request = digest(body, str(amount_nanos))
    if name is not None and (first := await context.control.first(Credit, name, request)):
        return respond(_view(first), 201)
    if expires_at_ms is not None and expires_at_ms <= clock.unix_ms():
        raise Unprocessable("expires_at: this time has passed.")
    credit = Credit(
        id=name or ids.new_credit_id(),
        account_id=account.id,
        amount_nanos=amount_nanos,
        reason=body.reason,
        created_at_ms=clock.unix_ms(),
        kind="adjustment" if amount_nanos < 0 else body.kind,
        expires_at_ms=expires_at_ms,
    )
    try:
        await check_limit(context, credit)
        await context.control.put(credit, over=None, by=call.by(body.reason, request if name else ""))
    except (Conflict, Unprocessable):  # it may be its own twin, sent at the same time, that was in the way
        first = await context.control.first(Credit, name, request) if name is not None else None
        if first is None:
            raise
        return respond(_view(first), 201)
    return respond(_view(credit), 201)


async def list_all(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/credits."""
    await find_account(context, call.account_id)
    limit = page_limit(call)
    rows = await context.ledger.credits(call.account_id, cursor(call), limit + 1)
    following = encode_cursor(rows[limit - 1]["credit_id"]) if len(rows) > limit else None
    return respond(CreditPage([_row_view(row) for row in rows[:limit]], following))


async def check_limit(context: Context, credit: Credit) -> None:
    """A credit that would lift the balance beyond what an account may hold would be parked; better to say so now.

    Raises Unprocessable.
    """
    try:
        balance = await context.balances.read(credit.account_id)
    except StoreUnavailable:
        return  # accounting decides
    total = balance.available + balance.held + credit.amount_nanos if balance else credit.amount_nanos
    if abs(total) > money.AMOUNT_NANOS_MAX:
        raise Unprocessable("amount_usd: the balance would be beyond the 9,000,000 dollars an account may hold.")


def parsed(amount_usd: str) -> int:
    """Nano-dollars. Raises Unprocessable."""
    try:
        return money.parse_usd(amount_usd)
    except ValueError as error:
        raise Unprocessable(f"amount_usd: {error}.") from None


def _amount(text: str) -> int:
    nanos = parsed(text)
    if nanos == 0:
        raise Unprocessable("amount_usd: an entry of nothing changes nothing.")
    return nanos


def _view(credit: Credit) -> CreditView:
    return CreditView(
        id=credit.id,
        account_id=credit.account_id,
        kind=credit.kind,
        amount_usd=money.format_usd(credit.amount_nanos),
        reason=credit.reason,
        actor=None,
        expires_at=None if credit.expires_at_ms is None else time_of(credit.expires_at_ms),
        about_id=credit.about_id or None,
        created_at=time_of(credit.created_at_ms),
    )


def _row_view(row: Row) -> CreditView:
    expires_ms = clock.to_unix_ms(row["expires_at"])
    return CreditView(
        id=row["credit_id"],
        account_id=row["account_id"],
        kind=row["kind"],
        amount_usd=money.format_usd(row["amount_nanos"]),
        reason=row["reason"],
        actor=row["actor"],
        expires_at=time_of(expires_ms) if expires_ms else None,
        about_id=row["about_id"] or None,
        created_at=time_of(clock.to_unix_ms(row["time"])),
    )


_ALL: Final = "/accounts/{account_id}/credits"
OPERATIONS = (
    Operation(
        method="POST", path=_ALL, handler=create, summary="Grant a credit", body=NewCredit, answer=CreditView, status=201,
        headers=IDEMPOTENT, roles=MONEY, scope="money:write",
    ),
    Operation(
        method="GET", path=_ALL, handler=list_all, summary="List credits", answer=CreditPage, query=PAGING,
        roles=OPERATORS | PAYERS, scope="money:read",
    ),
)  # fmt: skip
