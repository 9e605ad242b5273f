"""API keys: the secret is shown once and kept nowhere."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import apikeys, clock, money
from libs.common.events import ApiKey
from libs.common.limits import Limits
from libs.common.scripts import StoreUnavailable
from libs.common.standing import Budget
from services.admin.access import EVERYBODY, MAKERS, SUPPORT
from services.admin.control import Found
from services.admin.problems import Conflict, Forbidden, Missing, Unavailable, Unprocessable
from services.admin.resource import (
    IDEMPOTENT,
    MATCHED,
    PAGING,
    Call,
    Context,
    Name,
    Operation,
    check_match,
    digest,
    forbid,
    given,
    is_id,
    page,
    read,
    respond,
    time_of,
)
from services.admin.resources import key_options, limits
from services.admin.resources.accounts import find_account
from services.admin.resources.key_making import Build, Made, make
from services.admin.resources.key_options import KeyOptions
from services.admin.resources.limits import LimitsView
from services.admin.resources.people import ActiveOrNot

_RESTORABLE_MS: Final = 30 * 86_400_000
_OWN: Final = "A developer has keys of his own, and no others."


class NewKey(KeyOptions, kw_only=True, forbid_unknown_fields=True):
    """To create a key."""

    name: Name


class KeyChange(KeyOptions, kw_only=True, forbid_unknown_fields=True):
    """To change a key; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: ActiveOrNot | UnsetType = UNSET


class KeyView(msgspec.Struct, kw_only=True):
    """A key, without its secret. null: no such restriction."""

    id: str
    account_id: str
    member_id: str | None
    name: str
    hint: str
    tag: str | None
    status: str
    limits: LimitsView
    models: list[str] | None
    ip_allowlist: list[str] | None
    expires_at: str | None
    deleted_at: str | None
    """It can be restored for 30 days."""
    replaced_by: str | None
    """The key that took its place when it was rotated."""
    created_at: str


class BudgetUse(msgspec.Struct, kw_only=True):
    """A budget of a key."""

    period: str
    limit_usd: str
    spent_usd: str
    remaining_usd: str
    """What is held comes off too."""
    resets_at: str | None


class KeyWithUse(KeyView, kw_only=True):
    """A key with what it has used."""

    spent_usd: str
    held_usd: str
    in_flight: int
    budgets: list[BudgetUse]
    last_used_at: str | None
    """When its last settled request began."""


class CreatedKey(KeyView, kw_only=True):
    """A new key with its secret."""

    key: str


class KeyPage(msgspec.Struct):
    """Keys of an account in the order of their ids, deleted ones included."""

    data: list[KeyView]
    next_cursor: str | None


