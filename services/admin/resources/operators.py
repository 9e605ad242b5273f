"""Operators: the people who run the relay."""

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.entities import Operator, OperatorRole
from services.admin import links
from services.admin.access import OPERATOR_OWNER, OPERATORS
from services.admin.control import Found, Put
from services.admin.problems import Conflict
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
    found,
    given,
    page,
    read,
    respond,
    time_of,
)
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


class NewOperator(msgspec.Struct, forbid_unknown_fields=True):
    """To invite an operator."""

    name: Name
    email: Email
    role: OperatorRole


class OperatorChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To change an operator; what is absent stays."""

    name: Name | UnsetType = UNSET
    role: OperatorRole | UnsetType = UNSET
    status: ActiveOrNot | UnsetType = UNSET


class OperatorView(msgspec.Struct, kw_only=True):
    """An operator."""

    id: str
    name: str
    email: str
    role: str
    status: str
    created_at: str


class InvitedOperator(OperatorView, kw_only=True):
    """A new operator, with the link that lets him in."""

    link: Link


class OperatorPage(msgspec.Struct):
    """In the order of their ids; deleted ones too."""

    data: list[OperatorView]
    next_cursor: str | None


async def create(context: Context, call: Call) -> Response:
    """POST /operators. The same Idempotency-Key gives the same operator, with the same link."""
    body = await read(call, NewOperator)
    operator = Operator(
        id=call.derived_id("oper", call.principal.actor) or ids.new_id("oper"),
        name=body.name,
        email=links.email_of(body.email),
        role=body.role,
        created_at_ms=clock.unix_ms(),
    )
    operator, link, version = await invite(context, call, operator, digest(body))
    assert link is not None, "an operator has an address"
    return respond(InvitedOperator(link=link, **msgspec.structs.asdict(_view(operator))), 201, version=version)


async def list_all(context: Context, call: Call) -> Response:
    """GET /operators."""
    shown, following = page(call, context.mirror.all(Operator), lambda one: one.id)
    return respond(OperatorPage([_view(one) for one in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET /operators/{operator_id}."""
    one = await found(context, Operator, call, "operator_id", "oper")
    return respond(_view(one.entity), version=one.version)


async def change(context: Context, call: Call) -> Response:
    """PATCH /operators/{operator_id}: his sessions are over if his role or status changes."""
    body = await read(call, OperatorChange)
    one = await found(context, Operator, call, "operator_id", "oper")
    check_match(call, one)
    changed = msgspec.structs.replace(one.entity, **given(body, "name", "role", "status"))
    return await _put(context, call, one, changed, "changed")


async def delete(context: Context, call: Call) -> Response:
    """DELETE /operators/{operator_id}."""
    one = await found(context, Operator, call, "operator_id", "oper")
    check_match(call, one)
    return await _put(context, call, one, msgspec.structs.replace(one.entity, status="deleted"), "deleted")


async def new_link(context: Context, call: Call) -> Response:
    """POST /operators/{operator_id}/link: for a password that was forgotten. The link before is void."""
    one = await found(context, Operator, call, "operator_id", "oper")
    check_may_link(call, one.entity)
    token, sign_in = links.new_link(one.entity.id, one.entity.sign_in)
    changed = msgspec.structs.replace(one.entity, sign_in=sign_in)
    await context.control.put(changed, over=one, by=call.by("new link"))
    return respond(link_view(context, token, sign_in), 201)


async def _put(context: Context, call: Call, one: Found[Operator], changed: Operator, reason: str) -> Response:
    puts: list[Put] = []
    if is_owner(one.entity) and not is_owner(changed):
        other = await other_owner(context, one.entity, context.mirror.all(Operator))
        if other is None:
            raise Conflict("This is the last owner. Make another one first, or nobody could.")
        puts.append(other)
    changed = with_sessions_ended(one.entity, changed)
    put, *_ = await context.control.put_all([(changed, one), *puts], by=call.by(reason))
    return respond(_view(changed), version=put.version)


def _view(operator: Operator) -> OperatorView:
    return OperatorView(
        id=operator.id,
        name=operator.name,
        email=operator.email,
        role=operator.role,
        status=operator.status,
        created_at=time_of(operator.created_at_ms),
    )


_ONE = "/operators/{operator_id}"
OPERATIONS = (
    Operation(
        method="POST", path="/operators", handler=create, summary="Invite an operator", body=NewOperator,
        answer=InvitedOperator, status=201, headers=IDEMPOTENT, roles=OPERATOR_OWNER, scope="operators:write",
    ),
    Operation(
        method="GET", path="/operators", handler=list_all, summary="List operators", answer=OperatorPage, query=PAGING,
        roles=OPERATORS, scope="operators:read",
    ),
    Operation(
        method="GET", path=_ONE, handler=show, summary="Show an operator", answer=OperatorView, roles=OPERATORS,
        scope="operators:read",
    ),
    Operation(
        method="PATCH", path=_ONE, handler=change, summary="Change an operator", body=OperatorChange, answer=OperatorView,
        headers=MATCHED, roles=OPERATOR_OWNER, scope="operators:write",
    ),
    Operation(
        method="DELETE", path=_ONE, handler=delete, summary="Delete an operator", answer=OperatorView, headers=MATCHED,
        roles=OPERATOR_OWNER, scope="operators:write",
    ),
    Operation(
        method="POST", path=f"{_ONE}/link", handler=new_link, summary="Make a new link for an operator", answer=Link,
        status=201, roles=OPERATOR_OWNER, scope="operators:write",
    ),
)  # fmt: skip
