"""Pulls from JetStream in batches and drives the steps of settlement. Nothing is acknowledged early, nothing is given up."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import clock, events, failpoints, ids, subjects
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from libs.common.scripts import StoreUnavailable
from services.accounting import refusals, settlement
from services.accounting.control import Change, ControlBatch, apply_control
from services.accounting.ledger import LedgerUnavailable
from services.accounting.parking import Trouble, is_hopeless, one_line, park
from services.accounting.refusals import RefusalsLedger
from services.accounting.settlement import Books, Debits, UsageLedger

_log: Final = logging.getLogger("relay.consumer")
_ACK_WAIT_S: Final = 60
_ACK_PENDING_MAX: Final = 10_000
_IN_PROGRESS_EVERY_S: Final = 20.0
_RETRY_S: Final = 0.5
_RETRY_S_MAX: Final = 60.0
_AWAY_S_MAX: Final = 5.0
_FETCH_PAUSE_S: Final = 0.5
_BROKER_ERRORS: Final = (nats.errors.Error, APIError, OSError, TimeoutError)
_INFRASTRUCTURE: Final = (LedgerUnavailable, StoreUnavailable, *_BROKER_ERRORS)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Troubles = Mapping[int, Sequence[Trouble]]
"""By the position of a message in its batch: what keeps it from being acknowledged."""


class Handler(Protocol):
    """What is done with the messages of one stream."""

    dlq_subject: str

    async def __call__(self, messages: Sequence[Msg]) -> Troubles:
        """Do all that can be done, say what could not. Raises for what concerns all of them and is worth a retry."""


class UsageArchive(UsageLedger, RefusalsLedger, Protocol):
    """Where the rows of what USAGE carries go."""


class Hours(Protocol):
    """Who sums up the rows of each hour (rollups.py)."""

    def touched(self, account_id: str, time_ms: int) -> None:
        """A row of that account and time was archived."""


class Marks(Protocol):
    """Where it is noted how far the log is settled (libs/common/gates.py)."""

    async def mark(self, partition: int, *, usage_sequence: int = 0, control_sequence: int = 0) -> None:
        """Only moves forward. Raises StoreUnavailable."""


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
        jetstream: JetStreamContext,
        subscription: JetStreamContext.PullSubscription,
        handle: Handler,
        metrics: Metrics,
        *,
        batch_messages_max: int,
        batch_seconds: float,
        retry_seconds: float = _RETRY_S,
    ) -> None:
        self._jetstream = jetstream
        self._subscription = subscription
        self._handle = handle
        self._metrics = metrics
        self._batch_messages_max = batch_messages_max
        self._batch_seconds = batch_seconds
        self._retry_seconds = retry_seconds
        self._away_s = retry_seconds
        """How long to wait for a store that is away: longer and longer, until a batch goes through."""
        self.is_fetching = True
        """Whether the last fetch was answered, if only by silence."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set; the batch in hand is finished first."""
        task = asyncio.current_task()
        assert task is not None
        while not stopping.is_set():
            if (
                task.cancelling()
            ):  # and the cancellation is lost: nats-py waits with Python 3.11's `wait_for` (libs/common/runtime.py)
                raise asyncio.CancelledError
            try:
                messages = await self._fetch()
                if not messages or await self.process(messages):
                    continue
            except Exception as error:  # noqa: BLE001 - logged; a loop that ended would settle nothing ever again
                self._metrics.add("relay_batches_failed_total", type(error).__name__)
                _log.error("the loop failed in a way nobody foresaw, and goes on", exc_info=error)
            await _pause(stopping, self._away_s)

    async def _fetch(self) -> list[Msg]:
        """At least one message if there is any, then what comes within the age of a batch."""
        try:
            messages = await self._subscription.fetch(1, timeout=_FETCH_PAUSE_S)
        except (nats.errors.TimeoutError, TimeoutError):
            self.is_fetching = True
            return []
        except _BROKER_ERRORS as error:
            self.is_fetching = False
            _log.warning("cannot fetch: %s", one_line(str(error) or type(error).__name__))
            await asyncio.sleep(_FETCH_PAUSE_S)
            return []
        self.is_fetching = True
        if self._batch_messages_max > 1:
            with contextlib.suppress(*_BROKER_ERRORS):
                messages += await self._subscription.fetch(self._batch_messages_max - 1, timeout=self._batch_seconds)
        return messages

    async def process(self, messages: Sequence[Msg]) -> bool:
        """Settle and acknowledge what can be; the rest is put back. False if a store was away, and nothing could be."""
        unforeseen: Exception | None = None
        kept: set[int] = set()
        try:
            async with _kept_alive(messages):
                kept = await self._park_hopeless(messages, await self._handle(messages))
        except _INFRASTRUCTURE as error:
            self._metrics.add("relay_batches_failed_total", type(error).__name__)
            _log.warning("batch of %d put back: %s: %s", len(messages), type(error).__name__, one_line(str(error)))
            await _each(messages, lambda message: message.nak(delay=self._away_s))
            self._away_s = min(2 * self._away_s, _AWAY_S_MAX)
            return False
        except Exception as error:  # noqa: BLE001 - logged; a loop that ended would settle nothing ever again
            self._metrics.add("relay_batches_failed_total", type(error).__name__)
            _log.error("a batch of %d failed in a way nobody foresaw", len(messages), exc_info=error)
            unforeseen = error
        if unforeseen is not None:
            await self._isolate(messages, unforeseen)
            return True
        self._away_s = self._retry_seconds
        await _each([one for position, one in enumerate(messages) if position not in kept], lambda one: one.ack())
        await _each([messages[position] for position in sorted(kept)], self._put_back)
        return True

    async def _isolate(self, messages: Sequence[Msg], error: Exception) -> None:
        """One by one: who fails alone is parked after bounded tries, the others go on."""
        if len(messages) > 1:
            for message in messages:
                await self.process([message])
            return
        (message,) = messages
        trouble = Trouble(message.data, "poison", f"{type(error).__name__}: {error}")
        try:
            kept = await self._park_hopeless(messages, {0: [trouble]})
        except _BROKER_ERRORS:
            kept = {0}
        await _each(messages, self._put_back if kept else lambda one: one.ack())

    async def _park_hopeless(self, messages: Sequence[Msg], troubles: Troubles) -> set[int]:
        """Park what has been tried enough; the positions of messages that must come again."""
        kept = set()
        for position, found in troubles.items():
            metadata = messages[position].metadata
            age_s = (clock.utc_now() - metadata.timestamp).total_seconds()
            if not all(is_hopeless(one, deliveries=metadata.num_delivered, age_s=age_s) for one in found):
                _log.warning("put back, delivery %d: %s", metadata.num_delivered, one_line(found[0].reason))
                kept.add(position)
                continue
            for one in found:
                subject, sequence = self._handle.dlq_subject, metadata.sequence.stream
                await park(self._jetstream, self._metrics, subject, one.payload, one.reason, sequence=sequence)
                failpoints.reach("parked")
        return kept

    async def _put_back(self, message: Msg) -> None:
        delay_s = self._retry_seconds * 2 ** min(message.metadata.num_delivered - 1, 10)
        await message.nak(delay=min(delay_s, _RETRY_S_MAX))


