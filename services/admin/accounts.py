"""Accounts: who pays."""

import re
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.events import Account
from services.admin.problems import Missing, Unprocessable
from services.admin.resource import ACTOR, Context, Name, Operation, is_id, read, respond, time_of

_MULTIPLIER: Final = re.compile(r"100(\.0{1,6})?|[0-9]{1,2}(\.[0-9]{1,6})?")
Multiplier = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^({_MULTIPLIER.pattern})$"})]
_PPM: Final = 1_000_000


class NewAccount(msgspec.Struct, forbid_unknown_fields=True):
    """To create an account."""

    name: Name


class AccountChange(msgspec.Struct, forbid_unknown_fields=True):
    """To change an account; what is absent stays."""

    name: Name | None = None
    status: Literal["active", "disabled"] | None = None
    on_disconnect: Literal["drain", "cancel"] | None = None
    multiplier: Multiplier | None = None
    """Decimal string from "0" to "100" with at most six decimals; "1" passes public prices through one to one."""


class AccountView(msgspec.Struct, kw_only=True):
    """An account."""

    id: str
    name: str
    status: str
    on_disconnect: str
    multiplier: str
    created_at: str


async def find_account(context: Context, account_id: str) -> tuple[Account, int]:
    """An account and its version. Raises Missing."""
    found = await context.control.find(Account, account_id) if is_id("acct", account_id) else None
    if found is None:
        raise Missing("There is no such account.")
    return found


async def create(context: Context, request: Request) -> Response:
    """POST /accounts."""
    body = await read(request, NewAccount)
    account = Account(id=ids.new_account_id(), name=body.name, created_at_ms=clock.unix_ms())
    await context.control.put(account, version=0, actor=ACTOR, reason="created")
    return respond(_view(account), 201)


async def show(context: Context, request: Request) -> Response:
    """GET /accounts/{account_id}."""
    account, _ = await find_account(context, request.path_params["account_id"])
    return respond(_view(account))


async def change(context: Context, request: Request) -> Response:
    """PATCH /accounts/{account_id}."""
    body = await read(request, AccountChange)
    account, version = await find_account(context, request.path_params["account_id"])
    changed = msgspec.structs.replace(
        account,
        name=body.name or account.name,
        status=body.status or account.status,
        on_disconnect=body.on_disconnect or account.on_disconnect,
        multiplier_ppm=account.multiplier_ppm if body.multiplier is None else _ppm(body.multiplier),
    )
    await context.control.put(changed, version=version, actor=ACTOR, reason="changed")
    return respond(_view(changed))


def _ppm(multiplier: str) -> int:
    if _MULTIPLIER.fullmatch(multiplier) is None:
        raise Unprocessable('multiplier must be a decimal number from "0" to "100" with at most six decimals.')
    return int(Decimal(multiplier) * _PPM)


def _view(account: Account) -> AccountView:
    return AccountView(
        id=account.id,
        name=account.name,
        status=account.status,
        on_disconnect=account.on_disconnect,
        multiplier=format((Decimal(account.multiplier_ppm) / _PPM).normalize(), "f"),
        created_at=time_of(account.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/accounts", handler=create, summary="Create an account", body=NewAccount,
        answer=AccountView, status=201,
    ),
    Operation(
        method="GET", path="/accounts/{account_id}", handler=show, summary="Show an account", answer=AccountView
    ),
    Operation(
        method="PATCH", path="/accounts/{account_id}", handler=change, summary="Change an account",
        body=AccountChange, answer=AccountView,
    ),
)  # fmt: skip
