"""A chore: sends what stands in the outboxes of incidents, and notes what came of it.

1  The try is claimed by compare-and-set, with the time of the next one: of two processes, one sends.
2  It is sent, under the id of the delivery.
3  What came of it is noted.
Whoever dies between 2 and 3 leaves a delivery that is sent again, under the same id, when its next try is due: at least once, and
receivers that drop repeated ids see it once. Accounts are served side by side: whose receivers are slow waits for himself alone.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from libs.common import clock, failpoints
from libs.common.entities import AlertRule, Channel, Delivery, Incident
from libs.common.runtime import spawn
from libs.common.sealing import SecretsKeyMissing
from services.admin.alerts import deliveries
from services.admin.alerts.deliveries import Result
from services.admin.control import By
from services.admin.notices import targets
from services.admin.notices.notices import Undelivered
from services.admin.problems import Conflict
from services.admin.resource import Context

_log: Final = logging.getLogger("relay.outbox")
_BY: Final = By(actor="relay", address="", reason="notices")
_AT_ONCE: Final = 5
"""Incidents of an account: each has at most twenty channels."""
_ACCOUNTS_AT_ONCE: Final = 50
_LOOK_S: Final = 2.0
"""While some are waited for."""
_NOTE_TRIES: Final = 5
_GONE: Final = Result("The channel was deleted.", retryable=False)
_FAILED: Final = Result("The relay failed to send it; its log says why.")
_SHUT: Final = Result("RELAY_SECRETS_KEY does not open what is kept of this channel.")


class Outbox:
    """See the module's docstring."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Send what is due. Raises Unavailable."""
        running: dict[str, asyncio.Task[None]] = {}
        failed: list[asyncio.Task[None]] = []
        try:
            while True:
                for account_id, names in self._due().items():
                    if account_id not in running and len(running) < _ACCOUNTS_AT_ONCE:
                        running[account_id] = spawn(self._send_some(names), name="notices of an account")
                if not running:
                    return
                ended, left = await asyncio.wait(running.values(), timeout=_LOOK_S)
                failed += [task for task in ended if task.exception()]
                if not left:
                    break
                running = {account_id: task for account_id, task in running.items() if task in left}
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)
        for task in failed:
            task.result()

    def _due(self) -> dict[str, list[str]]:
        """Incidents by account; the relay itself has its own place."""
        now_ms, found = clock.unix_ms(), defaultdict[str, list[str]](list)
        for one in self._context.mirror.all(Incident):
            if deliveries.due(one, now_ms):
                found[one.account_id].append(one.id)
        return found

    async def _send_some(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _AT_ONCE):
            await asyncio.gather(*(self._send_all(name) for name in names[start : start + _AT_ONCE]))

    async def _send_all(self, incident_id: str) -> None:
        found = await self._context.control.find(Incident, incident_id)
        now_ms = clock.unix_ms()
        due = deliveries.due(found.entity, now_ms) if found else []
        if found is None or not due:
            return
        claimed = deliveries.claimed(found.entity, {one.id for one in due}, now_ms)
        try:
            await self._context.control.put(claimed, over=found, by=_BY)
        except Conflict:
            return  # somebody else sends, or the incident has changed: next time
        rule = self._context.mirror.get(AlertRule, claimed.rule_id)
        results = await asyncio.gather(*(self._send(claimed, one, rule) for one in due))
        failpoints.reach("notices_sent")
        await self._note(incident_id, {one.id: result for one, result in zip(due, results, strict=True)})

    async def _send(self, incident: Incident, delivery: Delivery, rule: AlertRule | None) -> Result:
        channel = self._context.mirror.get(Channel, delivery.channel_id)
        if channel is None or channel.status != "active":
            return _GONE
        try:
            target = targets.opened(self._context.sealer, channel)
            await self._context.senders.send(target, deliveries.notice(incident, delivery, rule))
        except SecretsKeyMissing:
            return _SHUT
        except Undelivered as undelivered:
            return Result(undelivered.reason, retryable=undelivered.retryable)
        except Exception:  # noqa: BLE001 - logged; one notice must not hold up the others
            _log.exception("a notice of %s cannot be sent", incident.id)
            return _FAILED
        return Result()

    async def _note(self, incident_id: str, results: dict[str, Result]) -> None:
        """Whatever else has changed in the meantime: an incident may be closed while its notices are on their way."""
        for _ in range(_NOTE_TRIES):
            found = await self._context.control.find(Incident, incident_id)
            if found is None:
                return
            try:
                await self._context.control.put(deliveries.noted(found.entity, results), over=found, by=_BY)
            except Conflict:
                continue
            return
        _log.warning("%s: what came of its notices could not be noted; they are sent again", incident_id)
