"""Credits and adjustments: entries that change a balance. There is no way to set one."""

import hashlib
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock, ids, money
from libs.common.events import Credit
from libs.common.scripts import StoreUnavailable
from services.admin.accounts import find_account
from services.admin.problems import BadInput, Conflict, Unprocessable
from services.admin.resource import ACTOR, Context, Operation, Reason, read, respond, time_of

Amount = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$"})]
_IDEMPOTENCY_CHARS_MAX: Final = 200


class NewCredit(msgspec.Struct, forbid_unknown_fields=True):
    """To grant a credit; a negative amount is an adjustment."""

    amount_usd: Amount
    """Decimal string of dollars, such as "10.00": up to nine decimals, at most 9,000,000."""
    reason: Reason


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
    idempotency_key = request.headers.get("idempotency-key")
    credit = Credit(
        id=_credit_id(account.id, idempotency_key),
        account_id=account.id,
        amount_nanos=_amount(body.amount_usd),
        reason=body.reason,
        created_at_ms=clock.unix_ms(),
    )
    if idempotency_key is not None and (found := await context.control.find(Credit, credit.id)):
        return _repeated(found[0], credit)
    try:
        await _check_limit(context, credit)
        await context.control.put(credit, version=0, actor=ACTOR, reason=body.reason)
    except (Conflict, Unprocessable):  # it may be its own twin, sent at the same time, that was in the way
        found = await context.control.find(Credit, credit.id)
        if found is None:
            raise
        return _repeated(found[0], credit)
    return respond(_view(credit), 201)


async def _check_limit(context: Context, credit: Credit) -> None:
    """A credit that would lift the balance beyond what an account may hold would be parked; better to say so now."""
    try:
        balance = await context.balances.read(credit.account_id)
    except StoreUnavailable:
        return  # accounting decides
    total = balance.available + balance.held + credit.amount_nanos if balance else credit.amount_nanos
    if abs(total) > money.AMOUNT_NANOS_MAX:
        raise Unprocessable("amount_usd: the balance would be beyond the 9,000,000 dollars an account may hold.")


def _repeated(first: Credit, credit: Credit) -> Response:
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
        headers={"Idempotency-Key": "1 to 200 characters: sent again with the same one, it is the same credit, once"},
    ),
)  # fmt: skip
