"""Upstream credentials: ways to the Claude API. Their secrets are sealed before they leave this service, and never shown."""

import logging
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import clock, ids
from libs.common import upstreams as pool
from libs.common.events import UpstreamCredential
from libs.common.limits import Slots
from libs.common.scripts import StoreUnavailable
from libs.common.sealing import CannotOpen, SecretsKeyMissing, UpstreamSecret
from libs.common.upstreams import Kind, Shared, State
from services.admin import upstream_calls, urls
from services.admin.access import OPERATOR_OWNER, OPERATORS
from services.admin.control import Found
from services.admin.problems import Conflict, Missing, Unprocessable
from services.admin.resource import (
    MATCHED,
    Call,
    Context,
    Name,
    Operation,
    check_match,
    given,
    is_id,
    read,
    respond,
    time_of,
)
from services.admin.resources.accounts import find_account

_log: Final = logging.getLogger("relay.upstreams")
_API_KEY: Final = re.compile(r"[!-~]{16,500}")
_HINT_CHARS: Final = 4
_NO_KEY: Final = (
    "RELAY_SECRETS_KEY is not set, and without it no credential is kept. Make one with"
    " `python -m services.admin new-secrets-key` and set it for admin and gateways."
)
_SHUT: Final = (
    "RELAY_SECRETS_KEY does not open what is sealed here. Set the key it was sealed with beside the new one,"
    " or send api_key and proxy_url together."
)
ApiKey = Annotated[
    str,
    msgspec.Meta(extra_json_schema={"writeOnly": True, "pattern": f"^{_API_KEY.pattern}$"}),
]
ProxyUrl = Annotated[str, msgspec.Meta(extra_json_schema={"writeOnly": True})]
Weight = Annotated[int, msgspec.Meta(ge=1, le=1_000)]


