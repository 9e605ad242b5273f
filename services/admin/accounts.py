"""Accounts: who pays."""

import re
import zoneinfo
from decimal import Decimal
from functools import cache
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.events import Account
from libs.common.limits import ACCOUNT_DEFAULTS, Limits
from services.admin import limits
from services.admin.limits import LimitsChange, LimitsView
from services.admin.problems import Missing, Unprocessable
from services.admin.resource import ACTOR, Context, Name, Operation, given, is_id, read, respond, time_of

_MULTIPLIER: Final = re.compile(r"100(\.0{1,6})?|[0-9]{1,2}(\.[0-9]{1,6})?")
Multiplier = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^({_MULTIPLIER.pattern})$"})]
_PPM: Final = 1_000_000
_NO_PLACES: Final = frozenset({"Factory", "localtime"})
"""Files beside the zones: no zone set, and whatever this machine has."""


class NewAccount(msgspec.Struct, forbid_unknown_fields=True):
    """To create an account."""

    name: Name
    time_zone: str = "UTC"
    """IANA name: where its days, weeks and months begin."""
    limits: LimitsChange | UnsetType = UNSET


class AccountChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change an account; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET
    on_disconnect: Literal["drain", "cancel"] | UnsetType = UNSET
    multiplier: Multiplier | UnsetType = UNSET
    """Decimal string from "0" to "100" with at most six decimals; "1" passes public prices through one to one."""
    time_zone: str | UnsetType = UNSET
    limits: LimitsChange | UnsetType = UNSET


class AccountView(msgspec.Struct, kw_only=True):
    """An account."""

    id: str
    name: str
    status: str
    on_disconnect: str
    multiplier: str
    time_zone: str
    limits: LimitsView
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
    account = Account(
        id=ids.new_account_id(),
        name=body.name,
        created_at_ms=clock.unix_ms(),
        time_zone=_time_zone(body.time_zone),
        limits=limits.changed(Limits(), body.limits),
    )
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
    fields = given(body, "name", "status", "on_disconnect")
    if body.multiplier is not UNSET:
        fields["multiplier_ppm"] = _ppm(body.multiplier)
    if body.time_zone is not UNSET:
        fields["time_zone"] = _time_zone(body.time_zone)
    changed = msgspec.structs.replace(account, limits=limits.changed(account.limits, body.limits), **fields)
    await context.control.put(changed, version=version, actor=ACTOR, reason="changed")
    return respond(_view(changed))


def _ppm(multiplier: str) -> int:
    if _MULTIPLIER.fullmatch(multiplier) is None:
        raise Unprocessable('multiplier must be a decimal number from "0" to "100" with at most six decimals.')
    return int(Decimal(multiplier) * _PPM)


def _time_zone(name: str) -> str:
    if name not in _time_zones():
        raise Unprocessable("time_zone must be a name of the IANA database, such as Europe/Berlin or UTC.")
    return name


@cache
def _time_zones() -> frozenset[str]:
    """Looking takes some 50 ms, once."""
    return frozenset(zoneinfo.available_timezones() - _NO_PLACES)


def _view(account: Account) -> AccountView:
    return AccountView(
        id=account.id,
        name=account.name,
        status=account.status,
        on_disconnect=account.on_disconnect,
        multiplier=format((Decimal(account.multiplier_ppm) / _PPM).normalize(), "f"),
        time_zone=account.time_zone,
        limits=limits.view(account.limits, ACCOUNT_DEFAULTS),
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
