"""What operators and members have in common in the API."""

from collections.abc import Iterable
from typing import Final, Literal, TypeVar, get_args

import msgspec

from libs.common import clock
from libs.common.entities import Operator, Scope, SignIn
from libs.common.events import Member
from libs.common.sealing import SecretsKeyMissing
from services.admin import links
from services.admin.control import Put
from services.admin.problems import Conflict
from services.admin.resource import Call, Context, forbid, time_of

_NO_SECRETS_KEY: Final = (
    "Idempotency-Key: RELAY_SECRETS_KEY is not set, and without it a link cannot be answered twice."
)
_NOT_AGAIN: Final = (
    "This was done before, and its link cannot be shown again: RELAY_SECRETS_KEY has changed. Make a new link."
)
_ALL_SCOPES: Final = (
    "A link lets its owner do all that his role may: a service token needs every scope to be given one."
    " It can make members without an e-mail address."
)
_SCOPES: Final = frozenset(get_args(Scope))
_Person = TypeVar("_Person", Operator, Member)

ActiveOrNot = Literal["active", "disabled"]


class Link(msgspec.Struct):
    """A link that works once: whoever opens it sets the password."""

    url: str
    expires_at: str


def link_view(context: Context, token: str, sign_in: SignIn) -> Link:
    """The link, shown once. Its token stands behind #, so that no server's log has it."""
    return Link(f"{context.public_url}/link#{token}", time_of(sign_in.link_expires_at_ms))


def with_sessions_ended(before: _Person, changed: _Person) -> _Person:
    """After another role or status nobody goes on with a session of before; whoever may not sign in keeps no link either."""
    if (changed.role, changed.status) == (before.role, before.status):
        return changed
    sign_in = msgspec.structs.replace(changed.sign_in, sessions_after_ms=clock.unix_ms())
    if changed.status in ("disabled", "deleted"):
        sign_in = msgspec.structs.replace(sign_in, link_sha256="", link_expires_at_ms=0)
    return msgspec.structs.replace(changed, sign_in=sign_in)


def is_owner(person: Operator | Member) -> bool:
    """Whether he can sign in as an owner."""
    return person.role == "owner" and person.status == "active" and bool(person.sign_in.password_hash)


async def other_owner(context: Context, one: Operator | Member, others: Iterable[Operator | Member]) -> Put | None:
    """Another one of `others` who is an owner, to be written as he is together with what makes `one` less; None: there is none.

    So two owners who make each other less at the same moment, on whatever replicas, do not both succeed.
    """
    for other in others:
        if other.id == one.id or not is_owner(other):
            continue
        found = await links.find_person(context.control, other.id)
        if found is not None and is_owner(found.entity):
            return found.entity, found
    return None


def check_may_link(call: Call, person: Operator | Member) -> None:
    """Raise Forbidden, and Conflict where a new link would let nobody in now, and somebody later.

    A link is answered to its maker, and who uses it has no scopes to bound him.
    """
    scopes = call.principal.scopes
    forbid(scopes is not None and not scopes.issuperset(_SCOPES), _ALL_SCOPES)
    if person.status == "disabled":
        raise Conflict("Whoever is disabled gets no link: enable him first.")


async def invite(
    context: Context, call: Call, person: _Person, request: str
) -> tuple[_Person, Link | None, int | None]:
    """Write somebody new, with a link if he has an address: as he is, the link, and his version.

    The same Idempotency-Key gives the same person and link: he must have the id that it makes. Raises Conflict, Unprocessable.
    """
    if person.email:
        check_may_link(call, person)
    is_repeatable = "idempotency-key" in call.headers
    if is_repeatable and (first := await context.control.first(type(person), person.id, request)):
        return first, _link_again(context, first), None
    token = ""
    puts: list[Put] = []
    if person.email:
        bits = _bits(context, person.id)[0] if is_repeatable else b""
        token, sign_in = links.new_link(person.id, person.sign_in, bits=bits)
        person = msgspec.structs.replace(person, status="invited", sign_in=sign_in)
    try:
        if person.email:
            puts.append(await links.claim(context.control, person.email, person))
        by = call.by("invited" if person.email else "created", request if is_repeatable else "")
        one, *_ = await context.control.put_all([(person, None), *puts], by=by)
    except Conflict:  # it may be its own twin, sent at the same time, that was in the way
        first = await context.control.first(type(person), person.id, request) if is_repeatable else None
        if first is None:
            raise
        return first, _link_again(context, first), None
    return person, link_view(context, token, person.sign_in) if token else None, one.version


def _link_again(context: Context, person: Operator | Member) -> Link | None:
    if not person.email:
        return None
    token = links.link_again(person.id, person.sign_in, _bits(context, person.id))
    if token is None:
        raise Conflict(_NOT_AGAIN)
    return link_view(context, token, person.sign_in)


def _bits(context: Context, owner_id: str) -> list[bytes]:
    try:
        return context.sealer.derive(f"link {owner_id}")
    except SecretsKeyMissing:
        raise Conflict(_NO_SECRETS_KEY) from None
