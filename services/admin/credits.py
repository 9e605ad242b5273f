"""Credits and adjustments: entries that change a balance. There is no way to set one."""

import hashlib
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock, ids, money
from libs.common.events import Credit
from services.admin.accounts import find_account
from services.admin.problems import BadInput, Conflict, Unprocessable
from services.admin.resource import ACTOR, Context, Operation, read, respond, time_of

_IDEMPOTENCY_CHARS_MAX = 200


class NewCredit(msgspec.Struct, forbid_unknown_fields=True):
    """To grant a credit; a negative amount is an adjustment."""

    amount_usd: str
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class CreditView(msgspec.Struct, kw_only=True):
    """A credit."""

    id: str
    account_id: str
    amount_usd: str
    reason: str
    created_at: str


async def create(context: Context, request: Request) -> Response:
    """POST /accounts/{account_id}/credits. The same Idempotency-Key gives the same credit, once."""
    body = await read(request, NewCredit)
    account, _ = await find_account(context, request.path_params["account_id"])
    credit = Credit(
        id=_credit_id(account.id, request.headers.get("idempotency-key")),
        account_id=account.id,
        amount_nanos=_amount(body.amount_usd),
        reason=body.reason,
        created_at_ms=clock.unix_ms(),
    )
    try:
        await context.control.put(credit, version=0, actor=ACTOR, reason=body.reason)
    except Conflict:
        return await _repeated(context, credit)
    return respond(_view(credit), 201)


async def _repeated(context: Context, credit: Credit) -> Response:
    found = await context.control.find(Credit, credit.id)
    assert found is not None  # the log has just said that it is there
    first, _ = found
    if (first.amount_nanos, first.reason) != (credit.amount_nanos, credit.reason):
        raise Unprocessable("This Idempotency-Key was used for another credit.")
    return respond(_view(first), 201)


def _credit_id(account_id: str, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return ids.new_credit_id()
    if not 1 <= len(idempotency_key) <= _IDEMPOTENCY_CHARS_MAX:
        raise BadInput(f"Idempotency-Key must have 1 to {_IDEMPOTENCY_CHARS_MAX} characters.")
    return "cred_" + hashlib.sha256(f"{account_id} {idempotency_key}".encode()).hexdigest()[:32]


def _amount(text: str) -> int:
    try:
        nanos = money.parse_usd(text)
    except ValueError as error:
        raise Unprocessable(f"amount_usd: {error}.") from None
    if nanos == 0:
        raise Unprocessable("amount_usd: an entry of nothing changes nothing.")
    return nanos


def _view(credit: Credit) -> CreditView:
    return CreditView(
        id=credit.id,
        account_id=credit.account_id,
        amount_usd=money.format_usd(credit.amount_nanos),
        reason=credit.reason,
        created_at=time_of(credit.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/accounts/{account_id}/credits", handler=create, summary="Grant a credit",
        body=NewCredit, answer=CreditView, status=201,
    ),
)  # fmt: skip
