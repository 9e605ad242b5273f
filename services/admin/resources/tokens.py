"""Service tokens: credentials of programs, with a role and the scopes they need. The secret is shown once."""

import secrets
from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.entities import MemberRole, OperatorRole, Scope, ServiceToken
from services.admin import sessions
from services.admin.access import LEADERS, OPERATOR_OWNER
from services.admin.authentication import TOKEN_PREFIX
from services.admin.problems import Unprocessable
from services.admin.resource import PAGING, Call, Context, Name, Operation, found, page, read, respond, time_of
from services.admin.resources.accounts import find_account
from services.admin.resources.times import Expiry, expiry_ms

_HINT_CHARS: Final = 4
_OPERATOR_ROLES: Final = frozenset({"owner", "finance", "support", "viewer"})
_ACCOUNT_ROLES: Final = frozenset({"admin", "billing"})
Scopes = Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=40)]


class NewToken(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To make a service token."""

    name: Name
    role: OperatorRole | MemberRole
    """The relay's: owner, finance, support, viewer. An account's: admin, billing."""
    scopes: Scopes
    expires_at: Expiry | None = None


class TokenView(msgspec.Struct, kw_only=True):
    """A service token, without its secret."""

    id: str
    account_id: str | None
    name: str
    hint: str
    role: str
    scopes: list[str]
    status: str
    expires_at: str | None
    created_at: str


class CreatedToken(TokenView, kw_only=True):
    """A new service token with its secret."""

    token: str


class TokenPage(msgspec.Struct):
    """In the order they were made; deleted ones too."""

    data: list[TokenView]
    next_cursor: str | None


async def create(context: Context, call: Call) -> Response:
    """POST /tokens, POST /accounts/{account_id}/tokens."""
    body = await read(call, NewToken)
    if call.account_id:
        await find_account(context, call.account_id)
    allowed = _ACCOUNT_ROLES if call.account_id else _OPERATOR_ROLES
    if body.role not in allowed:
        raise Unprocessable(f"role must be one of {', '.join(sorted(allowed))} here.")
    if call.principal.scopes is not None and not call.principal.scopes.issuperset(body.scopes):
        raise Unprocessable("scopes: a service token cannot make one that may do more than itself.")
    expires_at_ms = expiry_ms(body.expires_at)
    _check_outlives(context, call, expires_at_ms)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ServiceToken(
        id=ids.new_id("tok"),
        name=body.name,
        created_at_ms=clock.unix_ms(),
        sha256=sessions.sha256(secret),
        hint=secret[: len(TOKEN_PREFIX) + _HINT_CHARS] + "…",
        role=body.role,
        scopes=tuple(sorted(set(body.scopes))),
        account_id=call.account_id,
        expires_at_ms=expires_at_ms,
    )
    await context.control.put(token, over=None, by=call.by("created"))
    return respond(CreatedToken(token=secret, **msgspec.structs.asdict(_view(token))), 201)


def _check_outlives(context: Context, call: Call, expires_at_ms: int | None) -> None:
    maker = context.mirror.get(ServiceToken, call.principal.actor)
    ends_ms = None if maker is None else maker.expires_at_ms
    if ends_ms is not None and (expires_at_ms is None or expires_at_ms > ends_ms):
        raise Unprocessable(
            f"expires_at: a service token makes none that outlives it; {time_of(ends_ms)} at the latest."
        )


async def list_all(context: Context, call: Call) -> Response:
    """GET /tokens, GET /accounts/{account_id}/tokens."""
    if call.account_id:
        await find_account(context, call.account_id)
    shown, following = page(call, context.mirror.of_account(ServiceToken, call.account_id), lambda one: one.id)
    return respond(TokenPage([_view(one) for one in shown], following))


async def delete(context: Context, call: Call) -> Response:
    """DELETE …/tokens/{token_id}: refused from then on."""
    one = await found(context, ServiceToken, call, "token_id", "tok")
    deleted = msgspec.structs.replace(one.entity, status="deleted")
    await context.control.put(deleted, over=one, by=call.by("deleted"))
    return respond(_view(deleted))


def _view(token: ServiceToken) -> TokenView:
    return TokenView(
        id=token.id,
        account_id=token.account_id or None,
        name=token.name,
        hint=token.hint,
        role=token.role,
        scopes=list(token.scopes),
        status=token.status,
        expires_at=None if token.expires_at_ms is None else time_of(token.expires_at_ms),
        created_at=time_of(token.created_at_ms),
    )


_OF_ACCOUNT: Final = "/accounts/{account_id}/tokens"
OPERATIONS = tuple(
    operation
    for path, roles, of in (
        ("/tokens", OPERATOR_OWNER, "relay"),
        (_OF_ACCOUNT, OPERATOR_OWNER | LEADERS, "account"),
    )
    for operation in (
        Operation(
            method="POST", path=path, handler=create, summary=f"Make a service token of the {of}", body=NewToken,
            answer=CreatedToken, status=201, roles=roles, scope="tokens:write", name=f"tokens_create_{of}",
        ),
        Operation(
            method="GET", path=path, handler=list_all, summary=f"List service tokens of the {of}", answer=TokenPage,
            query=PAGING, roles=roles, scope="tokens:read", name=f"tokens_list_{of}",
        ),
        Operation(
            method="DELETE", path=f"{path}/{{token_id}}", handler=delete, summary=f"Delete a service token of the {of}",
            answer=TokenView, roles=roles, scope="tokens:write", name=f"tokens_delete_{of}",
        ),
    )
)  # fmt: skip