async def create(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/keys. The same Idempotency-Key gives the same key, with the same secret."""
    body = await read(call, NewKey)
    await find_account(context, call.account_id)
    (made,) = await make(context, call, 1, builder(context, call, [body]), request=digest(body), reason="created")
    return respond(created_view(made), 201, version=made.version)


def builder(context: Context, call: Call, bodies: Sequence[NewKey]) -> Build:
    """Makes the keys that the bodies ask for."""

    async def build(number: int, key_id: str, secret: str) -> ApiKey:
        return await _new_key(context, call, bodies[number], key_id, secret)

    return build


async def _new_key(context: Context, call: Call, body: NewKey, key_id: str, secret: str) -> ApiKey:
    key = ApiKey(
        id=key_id,
        account_id=call.account_id,
        name=body.name,
        created_at_ms=clock.unix_ms(),
        sha256=apikeys.hash_key(secret.encode()),
        hint=apikeys.hint(secret),
        **await own_fields(context, call, Limits(), body, is_new=True),
    )
    if key.expires_at_ms is not None and key.expires_at_ms <= key.created_at_ms:
        raise Unprocessable("expires_at: this time has passed; the key would never work.")
    return key


async def own_fields(context: Context, call: Call, before: Limits, body: KeyOptions, *, is_new: bool) -> dict[str, Any]:
    """What the body sets; a developer's keys are his own, whatever it says. Raises Forbidden, Unprocessable."""
    only = call.principal.only_member_id
    if only and body.member_id is not UNSET and body.member_id != only:
        raise Forbidden(_OWN)
    fields = await key_options.fields(context, call.account_id, before, body)
    return fields | ({"member_id": only} if only and is_new else {})


async def list_all(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/keys. A developer sees his own."""
    await find_account(context, call.account_id)
    query, only = call.query_params, call.principal.only_member_id
    keys = [
        key
        for key in context.mirror.of_account(ApiKey, call.account_id)
        if only in ("", key.member_id)
        and query.get("member_id", key.member_id) == key.member_id
        and query.get("status", key.status) == key.status
        and query.get("tag", key.tag) == key.tag
    ]
    shown, following = page(call, keys, lambda key: key.id)
    return respond(KeyPage([view(key) for key in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/keys/{key_id}."""
    one = await find_key(context, call, str(call.path_params["key_id"]), deleted_too=True)
    try:
        standing = await context.standings.read(one.entity.account_id, one.entity.id)
        used_ms = await context.balances.key_last_used_ms(one.entity.account_id, one.entity.id)
    except StoreUnavailable:
        standing = None
    if standing is None:
        raise Unavailable("What the key has used cannot be read right now. Try again.")
    use = standing.key
    shown = KeyWithUse(
        spent_usd=money.format_usd(use.spent_nanos),
        held_usd=money.format_usd(use.held_nanos),
        in_flight=use.in_flight,
        budgets=[_budget(budget, use.held_nanos) for budget in use.budgets],
        last_used_at=time_of(used_ms) if used_ms else None,
        **_fields(view(one.entity)),
    )
    return respond(shown, version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH /accounts/{account_id}/keys/{key_id}: in force for the very next request."""
    body = await read(call, KeyChange)
    one = await find_key(context, call, str(call.path_params["key_id"]))
    check_match(call, one)
    changed = await changed_key(context, call, one, body)
    put = await context.control.put(changed, over=one, by=call.by("changed"))
    return respond(view(changed), version=put.version)


async def changed_key(context: Context, call: Call, one: Found[ApiKey], body: KeyChange) -> ApiKey:
    """The key after a change. Raises Forbidden, Unprocessable."""
    forbid(
        bool(call.principal.only_member_id) and body.status == "active" and one.entity.status == "disabled",
        "Somebody may have disabled this key for a reason: ask an owner or admin of the account to enable it.",
    )
    options = await own_fields(context, call, one.entity.limits, body, is_new=False)
    return msgspec.structs.replace(one.entity, **given(body, "name", "status"), **options)


async def delete(context: Context, call: Call) -> Response:
    """DELETE /accounts/{account_id}/keys/{key_id}: refused from then on; it can be restored for 30 days."""
    one = await find_key(context, call, str(call.path_params["key_id"]))
    check_match(call, one)
    deleted = msgspec.structs.replace(one.entity, status="deleted", deleted_at_ms=clock.unix_ms())
    put = await context.control.put(deleted, over=one, by=call.by("deleted"))
    return respond(view(deleted), version=put.version)


async def restore(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/keys/{key_id}/restore: disabled, until somebody enables it."""
    one = await find_key(context, call, str(call.path_params["key_id"]), deleted_too=True)
    if one.entity.status != "deleted":
        raise Conflict("This key is not deleted.")
    if one.entity.deleted_at_ms is None or one.entity.deleted_at_ms + _RESTORABLE_MS <= clock.unix_ms():
        raise Conflict("This key was deleted more than 30 days ago. Create a new one.")
    restored = msgspec.structs.replace(one.entity, status="disabled", deleted_at_ms=None)
    put = await context.control.put(restored, over=one, by=call.by("restored"))
    return respond(view(restored), version=put.version)


async def find_key(context: Context, call: Call, key_id: str, *, deleted_too: bool = False) -> Found[ApiKey]:
    """A key of the account in the path that the caller may see. Raises Missing."""
    one = await context.control.find(ApiKey, key_id) if is_id("key", key_id) else None
    only = call.principal.only_member_id
    if one is None or one.entity.account_id != call.account_id or only not in ("", one.entity.member_id):
        raise Missing("This account has no such key.")
    if one.entity.status == "deleted" and not deleted_too:
        raise Missing("This account has no such key.")
    return one


def view(key: ApiKey) -> KeyView:
    """A key as it is shown."""
    return KeyView(
        id=key.id,
        account_id=key.account_id,
        member_id=key.member_id or None,
        name=key.name,
        hint=key.hint,
        tag=key.tag or None,
        status=key.status,
        limits=limits.view(key.limits),
        models=list(key.models) or None,
        ip_allowlist=list(key.ip_allowlist) or None,
        expires_at=None if key.expires_at_ms is None else time_of(key.expires_at_ms),
        deleted_at=None if key.deleted_at_ms is None else time_of(key.deleted_at_ms),
        replaced_by=key.replaced_by or None,
        created_at=time_of(key.created_at_ms),
    )


def _budget(budget: Budget, held_nanos: int) -> BudgetUse:
    left = max(budget.limit_nanos - budget.spent_nanos - held_nanos, 0)
    return BudgetUse(
        period=budget.period,
        limit_usd=money.format_usd(budget.limit_nanos),
        spent_usd=money.format_usd(budget.spent_nanos),
        remaining_usd=money.format_usd(left),
        resets_at=time_of(budget.reset_s * 1000) if budget.reset_s else None,
    )


def created_view(made: Made) -> CreatedKey:
    """A new key as it is shown, once."""
    return CreatedKey(key=made.secret, **_fields(view(made.key)))


def _fields(shown: KeyView) -> dict[str, Any]:
    return {name: getattr(shown, name) for name in KeyView.__struct_fields__}


_ALL: Final = "/accounts/{account_id}/keys"
_ONE: Final = f"{_ALL}/{{key_id}}"
OPERATIONS = (
    Operation(
        method="POST", path=_ALL, handler=create, summary="Create a key", body=NewKey, answer=CreatedKey, status=201,
        headers=IDEMPOTENT, roles=SUPPORT | MAKERS, scope="keys:write",
    ),
    Operation(
        method="GET", path=_ALL, handler=list_all, summary="List keys", answer=KeyPage, roles=EVERYBODY, scope="keys:read",
        query={"member_id": "of one member", "status": "active, disabled or deleted", "tag": "with this tag", **PAGING},
    ),
    Operation(
        method="GET", path=_ONE, handler=show, summary="Show a key and what it has used", answer=KeyWithUse,
        roles=EVERYBODY, scope="keys:read",
    ),
    Operation(
        method="PATCH", path=_ONE, handler=change, summary="Change a key", body=KeyChange, answer=KeyView,
        headers=MATCHED, roles=SUPPORT | MAKERS, scope="keys:write",
    ),
    Operation(
        method="DELETE", path=_ONE, handler=delete, summary="Delete a key", answer=KeyView, headers=MATCHED,
        roles=SUPPORT | MAKERS, scope="keys:write",
    ),
    Operation(
        method="POST", path=f"{_ONE}/restore", handler=restore, summary="Restore a deleted key", answer=KeyView,
        roles=SUPPORT | MAKERS, scope="keys:write",
    ),
)  # fmt: skip