class NewUpstream(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To create a credential."""

    name: Name
    base_url: str = "https://api.anthropic.com"
    """Without /v1."""
    api_key: ApiKey
    """16 to 500 printable ASCII characters; kept sealed, never shown."""
    proxy_url: ProxyUrl | None = None
    """http(s)://user:password@host:port; kept sealed, only host and port are shown."""
    weight: Weight = 1
    in_flight_max: Slots | None = None
    account_id: str | None = None
    """Dedicated to that account; null: shared."""


class UpstreamChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change a credential; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET
    base_url: str | UnsetType = UNSET
    api_key: ApiKey | UnsetType = UNSET
    proxy_url: ProxyUrl | UnsetType | None = UNSET
    weight: Weight | UnsetType = UNSET
    in_flight_max: Slots | UnsetType | None = UNSET
    account_id: str | UnsetType | None = UNSET


class BreakerView(msgspec.Struct, kw_only=True):
    """Whether gateways send requests there. open: not before `until`; half_open: one at a time, to try."""

    state: State
    reason: Kind | None
    """What opened it."""
    since: str | None
    until: str | None


class UpstreamView(msgspec.Struct, kw_only=True):
    """A credential, without its secrets."""

    id: str
    name: str
    base_url: str
    hint: str
    """The last characters of the API key."""
    proxy: str | None
    """Host and port."""
    secrets_readable: bool
    """False: RELAY_SECRETS_KEY of this service does not open them; the proxy is not shown."""
    weight: int
    in_flight_max: int | None
    account_id: str | None
    status: str
    breaker: BreakerView | None
    """null: it is deleted, or Redis does not answer."""
    in_flight: int | None
    """Requests under way, over all gateways; null: nothing caps them, or Redis does not answer."""
    created_at: str


class TestView(msgspec.Struct, kw_only=True):
    """How the test call went."""

    ok: bool
    status: int | None
    """null: no answer came."""
    detail: str
    duration_ms: int
    models: list[str]


class UpstreamList(msgspec.Struct):
    """All credentials, deleted ones included."""

    data: list[UpstreamView]


async def create(context: Context, call: Call) -> Response:
    """POST /upstreams."""
    body = await read(call, NewUpstream)
    upstream_id = ids.new_upstream_id()
    secret = UpstreamSecret(api_key=_api_key(body.api_key), proxy_url=_proxy_url(body.proxy_url))
    credential = UpstreamCredential(
        id=upstream_id,
        name=body.name,
        created_at_ms=clock.unix_ms(),
        base_url=urls.base_url(body.base_url),
        sealed=_seal(context, upstream_id, secret),
        hint=secret.api_key[-_HINT_CHARS:],
        weight=body.weight,
        in_flight_max=body.in_flight_max,
        account_id=await _account_id(context, body.account_id),
    )
    one = await context.control.put(credential, over=None, by=call.by("created"))
    return respond(await _view(context, one), 201, version=one.version)


async def list_all(context: Context, call: Call) -> Response:
    """GET /upstreams; from the log of changes itself, so that it is never behind."""
    return respond(UpstreamList(await _views(context, await context.control.list_all(UpstreamCredential))))


async def show(context: Context, call: Call) -> Response:
    """GET /upstreams/{upstream_id}."""
    one = await _find(context, call)
    return respond(await _view(context, one), version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH /upstreams/{upstream_id}: on every gateway a second later. Its breaker is closed by it."""
    body = await read(call, UpstreamChange)
    one = await _find(context, call)
    check_match(call, one)
    credential = one.entity
    fields = given(body, "name", "status", "weight", "in_flight_max")
    if body.base_url is not UNSET:
        fields["base_url"] = urls.base_url(body.base_url)
    if body.account_id is not UNSET:
        fields["account_id"] = await _account_id(context, body.account_id)
    changed = msgspec.structs.replace(credential, **fields, **_new_secret(context, credential, body))
    put = await context.control.put(changed, over=one, by=call.by("changed"))
    return respond(await _view(context, put), version=put.version)


async def delete(context: Context, call: Call) -> Response:
    """DELETE /upstreams/{upstream_id}: for good."""
    one = await _find(context, call)
    check_match(call, one)
    deleted = msgspec.structs.replace(one.entity, status="deleted")
    put = await context.control.put(deleted, over=one, by=call.by("deleted"))
    return respond(await _view(context, put), version=put.version)


async def test(context: Context, call: Call) -> Response:
    """POST /upstreams/{upstream_id}/test: asks it for its model list, which costs nothing."""
    credential = (await _find(context, call)).entity
    tried = await upstream_calls.list_models(credential, _kept(context, credential))
    shown = TestView(
        ok=not tried.detail,
        status=tried.status or None,
        detail=tried.detail,
        duration_ms=tried.duration_ms,
        models=[model.id for model in tried.models],
    )
    return respond(shown)


async def _find(context: Context, call: Call) -> Found[UpstreamCredential]:
    upstream_id = call.path_params["upstream_id"]
    found = await context.control.find(UpstreamCredential, upstream_id) if is_id("upst", upstream_id) else None
    if found is None or found.entity.status == "deleted":
        raise Missing("There is no such upstream.")
    return found


async def _account_id(context: Context, account_id: str | None) -> str:
    if account_id is None:
        return ""
    try:
        await find_account(context, account_id)
    except Missing:
        raise Unprocessable("account_id: there is no such account.") from None
    return account_id


def _new_secret(context: Context, credential: UpstreamCredential, body: UpstreamChange) -> dict[str, Any]:
    """The sealed fields, if the body changes what is inside."""
    if body.api_key is UNSET and body.proxy_url is UNSET:
        return {}
    api_key = None if body.api_key is UNSET else _api_key(body.api_key)
    proxy_url = None if body.proxy_url is UNSET else _proxy_url(body.proxy_url)
    if api_key is None or proxy_url is None:
        kept = _kept(context, credential)
        api_key = kept.api_key if api_key is None else api_key
        proxy_url = kept.proxy_url if proxy_url is None else proxy_url
    secret = UpstreamSecret(api_key=api_key, proxy_url=proxy_url)
    return {"sealed": _seal(context, credential.id, secret), "hint": api_key[-_HINT_CHARS:]}


def _proxy_url(text: str | None) -> str:
    return "" if text is None else urls.proxy_url(text)


def _seal(context: Context, upstream_id: str, secret: UpstreamSecret) -> str:
    try:
        return context.sealer.seal(upstream_id, secret)
    except SecretsKeyMissing:
        raise Conflict(_NO_KEY) from None


def _kept(context: Context, credential: UpstreamCredential) -> UpstreamSecret:
    try:
        return context.sealer.open(credential.id, credential.sealed)
    except CannotOpen:
        raise Conflict(_SHUT) from None
    except SecretsKeyMissing:
        raise Conflict(_NO_KEY) from None


def _open(context: Context, credential: UpstreamCredential) -> UpstreamSecret | None:
    try:
        return context.sealer.open(credential.id, credential.sealed)
    except SecretsKeyMissing:
        return None


def _api_key(text: str) -> str:
    if _API_KEY.fullmatch(text) is None:
        raise Unprocessable("api_key must be 16 to 500 printable ASCII characters without spaces.")
    return text


async def _view(context: Context, one: Found[UpstreamCredential]) -> UpstreamView:
    (view,) = await _views(context, [one])
    return view


async def _views(context: Context, found: Sequence[Found[UpstreamCredential]]) -> list[UpstreamView]:
    credentials = [one.entity for one in found]
    capped = [one.id for one in credentials if one.in_flight_max is not None and one.status != "deleted"]
    shared, in_flight = None, {}
    try:
        shared = await context.pool.read_all()
        in_flight = dict(zip(capped, await context.pool.in_flight(capped), strict=True))
    except StoreUnavailable as error:
        _log.warning("Redis does not tell of the upstreams: %s", error)
    return [
        _shown(
            one.entity,
            _open(context, one.entity),
            _breaker(one.entity, one.version, shared),
            in_flight.get(one.entity.id),
        )
        for one in found
    ]


def _shown(
    credential: UpstreamCredential, secret: UpstreamSecret | None, breaker: BreakerView | None, in_flight: int | None
) -> UpstreamView:
    return UpstreamView(
        id=credential.id,
        name=credential.name,
        base_url=credential.base_url,
        hint=credential.hint,
        proxy=urls.host_and_port(secret.proxy_url) if secret and secret.proxy_url else None,
        secrets_readable=secret is not None,
        weight=credential.weight,
        in_flight_max=credential.in_flight_max,
        account_id=credential.account_id or None,
        status=credential.status,
        breaker=breaker,
        in_flight=in_flight,
        created_at=time_of(credential.created_at_ms),
    )


def _breaker(credential: UpstreamCredential, version: int, shared: Shared | None) -> BreakerView | None:
    if shared is None or credential.status == "deleted":
        return None
    breaker = shared.breakers.get(pool.Name(credential.id, str(version)), pool.CLOSED)
    state = breaker.state(shared.now_ms)
    if state == "closed":
        return BreakerView(state=state, reason=None, since=None, until=None)
    return BreakerView(
        state=state,
        reason=breaker.kind or None,
        since=time_of(breaker.since_ms),
        until=time_of(breaker.until_ms),
    )


_ONE: Final = "/upstreams/{upstream_id}"
OPERATIONS = (
    Operation(
        method="POST", path="/upstreams", handler=create, summary="Create an upstream credential", body=NewUpstream,
        answer=UpstreamView, status=201, roles=OPERATOR_OWNER, scope="upstreams:write",
    ),
    Operation(
        method="GET", path="/upstreams", handler=list_all, summary="List upstream credentials", answer=UpstreamList,
        roles=OPERATORS, scope="upstreams:read",
    ),
    Operation(method="GET", path=_ONE, handler=show, summary="Show an upstream credential", answer=UpstreamView,
        roles=OPERATORS, scope="upstreams:read"),
    Operation(
        method="PATCH", path=_ONE, handler=change, summary="Change an upstream credential", body=UpstreamChange,
        answer=UpstreamView, headers=MATCHED, roles=OPERATOR_OWNER, scope="upstreams:write",
    ),
    Operation(
        method="DELETE", path=_ONE, handler=delete, summary="Delete an upstream credential", answer=UpstreamView,
        headers=MATCHED, roles=OPERATOR_OWNER, scope="upstreams:write",
    ),
    Operation(
        method="POST", path=f"{_ONE}/test", handler=test, summary="Try an upstream credential", answer=TestView,
        roles=OPERATOR_OWNER, scope="upstreams:write",
    ),
)  # fmt: skip
