"""The reaper against leases and a log made of lists: what it publishes, when it waits, and what it does with trouble."""

import asyncio
from typing import Any

import nats.errors
import pytest
from nats.js.api import PubAck

from libs.common import events, ids, subjects
from libs.common.events import UsageRecorded
from libs.common.leases import Expired
from libs.common.metrics import Metrics
from libs.common.scripts import StoreUnavailable
from services.accounting.reaper import Reaper, event_of
from tests.unit.accounting.samples import recorded

pytestmark = pytest.mark.anyio


def memo(**changes: Any) -> UsageRecorded:
    fields: dict[str, Any] = {"outcome": "expired", "version": 1, "status": 0, "multiplier_ppm": 0, "tokens": 77}
    return recorded(**({"account_id": ids.new_account_id()} | fields | changes))


def expired(event: UsageRecorded, **changes: Any) -> Expired:
    fields: dict[str, Any] = {
        "account_id": event.account_id,
        "member_id": "memb_1",
        "request_id": event.request_id,
        "hold_nanos": 5,
        "multiplier_ppm": 1_250_000,
        "memo": events.encode_event(event),
    }
    return Expired(**(fields | changes))


class ToldLeases:
    """Gives each lease once; can be away."""

    def __init__(self, *leases: Expired) -> None:
        self.leases = list(leases)
        self.away = False
        self.asked = 0

    async def reap(self, partition: int, *, grace_ms: int, count: int) -> list[Expired]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        found = [one for one in self.leases if ids.partition(one.account_id) == partition][:count]
        self.leases = [one for one in self.leases if one not in found]
        return found


class Log:
    """Takes messages; can be away."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, dict[str, str] | None]] = []
        self.away = False

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        assert stream == subjects.STREAM_USAGE
        if self.away:
            raise nats.errors.NoRespondersError
        self.messages.append((subject, payload, headers))
        return PubAck(stream="USAGE", seq=1)


async def test_a_lease_becomes_version_one_of_its_requests_event() -> None:
    event = memo()
    log, metrics = Log(), Metrics()
    assert await Reaper(ToldLeases(expired(event)), log, metrics, every_s=1).round() == 1
    ((subject, payload, headers),) = log.messages
    assert subject == subjects.usage_subject(ids.partition(event.account_id))
    (published,) = events.decode_usage(payload)
    assert headers == {"Nats-Msg-Id": events.message_id([published])}
    assert (published.version, published.outcome, published.usage["input_tokens"]) == (1, "expired", 77)
    assert (published.multiplier_ppm, published.member_id) == (1_250_000, "memb_1")
    assert metrics.value("relay_leases_reaped_total") == 1


async def test_two_workers_publish_the_same_bytes_under_the_same_id() -> None:
    lease = expired(memo())
    logs = [Log(), Log()]
    for log in logs:
        await Reaper(ToldLeases(lease), log, Metrics(), every_s=1).round()
    assert logs[0].messages == logs[1].messages


async def test_leases_of_one_partition_travel_together() -> None:
    first = memo()
    several = [first, *(memo(account_id=first.account_id) for _ in range(3))]
    log = Log()
    assert await Reaper(ToldLeases(*map(expired, several)), log, Metrics(), every_s=1).round() == 4
    ((_, payload, _),) = log.messages
    assert [event.request_id for event in events.decode_usage(payload)] == [event.request_id for event in several]


@pytest.mark.parametrize("kept", [b"", b"{}", b"\xff", events.encode_event(memo())])
async def test_a_lease_nobody_can_read_is_free_and_still_has_its_row(kept: bytes) -> None:
    lease = expired(memo(), memo=kept)
    event = event_of(lease)
    assert (event.request_id, event.account_id, event.version) == (lease.request_id, lease.account_id, 1)
    assert (event.outcome, event.usage) == ("free", {})


async def test_after_redis_was_away_gateways_get_time_to_renew() -> None:
    leases, log, stopping = ToldLeases(expired(memo())), Log(), asyncio.Event()
    leases.away = True
    reaper = Reaper(leases, log, Metrics(), every_s=0.01, patience_s=0.3)
    running = asyncio.ensure_future(reaper.run(stopping))
    await asyncio.sleep(0.05)
    leases.away = False
    await asyncio.sleep(0.2)
    assert log.messages == []
    await asyncio.sleep(0.3)
    assert len(log.messages) == 1
    stopping.set()
    await running


async def test_what_nobody_foresaw_does_not_end_the_loop() -> None:
    leases, log, stopping = ToldLeases(), Log(), asyncio.Event()
    leases.leases.append(expired(memo(), memo=None))
    running = asyncio.ensure_future(Reaper(leases, log, Metrics(), every_s=0.01).run(stopping))
    await asyncio.sleep(0.05)
    leases.leases.append(expired(memo()))
    await asyncio.sleep(0.05)
    assert len(log.messages) == 1
    stopping.set()
    await running


async def test_while_nats_is_away_it_goes_on_trying() -> None:
    leases, log, stopping = ToldLeases(), Log(), asyncio.Event()
    log.away = True
    running = asyncio.ensure_future(Reaper(leases, log, Metrics(), every_s=0.01).run(stopping))
    leases.leases.append(expired(memo()))
    await asyncio.sleep(0.05)
    log.away = False
    leases.leases.append(expired(memo()))
    await asyncio.sleep(0.05)
    assert len(log.messages) == 1
    stopping.set()
    await running
