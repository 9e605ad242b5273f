"""Disks that are full: nothing is acknowledged that is not kept, nothing is dropped, and all goes on when there is room again.

Needs root, to mount. Where CI is set that is required; elsewhere these tests are reported as skipped.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.js.client import JetStreamContext

from libs.common import events, ids, streams, subjects
from libs.common.metrics import Metrics
from libs.localstack.process import free_port
from libs.localstack.stores import start_clickhouse, start_nats
from services.accounting.ledger import Ledger, LedgerUnavailable
from services.accounting.migrate import migrate
from services.accounting.settlement import price_batch
from services.gateway.publisher import Publisher
from services.gateway.recovery import recover
from services.gateway.spool import Spool
from tests.chaos.disks import full, need_mounts, small_disk
from tests.unit.accounting.samples import recorded

pytestmark = pytest.mark.anyio
MB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    need_mounts()
    with small_disk(tmp_path, size_mb=192) as path:
        yield path


async def test_a_spool_on_a_full_disk_refuses_and_drops_nothing(small: Path) -> None:
    spool = Spool(small / "spool", Metrics(), bytes_max=16 * MB)  # segments of one megabyte
    spool.begin([])
    names = []
    with full(small):
        while not spool.is_full:  # what was reserved is still there to be used
            names.append(_noted(spool))
            await asyncio.sleep(0)
            assert len(names) < 20_000
        names += [_noted(spool) for _ in range(3_000)]  # of requests that were under way: beyond all that was reserved
        await asyncio.sleep(0.1)
        assert spool.is_full
    async with asyncio.timeout(10):
        while spool.is_full:
            await asyncio.sleep(0.05)
    names.append(_noted(spool))
    await spool.aclose()
    again = Spool(small / "spool", Metrics(), bytes_max=16 * MB)
    found = recover(again, Metrics())
    assert [request_id for request_id, _, _ in found] == names
    await again.aclose()


def _noted(spool: Spool) -> str:
    event = recorded()
    spool.close(event.request_id, ids.partition(event.account_id), events.encode_event(event))
    return event.request_id


async def test_a_log_on_a_full_disk_loses_no_event(small: Path, tmp_path: Path) -> None:
    """It shows as time-outs only, and NATS needs a restart when there is room again; gateways keep what it does not take."""
    port = free_port()
    process = start_nats(small / "nats", tmp_path / "logs", port=port)
    spool = Spool(tmp_path / "spool", Metrics(), bytes_max=64 * MB)
    spool.begin([])
    broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
    try:
        await streams.create(broker.jetstream(), replicas=1, bytes_max=32 * MB)
        publisher = Publisher(broker.jetstream(), Metrics(), spool, is_connected=lambda: broker.is_connected)
        sent = [recorded(f"acct_{number % 50}") for number in range(3_000)]
        for event in sent[:1_000]:
            publisher.record(event)
        assert await publisher.flush(20) == 0
        with full(small):
            for event in sent[1_000:]:
                publisher.record(event)
                await asyncio.sleep(0)
            assert await publisher.flush(4) > 0
        os.kill(process.pid, signal.SIGKILL)
        process.stop()
        process = start_nats(small / "nats", tmp_path / "logs", port=port)
        assert await publisher.flush(30) == 0
        assert await _stored(broker.jetstream()) == {event.request_id for event in sent}
        await spool.aclose()
    finally:
        await streams.close(broker)
        process.stop()


async def _stored(jetstream: JetStreamContext) -> set[str]:
    state = (await jetstream.stream_info(subjects.STREAM_USAGE)).state
    found = set()
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await jetstream.get_msg(subjects.STREAM_USAGE, sequence)
        found |= {event.request_id for event in events.decode_usage(message.data or b"[]")}
    return found


async def test_an_archive_on_a_full_disk_says_so_and_takes_all_later(small: Path, tmp_path: Path) -> None:
    port = free_port()
    process = start_clickhouse(small / "clickhouse", tmp_path / "logs", port=port)
    ledger = await Ledger.open(f"http://127.0.0.1:{port}/relay")
    try:
        await migrate(ledger)
        taken, refused = 0, 0
        batches = [price_batch([recorded("acct_full", usage=_large()) for _ in range(200)])[0] for _ in range(6)]
        await ledger.append_usage([entry.row for entry in batches[0]])
        with full(small):
            for batch in batches:
                with contextlib.suppress(LedgerUnavailable):
                    await ledger.append_usage([entry.row for entry in batch])
                    taken += 1
                    continue
                refused += 1
        assert refused, f"{taken} batches went onto a full disk"
        for batch in batches:  # delivered again, as nothing was acknowledged
            await ledger.append_usage([entry.row for entry in batch])
        ((count,),) = await ledger.query("SELECT count() FROM usage FINAL WHERE account_id = 'acct_full'")
        assert count == 1_200
    finally:
        await ledger.close()
        process.stop()


def _large() -> dict[str, object]:
    return {"input_tokens": 1, "iterations": [{"type": "message", "output_tokens": 1, "x": ids.uuid7_hex()}] * 20}
