"""Accounts: who pays."""

import re
import zoneinfo
from decimal import Decimal
from functools import cache
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.events import Account, UpstreamCredential
from libs.common.limits import ACCOUNT_DEFAULTS, Limits
from services.admin.access import EVERYBODY, LEADERS, MONEY, OPERATORS, SUPPORT
from services.admin.control import Found
from services.admin.problems import Missing, Unprocessable
from services.admin.resource import (
    MATCHED,
    PAGING,
    Call,
    Context,
    Name,
    Operation,
    Reason,
    check_match,
    forbid,
    given,
    is_id,
    page,
    read,
    respond,
    time_of,
)
from services.admin.resources import limits
from services.admin.resources.limits import LimitsChange, LimitsView

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
    reason: Reason | UnsetType = UNSET
    """For the audit log."""


class AccountView(msgspec.Struct, kw_only=True):
    """An account."""

    id: str
    name: str
    status: str
    on_disconnect: str
    multiplier: str
    time_zone: str
    limits: LimitsView
    upstreams: Literal["shared", "dedicated"]
    """Dedicated: it has credentials of its own, and uses no others."""
    created_at: str


class AccountPage(msgspec.Struct):
    """In the order they were made."""

    data: list[AccountView]
    next_cursor: str | None


async def find_account(context: Context, account_id: str) -> Found[Account]:
    """An account. Raises Missing."""
    one = await context.control.find(Account, account_id) if is_id("acct", account_id) else None
    if one is None:
        raise Missing("There is no such account.")
    return one


async def create(context: Context, call: Call) -> Response:
    """POST /accounts."""
    body = await read(call, NewAccount)
    account = Account(
        id=ids.new_account_id(),
        name=body.name,
        created_at_ms=clock.unix_ms(),
        time_zone=check_time_zone("time_zone", body.time_zone),
        limits=limits.changed(Limits(), body.limits),
    )
    one = await context.control.put(account, over=None, by=call.by("created"))
    return respond(_view(context, account), 201, version=one.version)


async def list_all(context: Context, call: Call) -> Response:
    """GET /accounts."""
    wanted = call.query_params.get("name", "").casefold()
    accounts = [one for one in context.mirror.all(Account) if wanted in one.name.casefold()]
    shown, following = page(call, accounts, lambda one: one.id)
    return respond(AccountPage([_view(context, one) for one in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}."""
    one = await find_account(context, call.account_id)
    return respond(_view(context, one.entity), version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH /accounts/{account_id}."""
    body = await read(call, AccountChange)
    _check_may(call, body)
    one = await find_account(context, call.account_id)
    check_match(call, one)
    fields = given(body, "name", "status", "on_disconnect")
    if body.multiplier is not UNSET:
        fields["multiplier_ppm"] = _ppm(body.multiplier)
    if body.time_zone is not UNSET:
        fields["time_zone"] = check_time_zone("time_zone", body.time_zone)
    changed = msgspec.structs.replace(one.entity, limits=limits.changed(one.entity.limits, body.limits), **fields)
    put = await context.control.put(changed, over=one, by=call.by(given(body, "reason").get("reason", "changed")))
    return respond(_view(context, changed), version=put.version)


def _check_may(call: Call, body: AccountChange) -> None:
    """Money is for those who answer for it; what an account may use is for the operator to say."""
    role = call.principal.role
    forbid(
        body.multiplier is not UNSET and role not in MONEY,
        "multiplier: only an operator with the role owner or finance changes prices.",
    )
    for name in ("status", "limits"):
        forbid(
            getattr(body, name) is not UNSET and role not in SUPPORT,
            f"{name}: only an operator with the role owner or support changes it. Limits of members and keys are yours to set.",
        )


def _ppm(multiplier: str) -> int:
    if _MULTIPLIER.fullmatch(multiplier) is None:
        raise Unprocessable('multiplier must be a decimal number from "0" to "100" with at most six decimals.')
    return int(Decimal(multiplier) * _PPM)


def check_time_zone(field: str, name: str) -> str:
    """The name of a zone. Raises Unprocessable."""
    if name not in _time_zones():
        raise Unprocessable(f"{field} must be a name of the IANA database, such as Europe/Berlin or UTC.")
    return name


@cache
def _time_zones() -> frozenset[str]:
    """Looking takes some 50 ms, once."""
    return frozenset(zoneinfo.available_timezones() - _NO_PLACES)


def _view(context: Context, account: Account) -> AccountView:
    dedicated = any(one.status != "deleted" for one in context.mirror.of_account(UpstreamCredential, account.id))
    return AccountView(
        id=account.id,
        name=account.name,
        status=account.status,
        on_disconnect=account.on_disconnect,
        multiplier=format((Decimal(account.multiplier_ppm) / _PPM).normalize(), "f"),
        time_zone=account.time_zone,
        limits=limits.view(account.limits, ACCOUNT_DEFAULTS),
        upstreams="dedicated" if dedicated else "shared",
        created_at=time_of(account.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/accounts", handler=create, summary="Create an account", body=NewAccount,
        answer=AccountView, status=201, roles=SUPPORT, scope="accounts:write",
    ),
    Operation(
        method="GET", path="/accounts", handler=list_all, summary="List accounts", answer=AccountPage,
        query={"name": "a part of the name", **PAGING}, roles=OPERATORS, scope="accounts:read",
    ),
    Operation(
        method="GET", path="/accounts/{account_id}", handler=show, summary="Show an account", answer=AccountView,
        roles=EVERYBODY, scope="accounts:read",
    ),
    Operation(
        method="PATCH", path="/accounts/{account_id}", handler=change, summary="Change an account", headers=MATCHED,
        body=AccountChange, answer=AccountView, roles=SUPPORT | MONEY | LEADERS, scope="accounts:write",
    ),
)  # fmt: skip
