"""Counts refused requests by key, reason and minute, and tells accounting of every minute once it is over.

Counting is one addition to a dictionary. What was counted waits in memory only: what a killed gateway had not published is lost,
a minute or so of it while NATS is there; no money hangs on that. A minute that is over is never added to, even if the clock is
set back: published again it says the same again, and accounting replaces what it had.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final, Protocol

import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError

from libs.common import clock, events, ids, subjects
from libs.common.events import RefusalsCounted
from libs.common.metrics import Metrics

_log: Final = logging.getLogger("relay.refusals")
COUNTS_MAX: Final = 20_000
"""Keys × reasons × minutes in memory, some 6 MB. Beyond it new ones are not counted, and `relay_refusals_uncounted_total` is."""
_KEPT_MINUTES: Final = 60
"""For as long a minute is tried again while NATS does not take it."""
_MESSAGE_COUNTS_MAX: Final = 1_000
_MESSAGES_IN_FLIGHT_MAX: Final = 16
_EVERY_S: Final = 5.0
_ACK_S: Final = 5.0
_CLOSE_S: Final = 2.0
_MINUTE_MS: Final = 60_000

_Name = tuple[int, str, str, str]
"""Minute, account id, key id, reason."""
_Message = tuple[int, list[_Name]]
"""Partition, and what is told of it."""


class JetStream(Protocol):
    """The part of `nats.js.JetStreamContext` that is used here."""

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        """Publish and wait for the server's acknowledgement."""


class RefusalCounts:
    """See the module's docstring. `member_of`: the member a key belongs to, empty if it is the account's own."""

    def __init__(
        self,
        jetstream: JetStream,
        metrics: Metrics,
        *,
        member_of: Callable[[str], str],
        is_connected: Callable[[], bool] = lambda: True,
        counts_max: int = COUNTS_MAX,
    ) -> None:
        self._jetstream = jetstream
        self._metrics = metrics
        self._member_of = member_of
        self._is_connected = is_connected
        self._counts_max = counts_max
        self._gateway_id = secrets.token_hex(8)
        self._counts: dict[_Name, int] = {}
        self._minute = 0
        """The newest one anything was counted in."""

    def count(self, account_id: str, key_id: str, reason: str) -> None:
        """A request was refused. `reason` is one of a small set of our own. Never fails."""
        self._minute = max(self._minute, clock.unix_ms() // _MINUTE_MS)
        name = (self._minute, account_id, key_id, reason)
        if name not in self._counts and len(self._counts) >= self._counts_max:
            if not self._metrics.value("relay_refusals_uncounted_total", "full"):
                _log.error("more than %d counts of refusals are in memory: new ones are not counted", self._counts_max)
            self._metrics.add("relay_refusals_uncounted_total", "full")
            return
        self._counts[name] = self._counts.get(name, 0) + 1

    async def run(self) -> None:
        """Publish what is over, every few seconds, for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.publish()

    async def publish(self) -> None:
        """All minutes that are over: each message once. What is not acknowledged is tried again at the next call."""
        now = clock.unix_ms() // _MINUTE_MS
        self._minute = max(self._minute, now)
        await self._publish(name for name in self._counts if name[0] < self._minute)
        late = [name for name in self._counts if name[0] < self._minute - _KEPT_MINUTES]
        if late:
            lost = sum(self._counts.pop(name) for name in late)
            self._metrics.add("relay_refusals_uncounted_total", "unpublished", lost)
            _log.error("%d refusals were not published within %d minutes, and are forgotten", lost, _KEPT_MINUTES)

    async def close(self) -> None:
        """Publish everything, the minute that is not over included. Nothing may be counted after that."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._publish(self._counts)
        except TimeoutError:
            _log.warning("%d counts of refusals were not published before the end", len(self._counts))

    async def _publish(self, names: Iterable[_Name]) -> None:
        """Until the first failure: what NATS does not take now, it is asked for later."""
        if not self._is_connected():  # before its first connection nats-py 2.16 raises AssertionError, and no time-out
            return
        messages = _messages(names)
        for start in range(0, len(messages), _MESSAGES_IN_FLIGHT_MAX):
            wave = messages[start : start + _MESSAGES_IN_FLIGHT_MAX]
            if not all(await asyncio.gather(*(self._send(partition, told) for partition, told in wave))):
                return

    async def _send(self, partition: int, names: list[_Name]) -> bool:
        payload = events.encode_refusals([self._counted(name) for name in names])
        headers = {"Nats-Msg-Id": events.payload_id(payload)}
        subject = subjects.refused_subject(partition)
        try:
            await self._jetstream.publish(
                subject, payload, timeout=_ACK_S, stream=subjects.STREAM_USAGE, headers=headers
            )
        except (nats.errors.Error, APIError, OSError, TimeoutError) as error:
            self._metrics.add("relay_publish_failures_total")
            _log.warning("refusals not acknowledged yet, tried again: %s", type(error).__name__)
            return False
        for name in names:
            del self._counts[name]
        return True

    def _counted(self, name: _Name) -> RefusalsCounted:
        minute, account_id, key_id, reason = name
        return RefusalsCounted(
            account_id=account_id,
            key_id=key_id,
            member_id=self._member_of(key_id),
            reason=reason,
            minute=minute,
            gateway_id=self._gateway_id,
            refused=self._counts[name],
        )


def _messages(names: Iterable[_Name]) -> list[_Message]:
    """By partition, in a fixed order, so that what is told again is the same."""
    messages: list[_Message] = []
    ordered = sorted((ids.partition(name[1]), name) for name in names)
    for partition, group in groupby(ordered, key=lambda one: one[0]):
        told = [name for _, name in group]
        starts = range(0, len(told), _MESSAGE_COUNTS_MAX)
        messages += [(partition, told[start : start + _MESSAGE_COUNTS_MAX]) for start in starts]
    return messages
