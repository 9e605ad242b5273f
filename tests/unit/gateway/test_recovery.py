"""What a dead process left: every event it had, an end for every request it had not ended, and the same again if we die too."""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common import events, ids
from libs.common.events import VERSION_EXPIRED, UsageRecorded
from libs.common.metrics import Metrics
from services.gateway import records
from services.gateway.recovery import event_of, open_note, recover, usage_note
from services.gateway.spool import Spool
from tests.unit.accounting.samples import recorded

pytestmark = pytest.mark.anyio
SIZE = 2**20
START = {"input_tokens": 11, "cache_read_input_tokens": 5, "output_tokens": 2}


def memo_of(event: UsageRecorded) -> bytes:
    return events.encode_event(
        events.UsageRecorded(
            request_id=event.request_id,
            version=VERSION_EXPIRED,
            account_id=event.account_id,
            key_id=event.key_id,
            path="/v1/messages",
            model_asked="claude-sonnet-4-6",
            model_answered="claude-sonnet-4-6",
            stream=True,
            status=0,
            outcome="expired",
            usage={"input_tokens": 123},
            price_book_version=event.price_book_version,
            multiplier_ppm=0,
        )
    )


def note(event: UsageRecorded) -> bytes:
    return open_note("memb_1", 1_250_000, memo_of(event))


def opened(directory: Path) -> Spool:
    spool = Spool(directory, Metrics(), bytes_max=SIZE)
    spool.begin([])
    return spool


async def die(spool: Spool) -> None:
    """As kill -9 does it: nothing is said any more, and the lock is free."""
    await asyncio.sleep(0)  # what the loop had in hand goes to the kernel in this very turn
    os.close(spool._lock)
    await spool._syncer.aclose()


def left_in(directory: Path, metrics: Metrics | None = None) -> tuple[Spool, dict[str, UsageRecorded]]:
    metrics = metrics or Metrics()
    spool = Spool(directory, metrics, bytes_max=SIZE)
    found = recover(spool, metrics)
    read = {request_id: events.decode_event(spool.read(place)) for request_id, _, place in found}
    assert len(read) == len(found)
    for request_id, partition, _ in found:
        assert partition == ids.partition(read[request_id].account_id)
    return spool, read


async def test_a_request_that_had_only_begun_costs_its_estimated_input(tmp_path: Path) -> None:
    spool, event = opened(tmp_path), recorded()
    spool.open(event.request_id, note(event))
    await die(spool)
    again, left = left_in(tmp_path)
    found = left[event.request_id]
    assert (found.version, found.outcome, found.usage) == (2, "expired", {"input_tokens": 123})
    assert (found.member_id, found.multiplier_ppm, found.status) == ("memb_1", 1_250_000, 0)
    await again.aclose()


async def test_a_stream_that_had_begun_costs_what_its_start_told(tmp_path: Path) -> None:
    spool, event = opened(tmp_path), recorded()
    spool.open(event.request_id, note(event))
    spool.usage(event.request_id, usage_note("claude-haiku-4-5-20251001", START))
    await die(spool)
    again, left = left_in(tmp_path)
    found = left[event.request_id]
    assert (found.version, found.outcome, found.usage, found.status) == (2, "partial", START, 200)
    assert found.model_answered == "claude-haiku-4-5-20251001"
    await again.aclose()


async def test_an_event_that_was_not_acknowledged_is_the_same_event(tmp_path: Path) -> None:
    spool, event, acknowledged = opened(tmp_path), recorded(), recorded()
    for one in (event, acknowledged):
        spool.open(one.request_id, note(one))
        place = spool.close(one.request_id, ids.partition(one.account_id), events.encode_event(one))
    spool.done([(acknowledged.request_id, place)])
    await die(spool)
    again, left = left_in(tmp_path)
    assert left == {event.request_id: event}
    await again.aclose()


async def test_dying_again_changes_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    for number in range(50):
        event = recorded()
        spool.open(event.request_id, note(event))
        if number % 2:
            spool.close(event.request_id, ids.partition(event.account_id), events.encode_event(event))
    await die(spool)
    again, first = left_in(tmp_path)
    await die(again)
    once_more, second = left_in(tmp_path)
    assert first == second
    assert len(first) == 50
    await once_more.aclose()


