"""The consumer: who is acknowledged, who comes again and when, who is parked; and that nobody holds up the others."""

import asyncio
import contextlib
import json
from collections.abc import Sequence

import pytest
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.client import JetStreamContext

from libs.common import events, subjects
from libs.common.balances import Settlement, SettleResult
from libs.common.metrics import Metrics
from libs.common.scripts import StoreUnavailable
from services.accounting import consumer as consumer_module
from services.accounting.consumer import Consumer, ControlHandler, Handler, Troubles, UsageHandler
from services.accounting.control import ControlBatch
from tests.contract.fakes import MemoryBalances, MemoryBooks, MemoryHours, MemoryLedger, MemoryMarks
from tests.unit.accounting.samples import Wire, account, changed, credit, delivered, recorded, with_accounts
from tests.unit.accounting.test_control import Applied
from tests.unit.accounting.test_parking import DAY_S, Dlq

pytestmark = pytest.mark.anyio


class Rig:
    """A consumer whose messages come from here and whose acknowledgements end here."""

    def __init__(self, handler: Handler | None = None, balances: MemoryBalances | None = None) -> None:
        self.wire, self.dlq, self.metrics, self.ledger = Wire(), Dlq(), Metrics(), MemoryLedger()
        self.balances = balances or with_accounts("acct_1")
        self.marks, self.hours = MemoryMarks(), MemoryHours()
        subscription = JetStreamContext.PullSubscription.__new__(JetStreamContext.PullSubscription)
        self.consumer = Consumer(
            self.dlq,
            subscription,
            handler or UsageHandler(self.ledger, self.balances, MemoryBooks(), self.marks, self.hours, self.metrics),
            self.metrics,
            batch_messages_max=10,
            batch_seconds=0.1,
            retry_seconds=2,
        )

    def message(self, payload: bytes, **how: float) -> Msg:
        return delivered(self.wire, payload, **how)  # type: ignore[arg-type]

    async def process(self, *messages: Msg) -> list[str]:
        """What became of each, once: `ack` or `nak 2.0`."""
        await self.consumer.process(messages)
        return [self._became(message) for message in messages]

    def _became(self, message: Msg) -> str:
        (answer,) = self.wire.answers_to(message)
        if not answer:
            return "ack"
        word, _, options = answer.decode().partition(" ")
        assert word == "-NAK"
        return f"nak {json.loads(options)['delay'] / 1e9}"

    @property
    def parked(self) -> list[tuple[str, bytes]]:
        return [(subject, payload) for subject, payload, _ in self.dlq.messages.values()]


def usage(*sent: events.UsageRecorded) -> bytes:
    return events.encode_usage(sent)


async def test_what_is_settled_is_acknowledged() -> None:
    rig = Rig()
    messages = [rig.message(usage(recorded(), recorded()), sequence=1), rig.message(usage(recorded()), sequence=2)]
    assert await rig.process(*messages) == ["ack", "ack"]
    assert len(rig.ledger.usage) == 3


async def test_an_unknown_account_keeps_its_own_message_and_no_other() -> None:
    rig = Rig()
    mixed = rig.message(usage(recorded("acct_1"), recorded("acct_2")), sequence=1)
    assert await rig.process(mixed, rig.message(usage(recorded()), sequence=2)) == ["nak 2.0", "ack"]
    assert rig.balances.accounts["acct_1"].spent == 6_000
    assert rig.parked == []


@pytest.mark.parametrize(("deliveries", "delay"), [(1, 2.0), (2, 4.0), (4, 16.0), (9, 60.0), (2000, 60.0)])
async def test_it_comes_again_later_and_later(deliveries: int, delay: float) -> None:
    rig = Rig()
    message = rig.message(usage(recorded("acct_2")), deliveries=deliveries)
    assert await rig.process(message) == [f"nak {delay}"]


