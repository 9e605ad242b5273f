"""Redeem codes: made in batches, redeemed by accounts. A code is shown once; what is kept cannot be redeemed."""

import hashlib
import re
import secrets
from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from libs.common import clock, ids, money
from libs.common.entities import RedeemCode
from libs.common.events import Account, Credit
from libs.common.sealing import SecretsKeyMissing
from services.admin.access import MONEY, OPERATORS, PAYERS
from services.admin.control import Put
from services.admin.problems import Conflict, Missing, Unprocessable
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
    is_id,
    page_limit,
    read,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account
from services.admin.resources.credits import check_limit, parsed
from services.admin.resources.times import Expiry, expiry_ms

_BATCH_MAX: Final = 500
_ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # nothing that looks like something else
_GROUPS: Final = 5
_GROUP_CHARS: Final = 5  # 25 of 32 characters: 125 bits
_NOT_WRITTEN: Final = re.compile(r"[\s-]+")
_TRIES_MAX: Final = 10
_DAY_MS: Final = 86_400_000
_NO_SECRETS_KEY: Final = "Idempotency-Key: RELAY_SECRETS_KEY is not set, and without it codes cannot be answered twice."
_NO_CODE: Final = "There is no such code, it was revoked, it has expired, or it was used up."


class NewCodes(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To make redeem codes."""

    count: Annotated[int, msgspec.Meta(ge=1, le=_BATCH_MAX)]
    amount_usd: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"})]
    uses_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """How many accounts may redeem each of them; an account does so once."""
    expires_at: Expiry | None = None
    credit_days: Annotated[int, msgspec.Meta(ge=1, le=3_650)] | None = None
    """How long what it gives may be spent; null: for ever."""
    reason: Reason


class CodeView(msgspec.Struct, kw_only=True):
    """A code, as far as it is kept."""

    id: str
    batch_id: str
    hint: str
    amount_usd: str
    uses: int
    uses_max: int
    status: str
    reason: str
    expires_at: str | None
    created_at: str


class CreatedCodes(msgspec.Struct, kw_only=True):
    """New codes, shown once."""

    batch_id: str
    codes: list[str]


class CodePage(msgspec.Struct):
    """In the order of their ids: from the archive, which is a second or two behind."""

    data: list[CodeView]
    next_cursor: str | None


class Redemption(msgspec.Struct, forbid_unknown_fields=True):
    """To redeem a code."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=100, extra_json_schema={"writeOnly": True})]


class Redeemed(msgspec.Struct, kw_only=True):
    """What a code gave."""

    credit_id: str
    amount_usd: str
    expires_at: str | None


async def create(context: Context, call: Call) -> Response:
    """POST /codes. The same Idempotency-Key gives the same codes, to the same caller."""
    body = await read(call, NewCodes)
    amount_nanos = _amount(body.amount_usd)
    batch_id, request = call.derived_id("batch", call.principal.actor), digest(body)
    if batch_id is not None and (again := await _repeated(context, batch_id, body.count, request)):
        return respond(CreatedCodes(batch_id=batch_id, codes=again), 201)
    codes = _codes(_bits(context, batch_id)[0], body.count)
    expires_at_ms = expiry_ms(body.expires_at)
    made = [
        RedeemCode(
            id=code_id(code),
            batch_id=batch_id or ids.new_id("batch"),
            hint=code[:_GROUP_CHARS] + "…",
            amount_nanos=amount_nanos,
            created_at_ms=clock.unix_ms(),
            uses_max=body.uses_max,
            expires_at_ms=expires_at_ms,
            credit_days=body.credit_days,
            reason=body.reason,
        )
        for code in codes
    ]
    made = [msgspec.structs.replace(one, batch_id=made[0].batch_id) for one in made]
    puts: list[Put] = [(one, None) for one in made]
    try:
        await context.control.put_all(puts, by=call.by(body.reason, request if batch_id else ""))
    except Conflict:  # it may be its own twin, sent at the same time, that was in the way
        if batch_id is None or await _repeated(context, batch_id, body.count, request) is None:
            raise
    return respond(CreatedCodes(batch_id=made[0].batch_id, codes=codes), 201)


async def list_all(context: Context, call: Call) -> Response:
    """GET /codes."""
    limit = page_limit(call)
    rows = await context.ledger.entities("code", "", after=cursor(call), limit=limit + 1)
    following = encode_cursor(rows[limit - 1]["entity_id"]) if len(rows) > limit else None
    codes = [msgspec.json.decode(row["entity"], type=RedeemCode) for row in rows[:limit]]
    return respond(CodePage([_view(one) for one in codes], following))


async def revoke(context: Context, call: Call) -> Response:
    """DELETE /codes/{code_id}: nobody redeems it any more; what it gave stays."""
    name = str(call.path_params["code_id"])
    one = await context.control.find(RedeemCode, name) if is_id("code", name) else None
    if one is None:
        raise Missing("There is no such code.")
    revoked = msgspec.structs.replace(one.entity, status="revoked")
    await context.control.put(revoked, over=one, by=call.by("revoked"))
    return respond(_view(revoked))


async def redeem(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/redemptions: code and credit change together. Sent again, it is the same credit."""
    body = await read(call, Redemption)
    account = (await find_account(context, call.account_id)).entity
    await context.sessions.count_try("redeem", call.account_id, _TRIES_MAX)
    await context.sessions.count_try("redeem-from", call.place, _TRIES_MAX * 5)
    name = code_id(body.code)
    credit_id = ids.derived_id("cred", "redemption", name, account.id)
    if (done := await context.control.find(Credit, credit_id)) is not None:
        return _answered(done.entity)
    for _ in range(_TRIES_MAX):  # a code of many uses is redeemed by many at once
        try:
            credit = await _redeemed(context, call, account, name, credit_id)
            await context.sessions.forget_tries("redeem", call.account_id)
            return _answered(credit)
        except (
            Conflict,
            Missing,
            Unprocessable,
        ) as problem:  # its own twin, sent at the same time, may have used the code up
            if (done := await context.control.find(Credit, credit_id)) is not None:
                return _answered(done.entity)
            if not isinstance(problem, Conflict):
                raise
    raise Conflict("Many redeem this code just now. Try again.")


async def _redeemed(context: Context, call: Call, account: Account, name: str, credit_id: str) -> Credit:
    one = await context.control.find(RedeemCode, name)
    now_ms = clock.unix_ms()
    if one is None or one.entity.status != "active" or one.entity.uses >= one.entity.uses_max:
        raise Missing(_NO_CODE)
    code = one.entity
    if code.expires_at_ms is not None and code.expires_at_ms <= now_ms:
        raise Missing(_NO_CODE)
    credit = Credit(
        id=credit_id,
        account_id=account.id,
        amount_nanos=code.amount_nanos,
        reason=code.reason,
        created_at_ms=now_ms,
        kind="promotion" if code.credit_days else "redemption",
        expires_at_ms=now_ms + code.credit_days * _DAY_MS if code.credit_days else None,
        about_id=code.id,
    )
    await check_limit(context, credit)
    used = msgspec.structs.replace(code, uses=code.uses + 1)
    await context.control.put_all([(used, one), (credit, None)], by=call.by("redeemed"))
    return credit


def _answered(credit: Credit) -> Response:
    expires_at = None if credit.expires_at_ms is None else time_of(credit.expires_at_ms)
    amount = money.format_usd(credit.amount_nanos)
    return respond(Redeemed(credit_id=credit.id, amount_usd=amount, expires_at=expires_at), 201)


def code_id(code: str) -> str:
    """The id that a code makes, however it is written."""
    return ids.derived_id("code", _NOT_WRITTEN.sub("", code).upper())


async def _repeated(context: Context, batch_id: str, count: int, request: str) -> list[str] | None:
    """The codes that this call has made before, also if RELAY_SECRETS_KEY has got a new key in front since; None: none."""
    for bits in _bits(context, batch_id):
        codes = _codes(bits, count)
        if await context.control.first(RedeemCode, code_id(codes[0]), request) is not None:
            return codes
    return None


def _bits(context: Context, batch_id: str | None) -> list[bytes]:
    """What the codes of a batch are made from, by each key there is."""
    if batch_id is None:
        return [secrets.token_bytes(32)]
    try:
        return context.sealer.derive(batch_id)
    except SecretsKeyMissing:
        raise Conflict(_NO_SECRETS_KEY) from None


def _codes(bits: bytes, count: int) -> list[str]:
    return [_code(hashlib.sha256(bits + str(number).encode()).digest()) for number in range(count)]


def _code(bits: bytes) -> str:
    value = int.from_bytes(bits, "big")
    text = "".join(_ALPHABET[value >> (5 * at) & 31] for at in range(_GROUPS * _GROUP_CHARS))
    return "-".join(text[at : at + _GROUP_CHARS] for at in range(0, len(text), _GROUP_CHARS))


def _amount(text: str) -> int:
    nanos = parsed(text)
    if nanos <= 0:
        raise Unprocessable("amount_usd: a code gives something.")
    return nanos


def _view(code: RedeemCode) -> CodeView:
    return CodeView(
        id=code.id,
        batch_id=code.batch_id,
        hint=code.hint,
        amount_usd=money.format_usd(code.amount_nanos),
        uses=code.uses,
        uses_max=code.uses_max,
        status=code.status,
        reason=code.reason,
        expires_at=None if code.expires_at_ms is None else time_of(code.expires_at_ms),
        created_at=time_of(code.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/codes", handler=create, summary="Make redeem codes", body=NewCodes, answer=CreatedCodes,
        status=201, headers=IDEMPOTENT, roles=MONEY, scope="money:write",
    ),
    Operation(
        method="GET", path="/codes", handler=list_all, summary="List redeem codes", answer=CodePage, query=PAGING,
        roles=OPERATORS, scope="money:read",
    ),
    Operation(
        method="DELETE", path="/codes/{code_id}", handler=revoke, summary="Revoke a redeem code", answer=CodeView,
        roles=MONEY, scope="money:write",
    ),
    Operation(
        method="POST", path="/accounts/{account_id}/redemptions", handler=redeem, summary="Redeem a code",
        body=Redemption, answer=Redeemed, status=201, roles=PAYERS, scope="money:write",
    ),
)  # fmt: skip
