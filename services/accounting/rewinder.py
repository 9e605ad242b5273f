"""After Redis was restarted or failed over, it may have forgotten the last it was told. The log has not.

1. **See** that a partition's gate was opened for another server. Admission is refused there from the first request on, by its own
   script; nobody has to close anything.
2. **Claim** it, so that other workers leave it to us. If we die, the claim ends in ten seconds; nothing rests on it.
3. **Apply** what CONTROL holds since some time before the last message this server remembers: an account it does not know could
   not be debited.
4. **Settle again** what USAGE holds since then. What the server had not forgotten is a duplicate to it. If we die here, or
   another worker does the same, nothing is changed by it.
5. **Open** the gate, if server and gate are still those of step 1; else all begins anew.

A partition without a gate has lost everything, and a few minutes of the log would not bring it back: it stays closed, and says
so, until an operator runs `rebuild`. In an installation younger than Redis's memory of settled events the whole log will do: it
is settled again from its beginning, which opens a new installation too.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from libs.common import clock, events, failpoints, ids, subjects
from libs.common.balances import CreditResult
from libs.common.events import Credit, Repair
from libs.common.gates import Gates, GateState
from libs.common.metrics import Metrics
from libs.common.scripts import StoreRefused, StoreUnavailable
from services.accounting import log
from services.accounting.control import Applier
from services.accounting.ledger import LedgerUnavailable
from services.accounting.log import BEGINNING
from services.accounting.settlement import REMEMBERED_S, Books, Debits, UsageLedger, settle_again

_log: Final = logging.getLogger("relay.rewind")
_EVERY_S: Final = 0.5
_CLAIM_S: Final = 10.0
_TOLD_EVERY_S: Final = 60.0
_TROUBLE: Final = (StoreUnavailable, LedgerUnavailable, nats.errors.Error, APIError, OSError, TimeoutError)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Archive(UsageLedger, Protocol):
    """What was archived."""

    async def has_credit(self, credit: Credit) -> bool:
        """Whether it was taken. Raises LedgerUnavailable."""


class Accounts(Debits, Protocol):
    """Where balances live."""

    async def take_again(self, credit: Credit) -> CreditResult:
        """Apply a credit that was taken before, whatever the balance is. Raises StoreUnavailable."""


class Rewinder:
    """See the module's docstring."""

    def __init__(
        self,
        gates: Gates,
        jetstream: JetStreamContext,
        ledger: Archive,
        debits: Accounts,
        directory: Applier,
        books: Books,
        metrics: Metrics,
        *,
        rewind_s: float,
    ) -> None:
        self._gates = gates
        self._jetstream = jetstream
        self._ledger = ledger
        self._debits = debits
        self._directory = directory
        self._books = books
        self._metrics = metrics
        self._rewind = timedelta(seconds=rewind_s)
        self._closed = 0
        self._who = secrets.token_hex(8)
        self._claimed_at = 0.0
        self._told: dict[str, float] = {}
        """What was said → when, in the loop's time."""
        metrics.gauge("relay_partitions_closed", lambda: self._closed)

    async def run(self, stopping: asyncio.Event) -> None:
        """Look twice a second, until told to stop."""
        while not stopping.is_set():
            try:
                await self.round()
            except _TROUBLE as error:
                self._tell(logging.WARNING, f"partitions are looked at again: {error or type(error).__name__}")
            except Exception as error:  # noqa: BLE001 - logged; a loop that ended would open nothing ever again
                self._tell(logging.ERROR, f"partitions could not be looked at: {type(error).__name__}", error)
            try:
                await asyncio.wait_for(stopping.wait(), _EVERY_S)
            except TimeoutError:
                continue

    async def round(self) -> int:
        """Look at all partitions once; how many were opened. Raises StoreUnavailable, LedgerUnavailable, errors of NATS."""
        states = await self._states()
        closed = {number: state for number, state in states.items() if not state.is_open}
        self._closed = ids.PARTITIONS - len(states) + len(closed)
        if not closed:
            return 0
        lost = {number: state for number, state in closed.items() if not state.opened_for}
        found = {number: state for number, state in closed.items() if state.opened_for}
        opened = 0
        if lost and await self._is_young():
            opened += await self._rewind_all(lost, BEGINNING, BEGINNING)
        elif lost:
            self._tell(
                logging.CRITICAL,
                f"Redis has lost {len(lost)} partitions (p{min(lost):02d} first): no request of their accounts is admitted until "
                "`python -m services.accounting rebuild` has restored them",
            )
        if found:
            control = await self._since(subjects.STREAM_CONTROL, found, lambda state: state.control_sequence)
            usage = await self._since(subjects.STREAM_USAGE, found, lambda state: state.usage_sequence)
            opened += await self._rewind_all(found, control, usage)
        return opened

    async def _states(self) -> dict[int, GateState]:
        """Of all partitions that answer; of a Cluster some may not. Raises StoreUnavailable if none does."""
        answers = await asyncio.gather(*map(self._gates.state, range(ids.PARTITIONS)), return_exceptions=True)
        states: dict[int, GateState] = {}
        for number, answer in enumerate(answers):
            if isinstance(answer, GateState):
                states[number] = answer
            elif not isinstance(answer, StoreUnavailable):
                raise answer
        if not states and isinstance(answers[0], StoreUnavailable):
            raise answers[0]
        return states

    async def _rewind_all(self, states: dict[int, GateState], control: datetime, usage: datetime) -> int:
        mine = {number: states[number] for number in await self._claim(states)}
        if not mine:
            return 0
        try:
            _log.warning("%d partitions are closed: this Redis may have forgotten something; settled again", len(mine))
            failpoints.reach("gate_closed")
            await self._settle_again(mine, control, usage)
            failpoints.reach("gate_rewound")
            return await self._open(mine)
        finally:
            with contextlib.suppress(StoreUnavailable):
                await self._claim(mine, for_s=0)

    async def _claim(self, numbers: Iterable[int], *, for_s: float = _CLAIM_S) -> list[int]:
        """Those that are ours."""
        self._claimed_at = asyncio.get_running_loop().time()
        wanted, for_ms = list(numbers), round(for_s * 1000)
        mine = await asyncio.gather(*(self._gates.claim(number, self._who, for_ms=for_ms) for number in wanted))
        return [number for number, is_mine in zip(wanted, mine, strict=True) if is_mine]

    async def _is_young(self) -> bool:
        """Whether the log still has all usage there ever was, and Redis would remember all of it as settled."""
        state = (await self._jetstream.stream_info(subjects.STREAM_USAGE)).state
        if state.last_seq == 0:
            return True
        if state.first_seq != 1:
            return False
        first = await self._jetstream.get_msg(subjects.STREAM_USAGE, 1)
        return first.time is not None and clock.utc_now() - first.time < timedelta(seconds=REMEMBERED_S)

    def _tell(self, level: int, text: str, error: Exception | None = None) -> None:
        """At most once a minute, as it is seen twice a second."""
        now = asyncio.get_running_loop().time()
        self._told = {text: at for text, at in self._told.items() if now - at < _TOLD_EVERY_S}
        if text not in self._told:
            self._told[text] = now
            _log.log(level, "%s", text, exc_info=error)

    async def _open(self, states: dict[int, GateState]) -> int:
        opened = await asyncio.gather(
            *(self._gates.open(number, one.run_id, opened_for=one.opened_for) for number, one in states.items())
        )
        self._closed -= sum(opened)
        self._metrics.add("relay_rewinds_total", amount=sum(opened))
        if any(opened):
            _log.warning("%d partitions are open", sum(opened))
        return sum(opened)

    async def _settle_again(self, states: dict[int, GateState], control: datetime, usage: datetime) -> None:
        is_whole = control == BEGINNING
        async for messages in log.read(self._jetstream, subjects.STREAM_CONTROL, "control.>", control):
            await self._keep_claim(states)
            for message in messages:
                await self._apply(message, is_whole=is_whole)
        async for messages in log.read(self._jetstream, subjects.STREAM_USAGE, subjects.USAGE_EVENTS, usage):
            await self._keep_claim(states)
            found = [event for message in messages for event in _usage_of(message, states)]
            await self._books.learn(event.price_book_version for event in found)
            await settle_again(found, self._ledger, self._debits, self._metrics)

    async def _keep_claim(self, states: dict[int, GateState]) -> None:
        if asyncio.get_running_loop().time() - self._claimed_at > _CLAIM_S / 3:
            await self._claim(states)

    async def _apply(self, message: Msg, *, is_whole: bool) -> None:
        try:
            event = events.decode_control(message.data)
            if is_whole and isinstance(event.entity, Repair):
                event = msgspec.structs.replace(event, entity=without_effect(event.entity))
            result = await self._directory.apply(event, message.metadata.sequence.stream)
            if result == "OVER" and isinstance(event.entity, Credit) and await self._ledger.has_credit(event.entity):
                await self._debits.take_again(event.entity)  # too much only until what was spent is debited again
        except _UNREADABLE:
            _log.debug("a change that cannot be read is passed over; it is parked")
        except StoreRefused as error:
            _log.warning("a change is passed over; its own delivery will tell: %s", error)

    async def _since(
        self, stream: str, states: dict[int, GateState], sequence_of: Callable[[GateState], int]
    ) -> datetime:
        """From when on to read. What one server remembers of any of its partitions, it remembers of all of them."""
        last: dict[str, int] = {}
        for state in states.values():
            last[state.run_id] = max(last.get(state.run_id, 0), sequence_of(state))
        return min([await self._time_of(stream, sequence) for sequence in last.values()])

    async def _time_of(self, stream: str, sequence: int) -> datetime:
        """Some time before the last message a server remembers, and not later than that long ago."""
        if not sequence:  # it was opened, and then it settled nothing, or forgot all of it
            return BEGINNING
        try:
            message = await self._jetstream.get_msg(stream, sequence)
        except NotFoundError:  # it is older than the stream
            return BEGINNING
        return min(clock.utc_now(), message.time or BEGINNING) - self._rewind


def without_effect(repair: Repair) -> Repair:
    """Made for numbers that are gone. It is noted all the same, so that it never counts again."""
    return msgspec.structs.replace(repair, balance_nanos=0, granted_nanos=0, spent_nanos=0, held_nanos=0)


def _usage_of(message: Msg, states: dict[int, GateState]) -> list[events.UsageRecorded]:
    """The events of a message that concern closed partitions; none if it cannot be read."""
    try:
        found = events.decode_usage(message.data)
    except _UNREADABLE:
        return []
    return [event for event in found if ids.partition(event.account_id) in states]
