"""Incidents: what alert rules have found, and what became of the notices about it."""

from typing import Any, Final

import msgspec
from starlette.responses import Response

from libs.common import clock, money
from libs.common.entities import Channel, Delivery, Incident
from services.admin.access import LEADERS, OPERATOR_OWNER, OPERATORS, PAYERS, SUPPORT
from services.admin.alerts import conditions
from services.admin.problems import BadInput, Conflict
from services.admin.resource import (
    PAGING,
    Call,
    Context,
    Operation,
    cursor,
    encode_cursor,
    found,
    page_limit,
    respond,
    time_of,
)


class IncidentView(msgspec.Struct, kw_only=True):
    """What a rule has found."""

    id: str
    account_id: str | None
    rule_id: str
    number: int
    """Of this rule."""
    kind: str
    severity: str
    title: str
    value: int | None
    """What was measured when it was opened; null where it is money."""
    value_usd: str | None
    status: str
    """open or closed."""
    opened_at: str
    closed_at: str | None
    over_at: str | None
    """When its condition was over: only then may the rule fire again."""


class DeliveryView(msgspec.Struct, kw_only=True):
    """One notice to one channel."""

    id: str
    """The webhook-id: the same for every try."""
    channel_id: str
    channel: str | None
    """Its name."""
    event: str
    """opened or closed."""
    status: str
    """pending, delivered or failed."""
    tries: int
    next_try_at: str | None
    error: str | None
    """Of the last try."""


class IncidentWithDeliveries(IncidentView, kw_only=True):
    """An incident with its notices."""

    text: str
    deliveries: list[DeliveryView]


class IncidentPage(msgspec.Struct):
    """Newest first."""

    data: list[IncidentView]
    next_cursor: str | None


async def list_all(context: Context, call: Call) -> Response:
    """GET /incidents, GET /accounts/{account_id}/incidents."""
    after, limit = cursor(call), page_limit(call)
    incidents = context.mirror.of_account(Incident, call.account_id)
    status = call.query_params.get("status")
    if status not in (None, "open", "closed"):
        raise BadInput("status must be open or closed.")
    last = context.mirror.get(Incident, after) if after else None
    if after and last is None:
        raise BadInput("cursor must be one that an earlier answer gave.")
    left = sorted(
        (
            one
            for one in incidents
            if (last is None or _place(one) < _place(last)) and status in (None, _status(one))
        ),
        key=_place,
        reverse=True,
    )  # fmt: skip
    shown = left[:limit]
    following = encode_cursor(shown[-1].id) if len(left) > limit else None
    return respond(IncidentPage([IncidentView(**_fields(one)) for one in shown], following))


async def show(context: Context, call: Call) -> Response:
    """GET …/incidents/{incident_id}."""
    one = await found(context, Incident, call, "incident_id", "inc")
    return respond(_whole(context, one.entity), version=one.version)


async def close(context: Context, call: Call) -> Response:
    """POST …/incidents/{incident_id}/close: the rule stays quiet until its condition is over."""
    one = await found(context, Incident, call, "incident_id", "inc")
    if one.entity.closed_at_ms is not None:
        raise Conflict("It is closed already.")
    closed = msgspec.structs.replace(one.entity, closed_at_ms=clock.unix_ms())
    put = await context.control.put(closed, over=one, by=call.by("closed"))
    return respond(_whole(context, closed), version=put.version)


def _place(incident: Incident) -> tuple[int, str]:
    return incident.opened_at_ms, incident.id


def _status(incident: Incident) -> str:
    return "open" if incident.closed_at_ms is None else "closed"


def _fields(incident: Incident) -> dict[str, Any]:
    kind = conditions.KINDS[incident.kind]
    is_money = kind.unit == "usd"
    return {
        "id": incident.id,
        "account_id": incident.account_id or None,
        "rule_id": incident.rule_id,
        "number": incident.number,
        "kind": incident.kind,
        "severity": kind.severity,
        "title": incident.title,
        "value": None if is_money else incident.value,
        "value_usd": money.format_usd(incident.value) if is_money else None,
        "status": _status(incident),
        "opened_at": time_of(incident.opened_at_ms),
        "closed_at": None if incident.closed_at_ms is None else time_of(incident.closed_at_ms),
        "over_at": None if incident.over_at_ms is None else time_of(incident.over_at_ms),
    }


def _whole(context: Context, incident: Incident) -> IncidentWithDeliveries:
    shown = [_delivery(context, one) for one in incident.deliveries]
    return IncidentWithDeliveries(text=incident.text, deliveries=shown, **_fields(incident))


def _delivery(context: Context, delivery: Delivery) -> DeliveryView:
    channel = context.mirror.get(Channel, delivery.channel_id)
    return DeliveryView(
        id=delivery.id,
        channel_id=delivery.channel_id,
        channel=channel.name if channel else None,
        event=delivery.event,
        status=delivery.status,
        tries=delivery.tries,
        next_try_at=time_of(delivery.next_at_ms) if delivery.next_at_ms else None,
        error=delivery.error or None,
    )


_OF_ACCOUNT: Final = "/accounts/{account_id}/incidents"
OPERATIONS = tuple(
    operation
    for path, readers, writers, of in (
        ("/incidents", OPERATORS, OPERATOR_OWNER, "relay"),
        (_OF_ACCOUNT, OPERATORS | PAYERS, SUPPORT | LEADERS, "account"),
    )
    for operation in (
        Operation(
            method="GET", path=path, handler=list_all, summary=f"List incidents of the {of}", answer=IncidentPage,
            query={"status": "open or closed", **PAGING}, roles=readers, scope="alerts:read",
            name=f"incidents_list_{of}",
        ),
        Operation(
            method="GET", path=f"{path}/{{incident_id}}", handler=show, summary=f"Show an incident of the {of}",
            answer=IncidentWithDeliveries, roles=readers, scope="alerts:read", name=f"incidents_show_{of}",
        ),
        Operation(
            method="POST", path=f"{path}/{{incident_id}}/close", handler=close, answer=IncidentWithDeliveries,
            summary=f"Close an incident of the {of}", roles=writers, scope="alerts:write",
            name=f"incidents_close_{of}",
        ),
    )
)  # fmt: skip
