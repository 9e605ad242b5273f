"""Counts of refusals: cumulative for a minute, told when it is over, kept while NATS is away, bounded."""

import asyncio

import nats.errors
import pytest
from nats.js.api import PubAck

from libs.common import clock, events, ids, subjects
from libs.common.metrics import Metrics
from services.gateway import refusal_counts
from services.gateway.refusal_counts import RefusalCounts

pytestmark = pytest.mark.anyio
MINUTE_MS = 60_000
START = 29_000_000
ACCOUNTS = [ids.new_account_id() for _ in range(40)]


class Log:
    """JetStream: fails as often as told, then keeps what comes."""

    def __init__(self, *failures: Exception) -> None:
        self.messages: list[tuple[str, bytes, str]] = []
        self.failures = list(failures)

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        assert stream == subjects.STREAM_USAGE and headers is not None
        self.messages.append((subject, payload, headers["Nats-Msg-Id"]))
        if self.failures:
            raise self.failures.pop(0)  # it may have been stored all the same
        return PubAck(stream=stream, seq=len(self.messages))

    @property
    def told(self) -> list[tuple[str, str, int, int]]:
        """Key, reason, minute after the start, how many."""
        counts = [one for _, payload, _ in self.messages for one in events.decode_refusals(payload)]
        return [(one.key_id, one.reason, one.minute - START, one.refused) for one in counts]


class Clock:
    """Minutes after the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.minutes = 0.0
        monkeypatch.setattr(clock, "unix_ms", lambda: int((START + self.minutes) * MINUTE_MS))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def counting(log: Log, metrics: Metrics | None = None, **how: object) -> RefusalCounts:
    members = {"key_m": "memb_1"}
    return RefusalCounts(log, metrics or Metrics(), member_of=lambda key_id: members.get(key_id, ""), **how)  # type: ignore[arg-type]


async def test_a_minute_is_told_when_it_is_over(time: Clock) -> None:
    log = Log()
    counts = counting(log)
    for key_id, reason in [("key_m", "budget")] * 3 + [("key_m", "model"), ("key_2", "budget")]:
        counts.count(ACCOUNTS[0], key_id, reason)
    time.minutes = 0.99
    await counts.publish()
    assert log.messages == []
    time.minutes = 1.0
    counts.count(ACCOUNTS[0], "key_2", "budget")
    await counts.publish()
    await counts.publish()
    assert log.told == [("key_2", "budget", 0, 1), ("key_m", "budget", 0, 3), ("key_m", "model", 0, 1)]
    ((subject, payload, message_id),) = log.messages
    assert subject == subjects.refused_subject(ids.partition(ACCOUNTS[0]))
    assert message_id == events.payload_id(payload)
    assert [one.member_id for one in events.decode_refusals(payload)] == ["", "memb_1", "memb_1"]
    assert len({one.gateway_id for one in events.decode_refusals(payload)}) == 1


async def test_a_message_is_of_one_partition_and_bounded(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_counts, "_MESSAGE_COUNTS_MAX", 3)
    log = Log()
    counts = counting(log)
    for number, account_id in enumerate(ACCOUNTS * 4):
        counts.count(account_id, f"key_{number}", "budget")
    time.minutes = 1
    await counts.publish()
    assert len(log.told) == 160
    for subject, payload, _ in log.messages:
        found = events.decode_refusals(payload)
        assert len(found) <= 3
        assert {subjects.refused_subject(ids.partition(one.account_id)) for one in found} == {subject}


async def test_what_is_not_acknowledged_is_told_again_in_the_same_words(time: Clock) -> None:
    log = Log(nats.errors.TimeoutError(), OSError())
    metrics = Metrics()
    counts = counting(log, metrics)
    counts.count(ACCOUNTS[0], "key_1", "budget")
    time.minutes = 1
    for _ in range(5):
        await counts.publish()
        counts.count(ACCOUNTS[0], "key_1", "requests")
    assert len(log.messages) == 3 and len(set(log.messages)) == 1
    assert metrics.value("relay_publish_failures_total") == 2


async def test_a_minute_that_was_told_is_never_added_to(time: Clock) -> None:
    """The clock is set back: what comes then counts as of the newest minute, or the row of the old one would shrink."""
    log = Log()
    counts = counting(log)
    counts.count(ACCOUNTS[0], "key_1", "budget")
    time.minutes = 1
    await counts.publish()
    time.minutes = 0.5
    counts.count(ACCOUNTS[0], "key_1", "budget")
    await counts.publish()
    assert log.told == [("key_1", "budget", 0, 1)]
    time.minutes = 2
    await counts.publish()
    assert log.told[1:] == [("key_1", "budget", 1, 1)]


async def test_memory_is_bounded_and_says_so(time: Clock) -> None:
    log, metrics = Log(), Metrics()
    counts = counting(log, metrics, counts_max=2)
    for key_id in ("key_1", "key_2", "key_3", "key_1", "key_4"):
        counts.count(ACCOUNTS[0], key_id, "budget")
    time.minutes = 1
    await counts.publish()
    assert log.told == [("key_1", "budget", 0, 2), ("key_2", "budget", 0, 1)]
    assert metrics.value("relay_refusals_uncounted_total", "full") == 2


async def test_nats_away_for_too_long(time: Clock) -> None:
    log, metrics, connected = Log(), Metrics(), False
    counts = counting(log, metrics, is_connected=lambda: connected)
    for minute in (0, 1):
        time.minutes = minute
        counts.count(ACCOUNTS[0], "key_1", "budget")
    time.minutes = 61
    await counts.publish()
    assert (log.messages, metrics.value("relay_refusals_uncounted_total", "unpublished")) == ([], 1)
    connected = True
    await counts.publish()
    assert log.told == [("key_1", "budget", 1, 1)]


async def test_at_the_end_all_is_told(time: Clock) -> None:
    log = Log()
    counts = counting(log)
    counts.count(ACCOUNTS[0], "key_1", "budget")
    await counts.close()
    assert log.told == [("key_1", "budget", 0, 1)]


async def test_the_end_does_not_wait_for_nats(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_counts, "_CLOSE_S", 0.01)

    class Silent(Log):
        async def publish(self, *_: object, **__: object) -> PubAck:
            await asyncio.Event().wait()
            raise AssertionError

    counts = counting(Silent())
    counts.count(ACCOUNTS[0], "key_1", "budget")
    async with asyncio.timeout(5):
        await counts.close()


async def test_it_looks_every_few_seconds(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_counts, "_EVERY_S", 0.001)
    log = Log()
    counts = counting(log)
    counts.count(ACCOUNTS[0], "key_1", "budget")
    time.minutes = 1
    running = asyncio.ensure_future(counts.run())
    async with asyncio.timeout(5):
        while not log.messages:
            await asyncio.sleep(0.001)
    running.cancel()