class UsageHandler:
    """What to do with messages of USAGE."""

    dlq_subject = subjects.DLQ_USAGE

    def __init__(
        self, ledger: UsageArchive, debits: Debits, books: Books, marks: Marks, hours: Hours, metrics: Metrics
    ) -> None:
        self._ledger = ledger
        self._books = books
        self._hours = hours
        self._debits = debits
        self._marks = marks
        self._metrics = metrics

    async def __call__(self, messages: Sequence[Msg]) -> Troubles:
        """Settle every event of every message that can be settled, and note in each partition how far the log is settled.

        Counts of refusals go to the archive after that.
        """
        troubles: dict[int, list[Trouble]] = defaultdict(list)
        owners: list[int] = []
        batch: list[events.UsageRecorded] = []
        refused: dict[int, bytes] = {}
        for position, message in enumerate(messages):
            if subjects.is_refused(message.subject):
                refused[position] = message.data
                continue
            try:
                decoded = events.decode_usage(message.data)
            except _UNREADABLE as error:
                troubles[position].append(Trouble(message.data, "poison", f"cannot be decoded: {error}"))
                continue
            batch += decoded
            owners += [position] * len(decoded)
        await self._books.learn(event.price_book_version for event in batch)
        for one in await settlement.settle_batch(batch, self._ledger, self._debits, self._metrics):
            payload = events.encode_usage([one.event])
            troubles[owners[one.position]].append(Trouble(payload, one.patience, one.reason))
        self._touch(batch)
        last = {
            ids.partition(event.account_id): messages[owner].metadata.sequence.stream
            for event, owner in zip(batch, owners, strict=True)
        }
        await asyncio.gather(*(self._marks.mark(number, usage_sequence=at) for number, at in last.items()))
        failpoints.reach("marked")
        if refused:
            troubles |= await refusals.archive(refused, self._ledger)
        return troubles

    def _touch(self, batch: Sequence[events.UsageRecorded]) -> None:
        for event in batch:
            with contextlib.suppress(ValueError):  # an id that is none: its event is parked
                self._hours.touched(event.account_id, ids.id_time_ms(event.request_id))


class ControlHandler:
    """What to do with messages of CONTROL."""

    dlq_subject = subjects.DLQ_CONTROL

    def __init__(self, targets: ControlBatch, marks: Marks, metrics: Metrics) -> None:
        self._targets = targets
        self._marks = marks
        self._metrics = metrics

    async def __call__(self, messages: Sequence[Msg]) -> Troubles:
        """Archive and apply, in stream order, every change that can be applied."""
        troubles: dict[int, list[Trouble]] = defaultdict(list)
        changes = []
        for position, message in enumerate(messages):
            try:
                event = events.decode_control(message.data)
            except _UNREADABLE as error:
                troubles[position].append(Trouble(message.data, "poison", f"cannot be decoded: {error}"))
                continue
            sequence, sha256 = message.metadata.sequence.stream, events.payload_sha256(message.data)
            changes.append(Change(position, sequence, event, sha256))
        for one in await apply_control(changes, self._targets, self._metrics):
            payload = events.encode_control(one.event)
            troubles[one.position].append(Trouble(payload, one.patience, one.reason))
        if changes:  # every partition hears of it: rewinding one must not have to read all that concerned others
            at = max(change.sequence for change in changes)
            await asyncio.gather(*(self._marks.mark(number, control_sequence=at) for number in range(ids.PARTITIONS)))
        failpoints.reach("marked")
        return troubles


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
        failpoints.reach("acknowledged_some")
        with contextlib.suppress(*_BROKER_ERRORS):
            await call(message)


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
