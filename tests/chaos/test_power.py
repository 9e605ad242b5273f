"""The power goes, and what was acknowledged is there. With other settings it is not: the rig can tell one from the other.

Needs root, to mount. Where CI is set that is required; elsewhere these tests are reported as skipped.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.js.errors import APIError, NotFoundError

from libs.common import clock, events, ids, streams, subjects
from libs.common.metrics import Metrics
from libs.localstack.process import Process, ProcessFailed, free_port
from libs.localstack.stores import start_clickhouse, start_nats
from services.accounting.ledger import Ledger, LedgerUnavailable
from services.accounting.migrate import migrate
from services.accounting.settlement import price_batch
from services.gateway import recovery, syncing
from services.gateway.recovery import open_note
from services.gateway.spool import Spool
from tests.chaos.disks import Disk, disk, need_mounts
from tests.unit.accounting.samples import recorded

pytestmark = pytest.mark.anyio
MESSAGES = 400
BATCHES = 12
ROWS = 50


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Disk]:
    need_mounts()
    with disk(tmp_path) as made:
        yield made


def kill(process: Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.stop()


@pytest.mark.parametrize("sync", ["always", "2m"])
async def test_what_nats_has_acknowledged(mounted: Disk, tmp_path: Path, sync: str) -> None:
    directory, port = mounted.path / "nats", free_port()
    process = start_nats(directory, tmp_path / "logs", port=port, sync_interval=sync)
    try:
        broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
        await streams.create(broker.jetstream(), replicas=1, bytes_max=2**26)
        acknowledged = 0
        for _ in range(MESSAGES):
            await broker.jetstream().publish("usage.v1.p00", b"x" * 500, stream=subjects.STREAM_USAGE)
            acknowledged += 1
        mounted.cut_power()
    finally:
        kill(process)
    await streams.close(broker)
    mounted.come_back()
    found = await _messages(directory, tmp_path, port)
    if sync == "always":
        assert found == acknowledged
    else:
        assert found < acknowledged, "this rig cannot tell a durable setting from another"


async def _messages(directory: Path, tmp_path: Path, port: int) -> int:
    process = start_nats(directory, tmp_path / "logs", port=port)
    try:
        broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
        try:
            return int((await broker.jetstream().stream_info(subjects.STREAM_USAGE)).state.messages)
        except (NotFoundError, APIError, nats.errors.Error):
            return 0
        finally:
            await streams.close(broker)
    finally:
        process.stop()


@pytest.mark.parametrize("settings", ["ours", "default"])
async def test_what_clickhouse_has_taken(mounted: Disk, tmp_path: Path, settings: str) -> None:
    directory, port = mounted.path / "clickhouse", free_port()
    url = f"http://127.0.0.1:{port}/relay"
    process = start_clickhouse(directory, tmp_path / "logs", port=port)
    try:
        ledger = await Ledger.open(url)
        await migrate(ledger)
        if settings == "default":
            for name in ("fsync_after_insert", "fsync_part_directory", "min_rows_to_fsync_after_merge"):
                await ledger.run(f"ALTER TABLE usage MODIFY SETTING {name} = 0")
        os.sync()  # the tables themselves were made long ago
        taken = 0
        for _ in range(BATCHES):
            entries, _unsettled = price_batch([recorded("acct_power") for _ in range(ROWS)])
            await ledger.append_usage([entry.row for entry in entries])
            taken += ROWS
        await ledger.run("OPTIMIZE TABLE usage FINAL")  # merged parts must be on disk too
        mounted.cut_power()
        await ledger.close()
    finally:
        kill(process)
    mounted.come_back()
    found = await _rows(directory, tmp_path, port, url)
    if settings == "ours":
        assert found == taken
    else:
        assert found is None or found < taken, "this rig cannot tell a durable setting from another"


async def _rows(directory: Path, tmp_path: Path, port: int, url: str) -> int | None:
    """None: it does not even start, or read."""
    try:
        process = start_clickhouse(directory, tmp_path / "logs", port=port)
    except ProcessFailed:
        return None
    try:
        ledger = await Ledger.open(url)
        ((count,),) = await ledger.query("SELECT count() FROM usage FINAL WHERE account_id = 'acct_power'")
        await ledger.close()
        return int(count)
    except LedgerUnavailable:
        return None
    finally:
        process.stop()


@pytest.mark.parametrize("synced", [True, False])
async def test_what_the_spool_has_synced(
    mounted: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    if not synced:
        monkeypatch.setattr(os, "fdatasync", lambda _: None)
        monkeypatch.setattr(syncing, "_sync_directory", lambda _: None)
    directory = mounted.path / "spool"
    made = Spool(directory, Metrics(), bytes_max=2**24)
    made.begin([])
    noted: list[str] = []
    for _ in range(300):
        event = recorded()
        made.open(event.request_id, open_note("", 1_000_000, events.encode_event(event)))
        made.close(event.request_id, ids.partition(event.account_id), events.encode_event(event))
        noted.append(event.request_id)
        await asyncio.sleep(0)
    deadline = clock.unix_ms() + 5_000
    while made.synced < (1, made.bytes_used) and clock.unix_ms() < deadline:
        await asyncio.sleep(0.005)
    assert made.synced >= (1, made.bytes_used)
    mounted.cut_power()
    _forget(made)
    mounted.come_back()
    again = Spool(directory, Metrics(), bytes_max=2**24)
    found = {request_id for request_id, _, _ in recovery.recover(again, Metrics())}
    await again.aclose()
    if synced:
        assert found == set(noted)
    else:
        assert found < set(noted), "this rig cannot tell a durable spool from another"


def _forget(made: Spool) -> None:
    """As if its process had died: descriptors are closed, nothing is written any more."""
    made._syncer._work.put(None)
    made._syncer._thread.join()
    descriptors: list[Any] = [segment.descriptor for segment in made._segments.values()]
    assert made._reserved is not None
    for descriptor in (*descriptors, made._reserved[2], made._lock):
        os.close(descriptor)
