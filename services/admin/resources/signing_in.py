"""Signing in: sessions by e-mail and password, links that set a password, and who one is."""

from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from libs.common import clock
from libs.common.entities import NO_SIGN_IN, Login, Operator
from services.admin import access, links, sessions
from services.admin.links import Person
from services.admin.problems import BadInput, Conflict, Unauthorized
from services.admin.resource import Call, Context, Name, Operation, read, respond, time_of

_TRIES_OF_EMAIL_MAX: Final = 10
"""From one place. Whoever guesses at somebody's password from there does not keep him out who is elsewhere."""
_TRIES_OF_EMAIL_ANYWHERE_MAX: Final = 100
_TRIES_OF_ADDRESS_MAX: Final = 50
_WRONG: Final = "E-mail address and password do not fit together."
Password = Annotated[str, msgspec.Meta(min_length=12, max_length=200, extra_json_schema={"writeOnly": True})]
Email = Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
Token = Annotated[str, msgspec.Meta(min_length=1, max_length=200, extra_json_schema={"writeOnly": True})]


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """To sign in."""

    email: Email
    password: Annotated[str, msgspec.Meta(max_length=200, extra_json_schema={"writeOnly": True})]


class LinkUse(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To set a password by a link."""

    token: Token
    """What follows # in the link."""
    password: Password
    email: Email | None = None
    """Of the first owner; everybody else's is known."""
    name: Name | None = None


class PasswordChange(msgspec.Struct, forbid_unknown_fields=True):
    """To change one's own password."""

    old: Annotated[str, msgspec.Meta(max_length=200, extra_json_schema={"writeOnly": True})]
    new: Password


class Me(msgspec.Struct, kw_only=True):
    """Who calls."""

    actor: str
    role: str
    account_id: str | None
    scopes: list[str] | None
    """Of a service token; null: all that the role may do."""


class SessionView(Me, kw_only=True):
    """A new session."""

    token: str
    """Send it as Authorization: Bearer; it is kept nowhere."""
    expires_at: str


class Done(msgspec.Struct):
    """It is done."""

    done: bool = True


async def sign_in(context: Context, call: Call) -> Response:
    """POST /sessions."""
    body = await read(call, NewSession)
    email = body.email.strip().lower()
    of_both = f"{call.place} {email}"
    await context.sessions.count_try("sign-in-from", call.place, _TRIES_OF_ADDRESS_MAX)
    await context.sessions.count_try("sign-in", of_both, _TRIES_OF_EMAIL_MAX)
    await context.sessions.count_try("sign-in-anywhere", email, _TRIES_OF_EMAIL_ANYWHERE_MAX)
    owner = await _owner(context, email)
    usable = owner is not None and owner.status == "active" and owner.email == email
    password_hash = owner.sign_in.password_hash if owner is not None and usable else ""
    if not await context.passwords.is_right(body.password, password_hash) or owner is None:
        raise Unauthorized(_WRONG)
    await context.sessions.forget_tries("sign-in", of_both)
    await context.sessions.forget_tries("sign-in-anywhere", email)
    return await _begun(context, call, owner)


async def sign_out(context: Context, call: Call) -> Response:
    """DELETE /sessions/current."""
    if not call.principal.session:
        raise BadInput("This is no session but a token: it is ended where it was made.")
    await context.sessions.end(call.principal.session)
    return respond(Done())


async def me(_: Context, call: Call) -> Response:
    """GET /me."""
    principal = call.principal
    scopes: list[str] | None = None if principal.scopes is None else sorted(principal.scopes)
    account_id = principal.account_id or None
    return respond(Me(actor=principal.actor, role=principal.role, account_id=account_id, scopes=scopes))


async def change_password(context: Context, call: Call) -> Response:
    """PUT /me/password: every session of this person is over, this one too."""
    body = await read(call, PasswordChange)
    if not call.principal.session:
        raise BadInput("This is no session but a token: it has no password.")
    await context.sessions.count_try("password", call.principal.actor, _TRIES_OF_EMAIL_MAX)
    found = await links.find_person(context.control, call.principal.actor)
    if found is None or not await context.passwords.is_right(body.old, found.entity.sign_in.password_hash):
        raise Unauthorized("The old password is not right.")
    changed = await _with_password(context, found.entity, body.new)
    await context.control.put(changed, over=found, by=call.by("password changed"))
    return respond(Done())


async def accept(context: Context, call: Call) -> Response:
    """POST /links/accept. The link is void from then on, and so is every session that began before."""
    body = await read(call, LinkUse)
    await context.sessions.count_try("link-from", call.place, _TRIES_OF_ADDRESS_MAX)
    owner, (_, over) = await links.owner_of(context.control, body.token)
    email = owner.email or links.email_of(_needed(body.email))
    if owner.email and body.email is not None and links.email_of(body.email) != owner.email:
        raise Conflict("This link was made for another e-mail address.")
    changed = msgspec.structs.replace(
        await _with_password(context, owner, body.password), email=email, status="active", name=body.name or owner.name
    )
    claim = await links.claim(context.control, email, changed)
    by = msgspec.structs.replace(call.by("set a password by a link"), actor=owner.id)
    await context.control.put_all([(changed, over), claim], by=by)
    return await _begun(context, call, changed)


def _needed(email: str | None) -> str:
    if email is None:
        raise BadInput("email is missing: the first owner says which is his.")
    return email


async def _with_password(context: Context, owner: Person, password: str) -> Person:
    password_hash = await context.passwords.hash(password)
    sign_in = msgspec.structs.replace(NO_SIGN_IN, password_hash=password_hash, sessions_after_ms=clock.unix_ms())
    return msgspec.structs.replace(owner, sign_in=sign_in)


async def _owner(context: Context, email: str) -> Person | None:
    found = await context.control.find(Login, links.login_id(email))
    if found is None:
        return None
    owner = await links.find_person(context.control, found.entity.owner_id)
    return owner.entity if owner else None


async def _begun(context: Context, call: Call, owner: Person) -> Response:
    token, session = await context.sessions.begin(owner.id, call.address, owner.sign_in.password_hash)
    is_operator = isinstance(owner, Operator)
    view = SessionView(
        actor=owner.id,
        role=access.operator(owner.role) if is_operator else access.member(owner.role),
        account_id=None if isinstance(owner, Operator) else owner.account_id,
        scopes=None,
        token=token,
        expires_at=time_of(session.began_at_ms + sessions.SECONDS * 1000),
    )
    return respond(view, 201)


OPERATIONS = (
    Operation(
        method="POST", path="/sessions", handler=sign_in, summary="Sign in", roles=None, body=NewSession,
        answer=SessionView, status=201,
    ),
    Operation(
        method="DELETE", path="/sessions/current", handler=sign_out, summary="Sign out", roles=access.EVERYBODY,
        answer=Done,
    ),
    Operation(
        method="POST", path="/links/accept", handler=accept, summary="Set a password by a link", roles=None, body=LinkUse,
        answer=SessionView, status=201,
    ),
    Operation(method="GET", path="/me", handler=me, summary="Who calls", roles=access.EVERYBODY, answer=Me, scope="usage:read"),
    Operation(
        method="PUT", path="/me/password", handler=change_password, summary="Change one's own password",
        roles=access.EVERYBODY, body=PasswordChange, answer=Done,
    ),
)  # fmt: skip
