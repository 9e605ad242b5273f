"""Takes usage events from requests and brings them to JetStream. No caller ever waits for it.

Events that arrive while others are on their way travel together, one message a partition: a single node that syncs every
message takes few messages a second but many events (RELIABILITY.md, publishing).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError

from libs.common import events, ids, subjects
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from services.gateway.meter import UNREADABLE_USAGE

_log: Final = logging.getLogger("relay.publisher")
_MESSAGES_IN_FLIGHT_MAX: Final = 16
_EVENTS_PER_MESSAGE_MAX: Final = 200
_MESSAGE_BYTES_MAX: Final = 512 * 1024  # nats-server takes 1 MB
_ACK_S: Final = 5.0
_RETRY_S_MIN: Final = 0.1
_RETRY_S_MAX: Final = 5.0


class JetStream(Protocol):
    """The part of `nats.js.JetStreamContext` that is used here."""

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        """Publish and wait for the server's acknowledgement."""


class Publisher:
    """Keeps every event until JetStream has acknowledged it, retrying for ever with the same message id."""

    def __init__(self, jetstream: JetStream, metrics: Metrics, *, unpublished_max: int) -> None:
        self._jetstream = jetstream
        self._metrics = metrics
        self._unpublished_max = unpublished_max
        self._waiting: dict[int, deque[UsageRecorded]] = {}
        """By partition, in order of arrival."""
        self._unpublished = 0
        self._messages_in_flight = 0
        self._all_published = asyncio.Event()
        self._all_published.set()
        metrics.gauge("relay_events_unpublished", lambda: self._unpublished)

    @property
    def is_full(self) -> bool:
        """Whether no more requests should be admitted: NATS has been away for too long."""
        return self._unpublished >= self._unpublished_max

    def record(self, event: UsageRecorded) -> None:
        """Take an event. Never fails: what was admitted is recorded, also beyond the limit."""
        self._unpublished += 1
        self._all_published.clear()
        self._waiting.setdefault(ids.partition(event.account_id), deque()).append(event)
        self._send_waiting()

    async def flush(self, timeout_s: float) -> int:
        """Wait until everything is acknowledged; how many events are not, when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_published.wait()
        except TimeoutError:
            _log.critical("%d usage events could not be published before shutdown", self._unpublished)
        return self._unpublished

    def _send_waiting(self) -> None:
        while self._waiting and self._messages_in_flight < _MESSAGES_IN_FLIGHT_MAX:
            partition, queued = next(iter(self._waiting.items()))
            batch, payload = _next_message(queued)
            del self._waiting[partition]
            if queued:
                self._waiting[partition] = queued  # behind the other partitions
            self._messages_in_flight += 1
            spawn(self._publish(partition, batch, payload), name="publish-usage")

    async def _publish(self, partition: int, batch: Sequence[UsageRecorded], payload: bytes) -> None:
        headers = {"Nats-Msg-Id": events.message_id(batch)}
        subject = subjects.usage_subject(partition)
        delay_s = _RETRY_S_MIN
        while not await self._acknowledged(subject, payload, headers):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_S_MAX)
        self._messages_in_flight -= 1
        self._unpublished -= len(batch)
        self._metrics.add("relay_events_published_total", amount=len(batch))
        if not self._unpublished:
            self._all_published.set()
        self._send_waiting()

    async def _acknowledged(self, subject: str, payload: bytes, headers: dict[str, str]) -> bool:
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


def _next_message(queued: deque[UsageRecorded]) -> tuple[list[UsageRecorded], bytes]:
    """Take from `queued` what travels in one message: at least one event."""
    batch: list[UsageRecorded] = []
    encoded: list[bytes] = []
    size = 0
    while queued and len(batch) < _EVENTS_PER_MESSAGE_MAX:
        event = events.encode_event(queued[0])
        if len(event) > _MESSAGE_BYTES_MAX:
            event = events.encode_event(_cut(queued[0]))
        size += len(event) + 1
        if batch and size > _MESSAGE_BYTES_MAX:
            break
        batch.append(queued.popleft())
        encoded.append(event)
    return batch, events.join_usage(encoded)


def _cut(event: UsageRecorded) -> UsageRecorded:
    """An event that no message can carry. Its usage is no usage: accounting will park it, where it is seen."""
    _log.critical("%s has a usage that is too large for any message; it will be parked", event.request_id)
    return msgspec.structs.replace(event, usage={UNREADABLE_USAGE: 1}, stop_reason=event.stop_reason[:100])
