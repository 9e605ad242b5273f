"""Members: the people of an account. A member's limits count over all of his keys. With an address, he can sign in."""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.entities import MemberRole
from libs.common.events import Member
from libs.common.limits import Limits
from services.admin import links
from services.admin.access import EVERYBODY, LEADERS, SUPPORT
from services.admin.control import Found, Put
from services.admin.problems import Conflict, Missing
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
from services.admin.resources import limits
from services.admin.resources.accounts import find_account
from services.admin.resources.limits import LimitsChange, LimitsView
from services.admin.resources.people import (
    ActiveOrNot,
    Link,
    check_may_link,
    invite,
    is_owner,
    link_view,
    other_owner,
    with_sessions_ended,
)
from services.admin.resources.signing_in import Email

_OWNERS: Final = "Only an owner of the account, or the operator, deals with owners."


class NewMember(msgspec.Struct, forbid_unknown_fields=True):
    """To make a member; with an e-mail address, he is invited."""

    name: Name
    limits: LimitsChange | UnsetType = UNSET
    email: Email | None = None
    role: MemberRole = "developer"


class MemberChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change a member; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: ActiveOrNot | UnsetType = UNSET
    limits: LimitsChange | UnsetType = UNSET
    email: Email | UnsetType = UNSET
    """Another address must be proven by a new link: he is invited again."""
    role: MemberRole | UnsetType = UNSET


class MemberView(msgspec.Struct, kw_only=True):
    """A member."""

    id: str
    account_id: str
    name: str
    email: str | None
    role: str
    status: str
    limits: LimitsView
    created_at: str


class CreatedMember(MemberView, kw_only=True):
    """A new member."""

    link: Link | None
    """By which he sets his password; null: he has no address, so he cannot sign in."""


class MemberPage(msgspec.Struct):
    """Members of an account in the order of their ids, deleted ones included."""

    data: list[MemberView]
    next_cursor: str | None


async def find_member(context: Context, account_id: str, member_id: str) -> Found[Member]:
    """A member of that account who is not deleted. Raises Missing."""
    one = await context.control.find(Member, member_id) if is_id("memb", member_id) else None
    if one is None or one.entity.account_id != account_id or one.entity.status == "deleted":
        raise Missing("This account has no such member.")
    return one


