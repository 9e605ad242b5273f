"""A chore: measures all alert rules, opens an incident where a condition begins to hold, and closes it when that is over.

An incident that is not over means that its rule has fired. Its id is made from the rule and a number, and it must be new: of two
watchers at once, one opens it. What is to be sent stands in the incident itself (deliveries.py), so whoever dies after opening
has forgotten nothing. A key that is to be paused is disabled in the same atomic change.
"""

import logging
from typing import Final

import msgspec

from libs.common import clock, ids
from libs.common.entities import AlertRule, Channel, Delivery, Incident
from libs.common.events import Account, ApiKey, Member
from services.admin.alerts import conditions, deliveries
from services.admin.alerts.measures import Measured, Measures
from services.admin.control import By, Put
from services.admin.problems import Conflict
from services.admin.resource import Context

_log: Final = logging.getLogger("relay.alerts")
_BY: Final = By(actor="relay", address="", reason="an alert rule")


class Watcher:
    """See the module's docstring."""

    def __init__(self, context: Context, measures: Measures) -> None:
        self._context = context
        self._mirror = context.mirror
        self._measures = measures

    async def run(self) -> None:
        """Look at every rule once. Raises Unavailable."""
        latest = latest_of_rules(self._mirror.all(Incident))
        rules = self._mirror.all(AlertRule)
        measured = await self._measures.read([rule for rule in rules if rule.status == "active"])
        for rule in rules:
            one, before = measured.get(rule.id), latest.get(rule.id)
            step = conditions.step(rule, before, one.value if one else None)
            try:
                if step == "open":
                    assert one is not None
                    await self._open(rule, before.number + 1 if before else 1, one)
                elif step == "over":
                    assert before is not None
                    await self._over(rule, before.id)
            except Conflict:
                _log.info("%s is looked at again: another change came first", rule.id)

    async def _open(self, rule: AlertRule, number: int, measured: Measured) -> None:
        incident_id = ids.derived_id("inc", rule.id, str(number))
        paused = await self._paused(rule)
        facts = f"{measured.facts} {'The key was disabled.' if paused else ''}".strip()
        incident = Incident(
            id=incident_id,
            account_id=rule.account_id,
            rule_id=rule.id,
            number=number,
            kind=rule.kind,
            title=conditions.title(rule, measured.value, self._about(rule)),
            text=conditions.text(rule, facts),
            value=measured.value,
            opened_at_ms=clock.unix_ms(),
            deliveries=deliveries.to(incident_id, self._channels(rule), "opened"),
        )
        await self._context.control.put_all([(incident, None), *paused], by=_BY)
        _log.info("%s: incident %s is open", rule.id, incident_id)

    async def _paused(self, rule: AlertRule) -> list[Put]:
        if not rule.pause_key:
            return []
        found = await self._context.control.find(ApiKey, rule.key_id)
        if found is None or found.entity.account_id != rule.account_id or found.entity.status != "active":
            return []
        return [(msgspec.structs.replace(found.entity, status="disabled"), found)]

    async def _over(self, rule: AlertRule, incident_id: str) -> None:
        found = await self._context.control.find(Incident, incident_id)
        if found is None or found.entity.over_at_ms is not None:
            return
        now_ms, told = clock.unix_ms(), tuple[Delivery, ...]()
        incident = msgspec.structs.replace(found.entity, over_at_ms=now_ms)
        if incident.closed_at_ms is None:
            if rule.status == "active":
                told = deliveries.to(incident_id, self._channels(rule), "closed")
            incident = msgspec.structs.replace(incident, closed_at_ms=now_ms, deliveries=incident.deliveries + told)
        await self._context.control.put(incident, over=found, by=_BY)

    def _channels(self, rule: AlertRule) -> list[str]:
        found = (self._mirror.get(Channel, name) for name in rule.channel_ids)
        return [one.id for one in found if one is not None and one.status == "active"]

    def _about(self, rule: AlertRule) -> str:
        account = self._mirror.get(Account, rule.account_id)
        whole = f"account {conditions.plain(account.name if account else rule.account_id)}"
        if rule.key_id and (key := self._mirror.get(ApiKey, rule.key_id)):
            return f"key {conditions.plain(key.name)}"
        if rule.member_id and (member := self._mirror.get(Member, rule.member_id)):
            return f"member {conditions.plain(member.name)}"
        return whole


def latest_of_rules(incidents: list[Incident]) -> dict[str, Incident]:
    """The last incident of each rule."""
    found: dict[str, Incident] = {}
    for one in incidents:
        if one.rule_id not in found or found[one.rule_id].number < one.number:
            found[one.rule_id] = one
    return found
