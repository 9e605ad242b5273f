"""Several keys at once, all or none; and rotation: a new key takes an old one's place, and both work for a while."""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from libs.common import apikeys, clock
from libs.common.events import ApiKey
from services.admin.access import MAKERS, SUPPORT
from services.admin.control import Put
from services.admin.problems import Conflict
from services.admin.resource import IDEMPOTENT, Call, Context, Operation, digest, read, respond
from services.admin.resources import keys
from services.admin.resources.accounts import find_account
from services.admin.resources.key_making import make
from services.admin.resources.keys import CreatedKey, KeyChange, KeyView, NewKey

_BATCH_MAX: Final = 100
Overlap = Annotated[int, msgspec.Meta(ge=0, le=30 * 86_400)]


class NewKeys(msgspec.Struct, forbid_unknown_fields=True):
    """To create keys: all of them or none."""

    keys: Annotated[list[NewKey], msgspec.Meta(min_length=1, max_length=_BATCH_MAX)]


class KeysChange(msgspec.Struct, forbid_unknown_fields=True):
    """To change keys alike: all of them or none."""

    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=_BATCH_MAX)]
    change: KeyChange


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """To rotate a key."""

    overlap_seconds: Overlap = 86_400
    """How long the old key works beside the new one, at most."""


class CreatedKeys(msgspec.Struct):
    """New keys with their secrets, in the order of the request."""

    data: list[CreatedKey]


class Keys(msgspec.Struct):
    """Keys, in the order of the request."""

    data: list[KeyView]


async def create(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/key-batches."""
    body = await read(call, NewKeys)
    await find_account(context, call.account_id)
    build = keys.builder(context, call, body.keys)
    made = await make(context, call, len(body.keys), build, request=digest(body), reason="created")
    return respond(CreatedKeys([keys.created_view(one) for one in made]), 201)


async def change(context: Context, call: Call) -> Response:
    """PATCH /accounts/{account_id}/key-batches."""
    body = await read(call, KeysChange)
    puts: list[Put] = []
    for key_id in dict.fromkeys(body.ids):
        one = await keys.find_key(context, call, key_id)
        puts.append((await keys.changed_key(context, call, one, body.change), one))
    found = await context.control.put_all(puts, by=call.by("changed"))
    return respond(Keys([keys.view(one.entity) for one in found]))


async def rotate(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/keys/{key_id}/rotate: the new key has the old one's name, member, limits and tag."""
    body = await read(call, Rotation)
    old_id = str(call.path_params["key_id"])
    one = await keys.find_key(context, call, old_id)
    old = one.entity
    now_ms = clock.unix_ms()
    ends_ms = now_ms + body.overlap_seconds * 1000
    ends_ms = min(ends_ms, old.expires_at_ms) if old.expires_at_ms is not None else ends_ms

    async def build(_: int, key_id: str, secret: str) -> ApiKey:
        if old.replaced_by:
            raise Conflict(f"This key was rotated before; rotate {old.replaced_by} instead.")
        hint, sha256 = apikeys.hint(secret), apikeys.hash_key(secret.encode())
        return msgspec.structs.replace(old, id=key_id, created_at_ms=now_ms, sha256=sha256, hint=hint)

    def beside(made: Sequence[ApiKey]) -> list[Put]:
        return [(msgspec.structs.replace(old, replaced_by=made[0].id, expires_at_ms=ends_ms), one)]

    (made,) = await make(
        context, call, 1, build, request=digest(body, old_id), reason=f"rotated {old_id}", beside=beside
    )
    return respond(keys.created_view(made), 201)


_BATCHES: Final = "/accounts/{account_id}/key-batches"
OPERATIONS = (
    Operation(
        method="POST", path=_BATCHES, handler=create, summary="Create keys, all or none", body=NewKeys,
        answer=CreatedKeys, status=201, headers=IDEMPOTENT, roles=SUPPORT | MAKERS, scope="keys:write",
    ),
    Operation(
        method="PATCH", path=_BATCHES, handler=change, summary="Change keys, all or none", body=KeysChange, answer=Keys,
        roles=SUPPORT | MAKERS, scope="keys:write",
    ),
    Operation(
        method="POST", path="/accounts/{account_id}/keys/{key_id}/rotate", handler=rotate, summary="Rotate a key",
        body=Rotation, answer=CreatedKey, status=201, headers=IDEMPOTENT, roles=SUPPORT | MAKERS, scope="keys:write",
    ),
)  # fmt: skip
