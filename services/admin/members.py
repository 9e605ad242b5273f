"""Members: the people of an account. A member's limits count over all of his keys."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.events import Member
from libs.common.limits import Limits
from services.admin import limits
from services.admin.accounts import find_account
from services.admin.limits import LimitsChange, LimitsView
from services.admin.problems import Missing
from services.admin.resource import ACTOR, Context, Name, Operation, given, is_id, read, respond, time_of


class NewMember(msgspec.Struct, forbid_unknown_fields=True):
    """To create a member."""

    name: Name
    limits: LimitsChange | UnsetType = UNSET


class MemberChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change a member; what is absent stays."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "disabled"] | UnsetType = UNSET
    limits: LimitsChange | UnsetType = UNSET


class MemberView(msgspec.Struct, kw_only=True):
    """A member."""

    id: str
    account_id: str
    name: str
    status: str
    limits: LimitsView
    created_at: str


class MemberList(msgspec.Struct):
    """All members of an account, deleted ones included."""

    data: list[MemberView]


async def find_member(context: Context, account_id: str, member_id: str) -> tuple[Member, int]:
    """A member of that account who is not deleted, and its version. Raises Missing."""
    found = await context.control.find(Member, member_id) if is_id("memb", member_id) else None
    if found is None or found[0].account_id != account_id or found[0].status == "deleted":
        raise Missing("This account has no such member.")
    return found


async def create(context: Context, request: Request) -> Response:
    """POST /accounts/{account_id}/members."""
    body = await read(request, NewMember)
    account, _ = await find_account(context, request.path_params["account_id"])
    member = Member(
        id=ids.new_member_id(),
        account_id=account.id,
        name=body.name,
        created_at_ms=clock.unix_ms(),
        limits=limits.changed(Limits(), body.limits),
    )
    await context.control.put(member, version=0, actor=ACTOR, reason="created")
    return respond(_view(member), 201)


async def list_all(context: Context, request: Request) -> Response:
    """GET /accounts/{account_id}/members; from the archive, which is a second or two behind."""
    account, _ = await find_account(context, request.path_params["account_id"])
    rows = await context.ledger.entities("member", account.id)
    return respond(MemberList([_view(msgspec.json.decode(row["entity"], type=Member)) for row in rows]))


async def show(context: Context, request: Request) -> Response:
    """GET /accounts/{account_id}/members/{member_id}."""
    member, _ = await _find(context, request)
    return respond(_view(member))


async def change(context: Context, request: Request) -> Response:
    """PATCH /accounts/{account_id}/members/{member_id}: in force for the very next request."""
    body = await read(request, MemberChange)
    member, version = await _find(context, request)
    changed = msgspec.structs.replace(
        member, limits=limits.changed(member.limits, body.limits), **given(body, "name", "status")
    )
    await context.control.put(changed, version=version, actor=ACTOR, reason="changed")
    return respond(_view(changed))


async def delete(context: Context, request: Request) -> Response:
    """DELETE /accounts/{account_id}/members/{member_id}: his keys are refused from then on."""
    member, version = await _find(context, request)
    deleted = msgspec.structs.replace(member, status="deleted")
    await context.control.put(deleted, version=version, actor=ACTOR, reason="deleted")
    return respond(_view(deleted))


async def _find(context: Context, request: Request) -> tuple[Member, int]:
    return await find_member(context, request.path_params["account_id"], request.path_params["member_id"])


def _view(member: Member) -> MemberView:
    return MemberView(
        id=member.id,
        account_id=member.account_id,
        name=member.name,
        status=member.status,
        limits=limits.view(member.limits),
        created_at=time_of(member.created_at_ms),
    )


OPERATIONS = (
    Operation(
        method="POST", path="/accounts/{account_id}/members", handler=create, summary="Create a member",
        body=NewMember, answer=MemberView, status=201,
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/members", handler=list_all, summary="List members",
        answer=MemberList,
    ),
    Operation(
        method="GET", path="/accounts/{account_id}/members/{member_id}", handler=show, summary="Show a member",
        answer=MemberView,
    ),
    Operation(
        method="PATCH", path="/accounts/{account_id}/members/{member_id}", handler=change, summary="Change a member",
        body=MemberChange, answer=MemberView,
    ),
    Operation(
        method="DELETE", path="/accounts/{account_id}/members/{member_id}", handler=delete,
        summary="Delete a member", answer=MemberView,
    ),
)  # fmt: skip
