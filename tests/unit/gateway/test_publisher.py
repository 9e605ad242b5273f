"""Events on their way to JetStream: none is lost, none is published under two ids, whatever the server answers."""

import asyncio
from pathlib import Path

import nats.errors
import pytest
from nats.js.api import PubAck
from nats.js.errors import ServerError

from libs.common import events, ids, subjects
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from services.gateway.meter import UNREADABLE_USAGE
from services.gateway.publisher import Publisher
from services.gateway.recovery import recover
from services.gateway.spool import Place, Spool
from tests.unit.accounting.samples import recorded


@pytest.fixture
async def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path, Metrics(), bytes_max=2**26)
    made.begin([])
    return made


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
async def test_an_event_reaches_its_accounts_subject(spool: Spool) -> None:
    log = Log()
    publisher = Publisher(log, Metrics(), spool)
    event = recorded()
    publisher.record(event)
    assert await publisher.flush(5) == 0
    ((subject, _, message_id),) = log.messages
    assert subject == subjects.usage_subject(ids.partition("acct_1"))
    assert log.events == [event]
    assert message_id == events.payload_id(events.encode_usage([event]))


@pytest.mark.anyio
async def test_whatever_fails_is_repeated_under_the_same_id(spool: Spool) -> None:
    log = Log(nats.errors.TimeoutError(), ServerError(code=503), nats.errors.OutboundBufferLimitError(), OSError())
    metrics = Metrics()
    publisher = Publisher(log, metrics, spool)
    event = recorded()
    publisher.record(event)
    assert await publisher.flush(10) == 0
    assert log.events == [event]
    assert len(log.tried) == 5
    assert len(set(log.tried)) == 1
    assert metrics.value("relay_publish_failures_total") == 4
    assert metrics.value("relay_events_published_total") == 1


@pytest.mark.anyio
async def test_events_that_wait_travel_together_by_partition_and_in_order(spool: Spool) -> None:
    hold = asyncio.Event()
    log = Log(hold=hold)
    publisher = Publisher(log, Metrics(), spool)
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
async def test_a_message_stays_below_what_the_server_takes(spool: Spool) -> None:
    hold = asyncio.Event()
    log = Log(hold=hold)
    publisher = Publisher(log, Metrics(), spool)
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
async def test_what_waits_for_long_is_read_from_the_spool_when_its_turn_comes(spool: Spool) -> None:
    hold = asyncio.Event()
    log, metrics = Log(hold=hold), Metrics()
    publisher = Publisher(log, metrics, spool)
    sent = [recorded(f"acct_{number % 3}") for number in range(3_000)]
    for event in sent:
        publisher.record(event)
    assert metrics.value("relay_events_unpublished") == 3_000
    assert sum(one.event is not None for queued in publisher._waiting.values() for one in queued) <= 1_000
    assert await publisher.flush(0.01) == 3_000
    hold.set()
    assert await publisher.flush(20) == 0
    assert sorted(event.request_id for event in log.events) == sorted(event.request_id for event in sent)


@pytest.mark.anyio
async def test_what_is_acknowledged_is_not_published_after_a_restart_and_the_rest_is(
    spool: Spool, tmp_path: Path
) -> None:
    publisher = Publisher(Log(), Metrics(), spool)
    publisher.record(recorded())
    assert await publisher.flush(5) == 0
    stuck = Publisher(Log(hold=asyncio.Event()), Metrics(), spool)
    left = [recorded(f"acct_{number}") for number in range(30)]
    for event in left:
        stuck.record(event)
    await spool.aclose()
    again, log = Spool(tmp_path, Metrics(), bytes_max=2**26), Log()
    publisher = Publisher(log, Metrics(), again)
    publisher.resume(recover(again, Metrics()))
    assert await publisher.flush(5) == 0
    assert sorted(event.request_id for event in log.events) == sorted(event.request_id for event in left)
    await again.aclose()
    assert not list(tmp_path.glob("*.spool"))


@pytest.mark.anyio
async def test_before_the_first_connection_events_wait(spool: Spool) -> None:
    """nats-py 2.16 answers a publish with an AssertionError then."""
    connected: list[bool] = []
    log = Log()
    publisher = Publisher(log, Metrics(), spool, is_connected=lambda: bool(connected))
    publisher.record(recorded())
    assert await publisher.flush(0.05) == 1
    assert not log.tried
    connected.append(True)
    assert await publisher.flush(5) == 0


@pytest.mark.anyio
async def test_an_event_that_the_disk_has_lost_stops_no_other(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    log, metrics = Log(), Metrics()
    publisher = Publisher(log, metrics, spool)
    lost, kept = recorded("acct_1"), recorded("acct_1")
    found = []
    for event in (lost, kept):
        partition = ids.partition(event.account_id)
        place = spool.close(event.request_id, partition, events.encode_event(event))
        found.append((event.request_id, partition, place))
    await asyncio.sleep(0)
    found[0] = (*found[0][:2], Place(found[0][2].segment, 2**24, 100))
    publisher.resume(found)
    assert await publisher.flush(5) == 0
    assert log.events == [kept]
    assert metrics.value("relay_spool_failures_total") == 1


async def all_published(metrics: Metrics) -> bool:
    """Without telling the publisher to hurry, as `flush` does."""
    for _ in range(500):
        if not metrics.value("relay_events_unpublished"):
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.anyio
async def test_what_comes_within_some_milliseconds_is_one_message(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.publisher._GATHER_S", 0.2)
    log, metrics = Log(), Metrics()
    publisher = Publisher(log, metrics, spool)
    for round_ in (1, 2):
        for _ in range(20):
            publisher.record(recorded())
            await asyncio.sleep(0.001)
        assert len(log.messages) == round_ - 1
        assert await all_published(metrics)
        assert len(log.messages) == round_
    assert len(log.events) == 40


@pytest.mark.anyio
async def test_the_end_of_the_process_waits_for_nothing_more_to_come(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.publisher._GATHER_S", 60)
    log = Log()
    publisher = Publisher(log, Metrics(), spool)
    event = recorded()
    publisher.record(event)
    assert await publisher.flush(5) == 0
    assert log.events == [event]


@pytest.mark.anyio
async def test_what_had_to_wait_for_others_goes_as_soon_as_they_are_there(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.publisher._GATHER_S", 60)
    hold = asyncio.Event()
    log, metrics = Log(hold=hold), Metrics()
    publisher = Publisher(log, metrics, spool)
    sent = [recorded(f"acct_{number}") for number in range(80)]  # of more partitions than messages may be in flight
    for event in sent[:40]:
        publisher.record(event)
    assert await publisher.flush(0.01) == 40
    for event in sent[40:]:
        publisher.record(event)
    hold.set()
    assert await all_published(metrics)
    assert sorted(event.request_id for event in log.events) == sorted(event.request_id for event in sent)
