"""API keys: the secret is shown once and kept nowhere."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import apikeys, clock, ids
from libs.common.events import ApiKey
from services.admin.accounts import find_account
from services.admin.problems import Missing
from services.admin.resource import ACTOR, Context, Name, Operation, is_id, read, respond, time_of


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """To create a key."""

    name: Name


class KeyChange(msgspec.Struct, forbid_unknown_fields=True):
    """To enable or disable a key."""

    status: Literal["active", "disabled"]


class KeyView(msgspec.Struct, kw_only=True):
    """A key, without its secret."""

    id: str
    account_id: str
    name: str
    hint: str
    status: str
    created_at: str


class CreatedKey(KeyView, kw_only=True):
    """A new key with its secret."""

    key: str


class KeyList(msgspec.Struct):
    """All keys of an account, deleted ones included."""

    data: list[KeyView]


async def create(context: Context, request: Request) -> Response:
    """POST /accounts/{account_id}/keys."""
    body = await read(request, NewKey)
    account, _ = await find_account(context, request.path_params["account_id"])
    secret = apikeys.generate()
    key = ApiKey(
        id=ids.new_key_id(),
        account_id=account.id,
        name=body.name,
        created_at_ms=clock.unix_ms(),
        sha256=apikeys.hash_key(secret.encode()),
        hint=apikeys.hint(secret),
    )
    await context.control.put(key, version=0, actor=ACTOR, reason="created")
    return respond(CreatedKey(key=secret, **msgspec.structs.asdict(_view(key))), 201)


async def list_all(context: Context, request: Request) -> Response:
    """GET /accounts/{account_id}/keys; from the archive, which is a second or two behind."""
    account, _ = await find_account(context, request.path_params["account_id"])
    rows = await context.ledger.entities("key", account.id)
    return respond(KeyList([_view(msgspec.json.decode(row["entity"], type=ApiKey)) for row in rows]))


async def change(context: Context, request: Request) -> Response:
    """PATCH /accounts/{account_id}/keys/{key_id}: in force for the very next request."""
    body = await read(request, KeyChange)
    return respond(_view(await _set_status(context, request, body.status)))


async def delete(context: Context, request: Request) -> Response:
    """DELETE /accounts/{account_id}/keys/{key_id}."""
    return respond(_view(await _set_status(context, request, "deleted")))


async def _set_status(context: Context, request: Request, status: Literal["active", "disabled", "deleted"]) -> ApiKey:
    account_id, key_id = request.path_params["account_id"], request.path_params["key_id"]
    found = await context.control.find(ApiKey, key_id) if is_id("key", key_id) else None
    if found is None or found[0].account_id != account_id or found[0].status == "deleted":
        raise Missing("This account has no such key.")
    key, version = found
    changed = msgspec.structs.replace(key, status=status)
    await context.control.put(changed, version=version, actor=ACTOR, reason=status)
    return changed


def _view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        account_id=key.account_id,
        name=key.name,
        hint=key.hint,
        status=key.status,
        created_at=time_of(key.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/accounts/{account_id}/keys", handler=create, summary="Create a key", body=NewKey,
        answer=CreatedKey, status=201,
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/keys", handler=list_all, summary="List keys", answer=KeyList
    ),
    Operation(
        method="PATCH", path="/accounts/{account_id}/keys/{key_id}", handler=change,
        summary="Enable or disable a key", body=KeyChange, answer=KeyView,
    ),
    Operation(
        method="DELETE", path="/accounts/{account_id}/keys/{key_id}", handler=delete, summary="Delete a key",
        answer=KeyView,
    ),
)  # fmt: skip
