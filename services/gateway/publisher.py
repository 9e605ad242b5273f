"""Takes usage events from requests and brings them from the spool to JetStream. No caller ever waits for it.

The first event that waits starts a timer; all that have come when it rings travel together, one message a partition: a single
node that syncs every message takes few messages a second but many events (RELIABILITY.md, publishing), and here, there and in
accounting a message costs more than the events in it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError

from libs.common import events, failpoints, ids, subjects
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from services.gateway.meter import UNREADABLE_USAGE
from services.gateway.spool import Place, Spool

_log: Final = logging.getLogger("relay.publisher")
_GATHER_S: Final = 0.05
"""What an event waits at most for others to travel with: little of the two seconds that accounting may lag (ADR 12)."""
_MESSAGES_IN_FLIGHT_MAX: Final = 16
_EVENTS_PER_MESSAGE_MAX: Final = 200
_MESSAGE_BYTES_MAX: Final = 512 * 1024  # nats-server takes 1 MB
_KEPT_IN_MEMORY_MAX: Final = 1_000
_ACK_S: Final = 5.0
_RETRY_S_MIN: Final = 0.1
_RETRY_S_MAX: Final = 5.0


class JetStream(Protocol):
    """The part of `nats.js.JetStreamContext` that is used here."""

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        """Publish and wait for the server's acknowledgement."""


class _Waiting(msgspec.Struct, frozen=True):
    request_id: str
    place: Place
    event: bytes | None
    """What stands there, as long as few are waiting: else it is read when its turn comes."""


class Publisher:
    """Keeps every event in the spool until JetStream has acknowledged it, retrying for ever with the same message id."""

    def __init__(
        self, jetstream: JetStream, metrics: Metrics, spool: Spool, *, is_connected: Callable[[], bool] = lambda: True
    ) -> None:
        self._jetstream = jetstream
        self._is_connected = is_connected
        self._metrics = metrics
        self._spool = spool
        self._waiting: dict[int, deque[_Waiting]] = {}
        """By partition, in order of arrival."""
        self._gathering: asyncio.TimerHandle | None = None
        """Until it rings nothing is sent. Without it what waits is late already, and goes as soon as a message may go."""
        self._unpublished = 0
        self._messages_in_flight = 0
        self._all_published = asyncio.Event()
        self._all_published.set()
        metrics.gauge("relay_events_unpublished", lambda: self._unpublished)

    def record(self, event: UsageRecorded) -> None:
        """A request has ended. Never fails: what was admitted is recorded, also when the spool is full."""
        encoded = events.encode_event(event)
        if len(encoded) > _MESSAGE_BYTES_MAX:
            encoded = events.encode_event(_cut(event))
        partition = ids.partition(event.account_id)
        place = self._spool.close(event.request_id, partition, encoded)
        kept = encoded if self._unpublished < _KEPT_IN_MEMORY_MAX else None
        if not self._waiting:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_S, self._send_gathered)
        self._take(partition, _Waiting(event.request_id, place, kept))

    def resume(self, found: Sequence[tuple[str, int, Place]]) -> None:
        """Publish what an earlier process has left in the spool: request id, partition, and where the event stands."""
        for request_id, partition, place in found:
            self._take(partition, _Waiting(request_id, place, None))
        self._send_gathered()

    async def flush(self, timeout_s: float) -> int:
        """Send what there is and wait until it is acknowledged; how many events are not, when the time is up.

        Those stay in the spool.
        """
        self._send_gathered()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_published.wait()
        except TimeoutError:
            _log.warning("%d usage events are not acknowledged yet; they stay in the spool", self._unpublished)
        return self._unpublished

    def _take(self, partition: int, waiting: _Waiting) -> None:
        self._unpublished += 1
        self._all_published.clear()
        self._waiting.setdefault(partition, deque()).append(waiting)

    def _send_gathered(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and self._messages_in_flight < _MESSAGES_IN_FLIGHT_MAX:
            partition, queued = next(iter(self._waiting.items()))
            batch, payload = self._next_message(queued)
            del self._waiting[partition]
            if queued:
                self._waiting[partition] = queued  # behind the other partitions
            if batch:
                self._messages_in_flight += 1
                spawn(self._publish(partition, batch, payload), name="publish-usage")

    def _next_message(self, queued: deque[_Waiting]) -> tuple[list[_Waiting], bytes]:
        """Take from `queued` what travels in one message: at least one event, if it can be read."""
        batch: list[_Waiting] = []
        encoded: list[bytes] = []
        size = 0
        while queued and len(batch) < _EVENTS_PER_MESSAGE_MAX:
            event = self._read(queued[0])
            if event is None:
                queued.popleft()
                continue
            size += len(event) + 1
            if batch and size > _MESSAGE_BYTES_MAX:
                break
            batch.append(queued.popleft())
            encoded.append(event)
        return batch, events.join_usage(encoded)

    def _read(self, waiting: _Waiting) -> bytes | None:
        if waiting.event is not None:
            return waiting.event
        try:
            return self._spool.read(waiting.place)
        except OSError as error:  # the disk has lost it: the request's lease will end in a row of its own
            self._metrics.add("relay_spool_failures_total")
            _log.critical("the event of %s cannot be read from the spool: %s", waiting.request_id, error.strerror)
            self._leave(1)
            return None

    async def _publish(self, partition: int, batch: Sequence[_Waiting], payload: bytes) -> None:
        headers = {"Nats-Msg-Id": events.payload_id(payload)}
        subject = subjects.usage_subject(partition)
        delay_s = _RETRY_S_MIN
        while not await self._acknowledged(subject, payload, headers):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_S_MAX)
        failpoints.reach("spool_published")
        self._spool.done([(one.request_id, one.place) for one in batch])
        self._messages_in_flight -= 1
        self._metrics.add("relay_events_published_total", amount=len(batch))
        self._leave(len(batch))
        if self._gathering is None:
            self._send_waiting()

    def _leave(self, count: int) -> None:
        self._unpublished -= count
        if not self._unpublished:
            self._all_published.set()

    async def _acknowledged(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
        if not self._is_connected():  # before its first connection nats-py 2.16 raises AssertionError, and no time-out
            return False
        try:
            # the expected stream makes a lost stream an error instead of a message nobody keeps
            await self._jetstream.publish(
                subject, payload, timeout=_ACK_S, stream=subjects.STREAM_USAGE, headers=headers
            )
        except (nats.errors.Error, APIError, OSError, TimeoutError) as error:
            self._metrics.add("relay_publish_failures_total")
            _log.warning("usage not acknowledged yet, retrying: %s", type(error).__name__)
            return False
        return True


def _cut(event: UsageRecorded) -> UsageRecorded:
    """An event that no message can carry. Its usage is no usage: accounting will park it, where it is seen."""
    _log.critical("%s has a usage that is too large for any message; it will be parked", event.request_id)
    return msgspec.structs.replace(event, usage={UNREADABLE_USAGE: 1}, stop_reason=event.stop_reason[:100])
