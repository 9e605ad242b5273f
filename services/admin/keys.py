"""API keys: the secret is shown once and kept nowhere; and where, for what and how long a key may be used."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from libs.common import apikeys, clock, ids, pricebook
from libs.common.events import ApiKey
from libs.common.limits import Limits
from services.admin import limits
from services.admin.accounts import find_account
from services.admin.limits import LimitsChange, LimitsView
from services.admin.members import find_member
from services.admin.problems import Missing, Unprocessable
from services.admin.resource import ACTOR, Context, Name, Operation, given, is_id, read, respond, time_of

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_EXPIRY_MS_MAX: Final = 4_102_444_800_000  # 2100-01-01
_SOME: Final = {"minItems": 1}
Models = Annotated[list[str], msgspec.Meta(max_length=100, extra_json_schema=_SOME)]
"""Ids or aliases of the price book."""
Addresses = Annotated[list[str], msgspec.Meta(max_length=100, extra_json_schema=_SOME)]
"""Addresses and networks (CIDR)."""
Expiry = Annotated[datetime, msgspec.Meta(tz=True)]


class KeyOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may be set when a key is created, and later. Absent: it stays; null: no such restriction."""

    member_id: str | UnsetType | None = UNSET
    limits: LimitsChange | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    ip_allowlist: Addresses | UnsetType | None = UNSET
    expires_at: Expiry | UnsetType | None = UNSET


class NewKey(KeyOptions, kw_only=True, forbid_unknown_fields=True):
    """To create a key."""

    name: Name


class KeyChange(KeyOptions, kw_only=True, forbid_unknown_fields=True):
    """To change a key; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET


class KeyView(msgspec.Struct, kw_only=True):
    """A key, without its secret. null: no such restriction."""

    id: str
    account_id: str
    member_id: str | None
    name: str
    hint: str
    status: str
    limits: LimitsView
    models: list[str] | None
    ip_allowlist: list[str] | None
    expires_at: str | None
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
        **await _options(context, account.id, Limits(), body),
    )
    if key.expires_at_ms is not None and key.expires_at_ms <= key.created_at_ms:
        raise Unprocessable("expires_at: this time has passed; the key would never work.")
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
    key, version = await _find(context, request)
    options = await _options(context, key.account_id, key.limits, body)
    changed = msgspec.structs.replace(key, **given(body, "name", "status"), **options)
    await context.control.put(changed, version=version, actor=ACTOR, reason="changed")
    return respond(_view(changed))


async def delete(context: Context, request: Request) -> Response:
    """DELETE /accounts/{account_id}/keys/{key_id}."""
    key, version = await _find(context, request)
    deleted = msgspec.structs.replace(key, status="deleted")
    await context.control.put(deleted, version=version, actor=ACTOR, reason="deleted")
    return respond(_view(deleted))


async def _find(context: Context, request: Request) -> tuple[ApiKey, int]:
    account_id, key_id = request.path_params["account_id"], request.path_params["key_id"]
    found = await context.control.find(ApiKey, key_id) if is_id("key", key_id) else None
    if found is None or found[0].account_id != account_id or found[0].status == "deleted":
        raise Missing("This account has no such key.")
    return found


async def _options(context: Context, account_id: str, present: Limits, body: KeyOptions) -> dict[str, Any]:
    """The fields of an ApiKey that the body sets. Raises Unprocessable that names the field."""
    fields: dict[str, Any] = {"limits": limits.changed(present, body.limits)}
    if body.member_id is not UNSET:
        fields["member_id"] = await _member_id(context, account_id, body.member_id)
    if body.models is not UNSET:
        fields["models"] = _models(body.models)
    if body.ip_allowlist is not UNSET:
        fields["ip_allowlist"] = _addresses(body.ip_allowlist)
    if body.expires_at is not UNSET:
        fields["expires_at_ms"] = _expiry_ms(body.expires_at)
    return fields


async def _member_id(context: Context, account_id: str, member_id: str | None) -> str:
    if member_id is None:
        return ""
    try:
        await find_member(context, account_id, member_id)
    except Missing:
        raise Unprocessable("member_id: this account has no such member.") from None
    return member_id


def _models(names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if not names:
        raise Unprocessable("models: an empty list would allow none; null allows all.")
    book = pricebook.load()
    found: dict[str, None] = {}
    for name in names:
        row = book.find(name)
        if row is None:
            raise Unprocessable(f"models: the price book has no {name[:80]!r}.")
        found[row.id] = None
    return tuple(found)


def _addresses(texts: Sequence[str] | None) -> tuple[str, ...]:
    if texts is None:
        return ()
    if not texts:
        raise Unprocessable("ip_allowlist: an empty list would allow no address; null allows every one.")
    return tuple(dict.fromkeys(_address(text) for text in texts))


def _address(text: str) -> str:
    """In its shortest form; IPv4 that is written as IPv6 is IPv4."""
    try:
        network = ipaddress.ip_network(text)
        scoped = "%" in text
    except ValueError as error:
        meant = " (bits beyond the mask must be zero)" if "host bits" in str(error) else ""
        raise Unprocessable(f"ip_allowlist: {text[:60]!r} is no address and no network{meant}.") from None
    if scoped:
        raise Unprocessable(f"ip_allowlist: {text[:60]!r} has a zone, which means nothing to other machines.")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        network = ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    whole = network.prefixlen == network.max_prefixlen
    return str(network.network_address if whole else network)


def _expiry_ms(time: datetime | None) -> int | None:
    if time is None:
        return None
    value_ms = (time - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= value_ms < _EXPIRY_MS_MAX:
        raise Unprocessable("expires_at must lie between the years 1970 and 2100; null is never.")
    return value_ms


def _view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.id,
        account_id=key.account_id,
        member_id=key.member_id or None,
        name=key.name,
        hint=key.hint,
        status=key.status,
        limits=limits.view(key.limits),
        models=list(key.models) or None,
        ip_allowlist=list(key.ip_allowlist) or None,
        expires_at=None if key.expires_at_ms is None else time_of(key.expires_at_ms),
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
        method="PATCH", path="/accounts/{account_id}/keys/{key_id}", handler=change, summary="Change a key",
        body=KeyChange, answer=KeyView,
    ),
    Operation(
        method="DELETE", path="/accounts/{account_id}/keys/{key_id}", handler=delete, summary="Delete a key",
        answer=KeyView,
    ),
)  # fmt: skip
