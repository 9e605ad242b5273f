"""Events on their way to JetStream: none is lost, none is published under two ids, whatever the server answers."""

import asyncio

import nats.errors
import pytest
from nats.js.api import PubAck
from nats.js.errors import ServerError

from libs.common import events, ids, subjects
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from services.gateway.meter import UNREADABLE_USAGE
from services.gateway.publisher import Publisher
from tests.unit.accounting.samples import recorded


class Log:
    """JetStream, as far as a publisher sees it: fails as often as told, then keeps what comes."""

    def __init__(self, *failures: Exception, hold: asyncio.Event | None = None) -> None:
        self.messages: list[tuple[str, bytes, str]] = []
        self.tried: list[str] = []
        self._failures = list(failures)
        self._hold = hold

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        assert stream == subjects.STREAM_USAGE
        assert headers is not None
        self.tried.append(headers["Nats-Msg-Id"])
        if self._hold is not None:
            await self._hold.wait()
        if self._failures:
            raise self._failures.pop(0)
        self.messages.append((subject, payload, headers["Nats-Msg-Id"]))
        return PubAck(stream=subjects.STREAM_USAGE, seq=len(self.messages))

    @property
    def events(self) -> list[UsageRecorded]:
        return [event for _, payload, _ in self.messages for event in events.decode_usage(payload)]


@pytest.mark.anyio
async def test_an_event_reaches_its_accounts_subject() -> None:
    log = Log()
    publisher = Publisher(log, Metrics(), unpublished_max=10)
    event = recorded()
    publisher.record(event)
    assert await publisher.flush(5) == 0
    ((subject, _, message_id),) = log.messages
    assert subject == subjects.usage_subject(ids.partition("acct_1"))
    assert log.events == [event]
    assert message_id == events.message_id([event])


@pytest.mark.anyio
async def test_whatever_fails_is_repeated_under_the_same_id() -> None:
    log = Log(nats.errors.TimeoutError(), ServerError(code=503), nats.errors.OutboundBufferLimitError(), OSError())
    metrics = Metrics()
    publisher = Publisher(log, metrics, unpublished_max=10)
    event = recorded()
    publisher.record(event)
    assert await publisher.flush(10) == 0
    assert log.events == [event]
    assert len(log.tried) == 5
    assert len(set(log.tried)) == 1
    assert metrics.value("relay_publish_failures_total") == 4
    assert metrics.value("relay_events_published_total") == 1


@pytest.mark.anyio
async def test_events_that_wait_travel_together_by_partition_and_in_order() -> None:
    hold = asyncio.Event()
    log = Log(hold=hold)
    publisher = Publisher(log, Metrics(), unpublished_max=10_000)
    sent = [recorded(f"acct_{number % 40}") for number in range(2_000)]
    for event in sent:
        publisher.record(event)
    await asyncio.sleep(0)
    hold.set()
    assert await publisher.flush(10) == 0
    assert len(log.messages) < 200
    assert sorted(event.request_id for event in log.events) == sorted(event.request_id for event in sent)
    for subject, payload, _ in log.messages:
        batch = events.decode_usage(payload)
        assert {subjects.usage_subject(ids.partition(event.account_id)) for event in batch} == {subject}
    for account in {event.account_id for event in sent}:
        wanted = [event.request_id for event in sent if event.account_id == account]
        assert [event.request_id for event in log.events if event.account_id == account] == wanted


@pytest.mark.anyio
async def test_a_message_stays_below_what_the_server_takes() -> None:
    hold = asyncio.Event()
    log = Log(hold=hold)
    publisher = Publisher(log, Metrics(), unpublished_max=1000)
    large = {"input_tokens": 1, "iterations": [{"type": "message", "output_tokens": 1}] * 500}
    sent = [recorded(usage=large) for _ in range(100)] + [recorded(usage={"odd": "x" * 2_000_000})]
    for event in sent:
        publisher.record(event)
    await asyncio.sleep(0)
    hold.set()
    assert await publisher.flush(10) == 0
    assert [event.request_id for event in log.events] == [event.request_id for event in sent]
    sizes = [len(payload) for _, payload, _ in log.messages]
    assert max(sizes) < 600_000
    assert len(sizes) > 3
    assert log.events[-1].usage == {
        UNREADABLE_USAGE: 1
    }  # larger than a message by itself: it is parked, and stops nobody
    assert log.events[0].usage == large


@pytest.mark.anyio
async def test_full_means_no_more_admission_and_still_no_loss() -> None:
    hold = asyncio.Event()
    log = Log(hold=hold)
    publisher = Publisher(log, Metrics(), unpublished_max=2)
    for _ in range(3):
        assert publisher.is_full is (publisher._unpublished >= 2)
        publisher.record(recorded())
    assert publisher.is_full
    assert await publisher.flush(0.01) == 3
    hold.set()
    assert await publisher.flush(5) == 0
    assert not publisher.is_full
    assert len(log.events) == 3