async def test_what_is_published_after_a_restart_is_gone_after_the_next(tmp_path: Path) -> None:
    spool, event = opened(tmp_path), recorded()
    spool.open(event.request_id, note(event))
    await die(spool)
    again = Spool(tmp_path, Metrics(), bytes_max=SIZE)
    ((request_id, _, place),) = recover(again, Metrics())
    again.done([(request_id, place)])
    await again.aclose()
    once_more, left = left_in(tmp_path)
    assert left == {}
    await once_more.aclose()
    assert not list(tmp_path.glob("*.spool"))


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_a_torn_end_is_told_of_and_stops_nothing(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    spool, event, torn = opened(tmp_path), recorded(), recorded()
    for one in (event, torn):
        spool.open(one.request_id, note(one))
        place = spool.close(one.request_id, ids.partition(one.account_id), events.encode_event(one))
    await die(spool)
    path = tmp_path / f"{place.segment:012d}.spool"
    text = path.read_bytes()
    path.write_bytes(text[: place.offset + place.length - cut])
    metrics = Metrics()
    again, left = left_in(tmp_path, metrics)
    assert left[event.request_id] == event
    assert left[torn.request_id].outcome == "expired"  # its OPEN is whole
    assert metrics.value("relay_spool_damaged_total") == 1
    assert "middle of a record" in caplog.text
    await again.aclose()


async def test_a_flipped_bit_is_told_of_and_costs_one_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool, hit, after = opened(tmp_path), recorded(), recorded()
    places = []
    for one in (hit, after):
        spool.open(one.request_id, note(one))
        places.append(spool.close(one.request_id, ids.partition(one.account_id), events.encode_event(one)))
    await die(spool)
    path = tmp_path / f"{places[0].segment:012d}.spool"
    text = bytearray(path.read_bytes())
    text[places[0].offset + 30] ^= 4
    path.write_bytes(text)
    again, left = left_in(tmp_path)
    assert (left[hit.request_id].outcome, left[hit.request_id].version) == ("expired", 2)
    assert left[after.request_id] == after
    assert "damaged" in caplog.text
    await again.aclose()


async def test_notes_that_cannot_be_read_leave_the_request_to_its_lease(tmp_path: Path) -> None:
    spool, event = opened(tmp_path), recorded()
    spool.open(ids.new_request_id(), b"no note of ours")
    spool.open(event.request_id, note(event))
    await die(spool)
    again, left = left_in(tmp_path)
    assert set(left) == {event.request_id}
    await again.aclose()


STEPS = st.lists(st.sampled_from(["open", "usage", "close", "done", "turn", "die"]), max_size=120)


class Model:
    """What must be found after a death, kept in a dictionary."""

    def __init__(self) -> None:
        self.open: dict[str, UsageRecorded] = {}
        self.told: set[str] = set()
        self.closed: dict[str, tuple[UsageRecorded, Any]] = {}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers())
def test_whatever_happens_nothing_is_lost_and_nothing_is_told_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    asyncio.run(_story(tmp_path_factory.mktemp("spool"), steps, random.Random(seed)))


async def _story(directory: Path, steps: list[str], chance: random.Random) -> None:
    spool, model = opened(directory), Model()
    for step in [*steps, "die"]:
        match step:
            case "open":
                event = recorded(usage={"input_tokens": chance.randrange(10**6), "x": "y" * chance.randrange(9_000)})
                spool.open(event.request_id, note(event))
                model.open[event.request_id] = event
            case "usage" if model.open:
                name = chance.choice(list(model.open))
                spool.usage(name, usage_note("claude-sonnet-4-6", START))
                model.told.add(name)
            case "close" if model.open:
                event = model.open.pop(chance.choice(list(model.open)))
                place = spool.close(event.request_id, ids.partition(event.account_id), events.encode_event(event))
                model.closed[event.request_id] = (event, place)
            case "done" if model.closed:
                names = chance.sample(list(model.closed), chance.randint(1, len(model.closed)))
                spool.done([(name, model.closed.pop(name)[1]) for name in names])
            case "turn":
                await asyncio.sleep(0)
            case "die":
                spool = await _died(spool, model)
    await spool.aclose()


async def _died(spool: Spool, model: Model) -> Spool:
    await die(spool)
    again = Spool(spool.directory, Metrics(), bytes_max=SIZE)
    found = recover(again, Metrics())
    read = {request_id: events.decode_event(again.read(place)) for request_id, _, place in found}
    wanted = {name: event for name, (event, _) in model.closed.items()}
    for name, event in model.open.items():
        wanted[name] = event_of(note(event), usage_note("claude-sonnet-4-6", START) if name in model.told else None)
    assert read == wanted
    model.open, model.told = {}, set()
    model.closed = {request_id: (read[request_id], place) for request_id, _, place in found}
    return again


def test_records_and_notes_agree_on_the_length_of_an_id() -> None:
    assert len(ids.new_request_id()) == records.ID_BYTES