async def create(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/members. The same Idempotency-Key gives the same member, with the same link."""
    body = await read(call, NewMember)
    account = (await find_account(context, call.account_id)).entity
    _check_owners(call, body.role)
    member = Member(
        id=call.derived_id("memb", call.principal.actor) or ids.new_member_id(),
        account_id=account.id,
        name=body.name,
        created_at_ms=clock.unix_ms(),
        limits=limits.changed(Limits(), body.limits),
        email="" if body.email is None else links.email_of(body.email),
        role=body.role,
    )
    member, link, version = await invite(context, call, member, digest(body))
    return respond(_created(member, link), 201, version=version)


async def list_all(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/members. A developer sees himself."""
    await find_account(context, call.account_id)
    only = call.principal.only_member_id
    members = [one for one in context.mirror.of_account(Member, call.account_id) if only in ("", one.id)]
    shown, following = page(call, members, lambda one: one.id)
    return respond(MemberPage([_view(one) for one in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET /accounts/{account_id}/members/{member_id}."""
    one = await _find(context, call)
    return respond(_view(one.entity), version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH /accounts/{account_id}/members/{member_id}: in force for the very next request."""
    body = await read(call, MemberChange)
    one = await _find(context, call)
    check_match(call, one)
    _check_owners(call, one.entity.role, given(body, "role").get("role", ""))
    changed = msgspec.structs.replace(
        one.entity, limits=limits.changed(one.entity.limits, body.limits), **given(body, "name", "status", "role")
    )
    puts: list[Put] = []
    if body.email is not UNSET and links.email_of(body.email) != one.entity.email:
        if changed.status == "disabled":
            raise Conflict("A disabled member is not invited: enable him first, then change his address.")
        changed = await _invited_again(context, changed, body.email, puts)
    return await _put(context, call, one, changed, puts, "changed")


async def delete(context: Context, call: Call) -> Response:
    """DELETE /accounts/{account_id}/members/{member_id}: his keys are refused from then on, his history stays."""
    one = await _find(context, call)
    check_match(call, one)
    _check_owners(call, one.entity.role)
    return await _put(context, call, one, msgspec.structs.replace(one.entity, status="deleted"), [], "deleted")


async def new_link(context: Context, call: Call) -> Response:
    """POST /accounts/{account_id}/members/{member_id}/link: to invite again, or for a password that was forgotten."""
    one = await _find(context, call)
    _check_owners(call, one.entity.role)
    check_may_link(call, one.entity)
    if not one.entity.email:
        raise Conflict("This member has no e-mail address: give him one first.")
    token, sign_in = links.new_link(one.entity.id, one.entity.sign_in)
    await context.control.put(msgspec.structs.replace(one.entity, sign_in=sign_in), over=one, by=call.by("new link"))
    return respond(link_view(context, token, sign_in), 201)


async def _invited_again(context: Context, member: Member, email: str, puts: list[Put]) -> Member:
    """The member as he is now; what makes the address his is added to `puts`."""
    _, sign_in = links.new_link(member.id, msgspec.structs.replace(member.sign_in, password_hash=""))
    member = msgspec.structs.replace(member, email=links.email_of(email), status="invited", sign_in=sign_in)
    puts.append(await links.claim(context.control, member.email, member))
    return member


async def _put(
    context: Context, call: Call, one: Found[Member], changed: Member, more: list[Put], reason: str
) -> Response:
    if is_owner(one.entity) and not is_owner(changed) and not call.principal.is_operator:
        other = await other_owner(context, one.entity, context.mirror.of_account(Member, call.account_id))
        if other is None:
            raise Conflict("This is the account's last owner. Make another one first, or ask the operator.")
        more = [*more, other]
    changed = with_sessions_ended(one.entity, changed)
    put, *_ = await context.control.put_all([(changed, one), *more], by=call.by(reason))
    return respond(_view(changed), version=put.version)


def _check_owners(call: Call, *roles: str) -> None:
    forbid("owner" in roles and call.principal.role == "account:admin", _OWNERS)


async def _find(context: Context, call: Call) -> Found[Member]:
    member_id = str(call.path_params["member_id"])
    if call.principal.only_member_id not in ("", member_id):
        raise Missing("This account has no such member.")
    return await find_member(context, call.account_id, member_id)


def _view(member: Member) -> MemberView:
    return MemberView(
        id=member.id,
        account_id=member.account_id,
        name=member.name,
        email=member.email or None,
        role=member.role,
        status=member.status,
        limits=limits.view(member.limits),
        created_at=time_of(member.created_at_ms),
    )


def _created(member: Member, link: Link | None) -> CreatedMember:
    return CreatedMember(link=link, **{name: getattr(_view(member), name) for name in MemberView.__struct_fields__})


_ALL: Final = "/accounts/{account_id}/members"
_ONE: Final = f"{_ALL}/{{member_id}}"
OPERATIONS = (
    Operation(
        method="POST", path=_ALL, handler=create, summary="Create or invite a member", body=NewMember,
        answer=CreatedMember, status=201, headers=IDEMPOTENT, roles=SUPPORT | LEADERS, scope="members:write",
    ),
    Operation(
        method="GET", path=_ALL, handler=list_all, summary="List members", answer=MemberPage, query=PAGING,
        roles=EVERYBODY, scope="members:read",
    ),
    Operation(
        method="GET", path=_ONE, handler=show, summary="Show a member", answer=MemberView, roles=EVERYBODY,
        scope="members:read",
    ),
    Operation(
        method="PATCH", path=_ONE, handler=change, summary="Change a member", body=MemberChange, answer=MemberView,
        headers=MATCHED, roles=SUPPORT | LEADERS, scope="members:write",
    ),
    Operation(
        method="DELETE", path=_ONE, handler=delete, summary="Delete a member", answer=MemberView, headers=MATCHED,
        roles=SUPPORT | LEADERS, scope="members:write",
    ),
    Operation(
        method="POST", path=f"{_ONE}/link", handler=new_link, summary="Make a new link for a member", answer=Link,
        status=201, roles=SUPPORT | LEADERS, scope="members:write",
    ),
)  # fmt: skip
