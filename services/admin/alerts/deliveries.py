"""The outbox of an incident: which of its notices are due, when the next try is, and what a try has changed. Pure."""

from collections.abc import Collection, Mapping
from typing import Final, Literal

import msgspec

from libs.common import ids
from libs.common.entities import AlertRule, Delivery, Incident
from services.admin.alerts import conditions
from services.admin.notices.notices import Notice

_WAITS_S: Final = (10, 60, 300, 1_800, 7_200, 21_600)
"""After the first try, the second, …; the last one stays."""
_GIVEN_UP_MS: Final = 24 * 3_600_000


class Result(msgspec.Struct, frozen=True):
    """Of one try. `error` is empty if it was delivered."""

    error: str = ""
    retryable: bool = True


def to(incident_id: str, channel_ids: Collection[str], event: Literal["opened", "closed"]) -> tuple[Delivery, ...]:
    """One notice to each channel."""
    return tuple(
        Delivery(id=ids.derived_id("ntc", incident_id, name, event), channel_id=name, event=event)
        for name in channel_ids
    )


def due(incident: Incident, now_ms: int) -> list[Delivery]:
    """What is to be sent now. That it is over is not told before that it began."""
    begun = {one.channel_id for one in incident.deliveries if one.event == "opened" and one.status == "pending"}
    return [
        one
        for one in incident.deliveries
        if one.status == "pending"
        and not now_ms < one.next_at_ms <= now_ms + _WAITS_S[-1] * 1000  # later still: the clock was ahead
        and not (one.event == "closed" and one.channel_id in begun)
    ]


def claimed(incident: Incident, names: Collection[str], now_ms: int) -> Incident:
    """Before a try of these: whoever has written this sends, and if he dies, the next try comes at its time."""
    return _changed(
        incident,
        {
            one.id: msgspec.structs.replace(one, tries=one.tries + 1, next_at_ms=now_ms + wait_ms(one.tries + 1))
            for one in incident.deliveries
            if one.id in names
        },
    )


def noted(incident: Incident, results: Mapping[str, Result]) -> Incident:
    """After the tries: delivery id → what came of it."""
    return _changed(
        incident,
        {
            one.id: _after(incident, one, results[one.id])
            for one in incident.deliveries
            if one.id in results and one.status == "pending"
        },
    )


def wait_ms(tries: int) -> int:
    """From a try to the next one."""
    return _WAITS_S[min(tries, len(_WAITS_S)) - 1] * 1000


def notice(incident: Incident, delivery: Delivery, rule: AlertRule | None) -> Notice:
    """What is sent."""
    is_over = delivery.event == "closed"
    data: dict[str, str | int | None] = {
        "incident_id": incident.id,
        "rule_id": incident.rule_id,
        "rule": conditions.plain(rule.name) if rule else None,
        "kind": incident.kind,
        "value": incident.value,
    }
    return Notice(
        id=delivery.id,
        kind=f"alert.{delivery.event}",
        title=f"Over: {incident.title}" if is_over else incident.title,
        text="The condition is over; the rule may fire again." if is_over else incident.text,
        severity=conditions.KINDS[incident.kind].severity,
        account_id=incident.account_id,
        at_ms=_began_ms(incident, delivery),
        data=data,
    )


def _after(incident: Incident, one: Delivery, result: Result) -> Delivery:
    if not result.error:
        return msgspec.structs.replace(one, status="delivered", next_at_ms=0, error="")
    is_last = one.next_at_ms > _began_ms(incident, one) + _GIVEN_UP_MS
    if result.retryable and not is_last:
        return msgspec.structs.replace(one, error=result.error)
    return msgspec.structs.replace(one, status="failed", next_at_ms=0, error=result.error)


def _began_ms(incident: Incident, delivery: Delivery) -> int:
    return incident.opened_at_ms if delivery.event == "opened" else incident.closed_at_ms or incident.opened_at_ms


def _changed(incident: Incident, changes: Mapping[str, Delivery]) -> Incident:
    return msgspec.structs.replace(incident, deliveries=tuple(changes.get(one.id, one) for one in incident.deliveries))
