"""Pulls from JetStream in batches and drives the steps of settlement. Nothing is acknowledged early, nothing is given up."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import events, subjects
from libs.common.balances import StoreUnavailable
from libs.common.events import Credit
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from services.accounting import settlement
from services.accounting.control import ControlBatch, apply_control
from services.accounting.ledger import Ledger, LedgerUnavailable
from services.accounting.parking import park
from services.accounting.settlement import AccountMissing, Debits

_log: Final = logging.getLogger("relay.consumer")
_ACK_WAIT_S: Final = 60
_ACK_PENDING_MAX: Final = 10_000
_IN_PROGRESS_EVERY_S: Final = 20.0
_RETRY_S: Final = 2.0
_FETCH_PAUSE_S: Final = 1.0
_BROKER_ERRORS: Final = (nats.errors.Error, APIError, OSError, TimeoutError)
_INFRASTRUCTURE: Final = (LedgerUnavailable, StoreUnavailable, AccountMissing, *_BROKER_ERRORS)

Handler = Callable[[Sequence[Msg]], Awaitable[None]]


async def subscribe(jetstream: JetStreamContext, stream: str, subject: str) -> JetStreamContext.PullSubscription:
    """The one durable consumer that all workers share. No `max_deliver`: a message given up would never be seen again."""
    config = ConsumerConfig(
        durable_name=subjects.CONSUMER_ACCOUNTING,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=_ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=_ACK_PENDING_MAX,
    )
    return await jetstream.pull_subscribe(subject, subjects.CONSUMER_ACCOUNTING, stream=stream, config=config)


class Consumer:
    """One loop over one stream."""

    def __init__(
        self,
        subscription: JetStreamContext.PullSubscription,
        handle: Handler,
        metrics: Metrics,
        *,
        batch_messages_max: int,
        batch_seconds: float,
    ) -> None:
        self._subscription = subscription
        self._handle = handle
        self._metrics = metrics
        self._batch_messages_max = batch_messages_max
        self._batch_seconds = batch_seconds

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set; the batch in hand is finished first."""
        while not stopping.is_set():
            messages = await self._fetch()
            if messages:
                await self._process(messages)

    async def _fetch(self) -> list[Msg]:
        """At least one message if there is any, then what comes within the age of a batch."""
        try:
            first = await self._subscription.fetch(1, timeout=_FETCH_PAUSE_S)
        except (nats.errors.TimeoutError, TimeoutError):
            return []
        except _BROKER_ERRORS as error:
            _log.warning("cannot fetch: %s", error or type(error).__name__)
            await asyncio.sleep(_FETCH_PAUSE_S)
            return []
        with contextlib.suppress(*_BROKER_ERRORS):
            first += await self._subscription.fetch(self._batch_messages_max - 1, timeout=self._batch_seconds)
        return first

    async def _process(self, messages: Sequence[Msg]) -> None:
        try:
            async with _kept_alive(messages):
                await self._handle(messages)
        except _INFRASTRUCTURE as error:
            self._metrics.add("relay_batches_failed_total", type(error).__name__)
            _log.warning("batch of %d put back: %s: %s", len(messages), type(error).__name__, error)
            await _each(messages, lambda message: message.nak(delay=_RETRY_S))
            await asyncio.sleep(_RETRY_S)
            return
        await _each(messages, lambda message: message.ack())


class UsageHandler:
    """What to do with messages of USAGE."""

    def __init__(self, jetstream: JetStreamContext, ledger: Ledger, debits: Debits, metrics: Metrics) -> None:
        self._jetstream = jetstream
        self._ledger = ledger
        self._debits = debits
        self._metrics = metrics

    async def __call__(self, messages: Sequence[Msg]) -> None:
        """Return when every event of every message is settled or parked. Raises for what is worth a retry."""
        batch = settlement.price_batch(await self._decode(messages))
        await settlement.record_batch(batch, self._ledger, self._debits, self._metrics)
        for poison in batch.poison:
            payload = events.encode_usage([poison.event])
            await park(self._jetstream, self._metrics, subjects.DLQ_USAGE, payload, poison.reason)

    async def _decode(self, messages: Sequence[Msg]) -> list[events.UsageRecorded]:
        decoded: list[events.UsageRecorded] = []
        for message in messages:
            try:
                decoded += events.decode_usage(message.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                await park(self._jetstream, self._metrics, subjects.DLQ_USAGE, message.data, str(error))
        return decoded


class ControlHandler:
    """What to do with messages of CONTROL."""

    def __init__(self, jetstream: JetStreamContext, batch: ControlBatch, metrics: Metrics) -> None:
        self._jetstream = jetstream
        self._batch = batch
        self._metrics = metrics

    async def __call__(self, messages: Sequence[Msg]) -> None:
        """Archive and apply, in stream order. Raises for what is worth a retry."""
        changes = []
        for message in messages:
            try:
                changes.append((message.metadata.sequence.stream, events.decode_control(message.data)))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                await park(self._jetstream, self._metrics, subjects.DLQ_CONTROL, message.data, str(error))
        for event in await apply_control(changes, self._batch, self._metrics):
            assert isinstance(event.entity, Credit)
            reason = "the credit would lift the balance above the limit of an account"
            await park(self._jetstream, self._metrics, subjects.DLQ_CONTROL, events.encode_control(event), reason)


@contextlib.asynccontextmanager
async def _kept_alive(messages: Sequence[Msg]) -> AsyncIterator[None]:
    """Tell the server, while a batch runs long, that it is still in hand."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(_IN_PROGRESS_EVERY_S)
            await _each(messages, lambda message: message.in_progress())

    task = spawn(beat(), name="keep-batch-alive")
    try:
        yield
    finally:
        task.cancel()


async def _each(messages: Sequence[Msg], call: Callable[[Msg], Awaitable[None]]) -> None:
    """An acknowledgement that gets lost is made up for by the next delivery."""
    for message in messages:
        with contextlib.suppress(*_BROKER_ERRORS):
            await call(message)