async def test_an_account_that_stays_unknown_parks_its_events_alone() -> None:
    rig = Rig()
    lost = recorded("acct_2")
    mixed = rig.message(usage(recorded("acct_1"), lost), deliveries=5, age_s=DAY_S + 1)
    assert await rig.process(mixed) == ["ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, usage(lost))]
    assert rig.balances.accounts["acct_1"].spent == 3_000


@pytest.mark.parametrize("payload", [b"", b"\xff", b"{}", b"[[[[", b'[{"request_id":1}]', b"[" * 100_000])
async def test_what_cannot_be_decoded_is_parked_after_bounded_tries(payload: bytes) -> None:
    rig = Rig()
    good = rig.message(usage(recorded()), sequence=2)
    assert await rig.process(rig.message(payload, deliveries=4), good) == ["nak 16.0", "ack"]
    assert rig.parked == []
    assert await rig.process(rig.message(payload, deliveries=5)) == ["ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, payload)]


async def test_what_cannot_be_priced_is_parked_without_its_neighbours() -> None:
    rig = Rig()
    poison = recorded(model_answered="claude-unheard-of")
    assert await rig.process(rig.message(usage(recorded(), poison), deliveries=7)) == ["ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, usage(poison))]
    assert len(rig.ledger.usage) == 1


class Away(MemoryBalances):
    async def settle(self, settlement: Settlement) -> SettleResult:
        raise StoreUnavailable("away")


async def test_a_store_that_is_away_puts_everything_back() -> None:
    rig = Rig(balances=Away())
    messages = [rig.message(usage(recorded()), sequence=number, deliveries=99, age_s=9e9) for number in (1, 2)]
    assert not await rig.consumer.process(messages)
    assert [rig._became(message) for message in messages] == ["nak 2.0", "nak 2.0"]
    later = [rig.message(usage(recorded()), sequence=number) for number in (3, 4, 5)]
    assert [(await rig.process(message))[0] for message in later] == ["nak 4.0", "nak 5.0", "nak 5.0"]
    assert rig.parked == []
    assert rig.metrics.value("relay_batches_failed_total", "StoreUnavailable") == 4


class Odd:
    """Fails in a way nobody foresaw when a message says so."""

    dlq_subject = subjects.DLQ_USAGE

    async def __call__(self, messages: Sequence[Msg]) -> Troubles:
        if any(message.data == b"odd" for message in messages):
            raise KeyError("odd")
        return {}


async def test_what_nobody_foresaw_is_found_and_parked_alone() -> None:
    rig = Rig(Odd())
    payloads = [b"fine", b"odd", b"fine"]
    messages = [rig.message(payload, sequence=number) for number, payload in enumerate(payloads, 1)]
    assert await rig.process(*messages) == ["ack", "nak 2.0", "ack"]
    assert rig.parked == []
    assert await rig.process(rig.message(b"odd", deliveries=5), rig.message(b"fine", sequence=9)) == ["ack", "ack"]
    assert rig.parked == [(subjects.DLQ_USAGE, b"odd")]


class Subscription:
    """Hands out what it is told, one fetch after another, then nothing."""

    def __init__(self, *fetched: list[Msg] | Exception) -> None:
        self.fetched = list(fetched)
        self.asked: list[int] = []

    async def fetch(self, batch: int, timeout: float) -> list[Msg]:
        self.asked.append(batch)
        found = self.fetched.pop(0) if self.fetched else TimeoutError()
        if isinstance(found, Exception):
            await asyncio.sleep(0)
            raise found
        return found


async def test_the_loop_outlives_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_FETCH_PAUSE_S", 0.01)
    rig, stopping, ready = Rig(), asyncio.Event(), []
    first, second = rig.message(usage(recorded()), sequence=1), rig.message(usage(recorded()), sequence=2)
    subscription = Subscription(NoRespondersError(), ConnectionResetError(), TimeoutError(), [first], [second])
    rig.consumer._subscription = subscription  # type: ignore[assignment]

    async def watch() -> None:
        while len(rig.ledger.usage) < 2:
            ready.append(rig.consumer.is_fetching)
            await asyncio.sleep(0)
        stopping.set()

    async with asyncio.timeout(10):
        await asyncio.gather(rig.consumer.run(stopping), watch())
    assert rig.consumer.is_fetching
    assert False in ready
    assert subscription.asked[:5] == [1, 1, 1, 1, 9]
    assert [rig._became(message) for message in (first, second)] == ["ack", "ack"]


async def test_a_cancellation_that_the_client_of_nats_has_lost_ends_the_loop_all_the_same() -> None:
    """Python 3.11's `wait_for` returns its result instead of raising when both come at once."""

    class Deaf(Subscription):
        async def fetch(self, batch: int, timeout: float) -> list[Msg]:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
            return []

    rig = Rig()
    rig.consumer._subscription = Deaf()  # type: ignore[assignment]
    stopping = asyncio.Event()
    running = asyncio.create_task(rig.consumer.run(stopping))
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=2)
    stopping.set()
    assert running.cancelled()


async def test_a_long_batch_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "_IN_PROGRESS_EVERY_S", 0.001)

    class Slow(Odd):
        async def __call__(self, messages: Sequence[Msg]) -> Troubles:
            while len(rig.wire.published) < 4:
                await asyncio.sleep(0)
            return {}

    rig = Rig(Slow())
    messages = [rig.message(b"fine", sequence=number) for number in (1, 2)]
    async with asyncio.timeout(10):
        await rig.consumer.process(messages)
    for message in messages:
        *alive, done = rig.wire.answers_to(message)
        assert set(alive) == {b"+WPI"}
        assert done == b""


async def test_a_dlq_that_does_not_answer_keeps_what_was_to_be_parked() -> None:
    rig = Rig()

    async def publish(*_: object, **__: object) -> None:
        raise TimeoutError

    rig.dlq.publish = publish  # type: ignore[method-assign, assignment]
    assert await rig.process(rig.message(b"poison", deliveries=5)) == ["nak 2.0"]


async def test_control_messages() -> None:
    ledger, directory, metrics = MemoryLedger(), Applied(), Metrics()
    rig = Rig(ControlHandler(ControlBatch(ledger, directory), MemoryMarks(), metrics))
    sent = [changed(credit("acct_2")), changed(account()), changed(credit())]
    messages = [rig.message(events.encode_control(one), sequence=number) for number, one in enumerate(sent, 1)]
    messages.append(rig.message(b"poison", sequence=9, deliveries=5))
    assert await rig.process(*messages) == ["nak 2.0", "ack", "ack", "ack"]
    assert rig.parked == [(subjects.DLQ_CONTROL, b"poison")]
    assert directory.balances.accounts["acct_1"].balance == 10**9
