"""The spool on a real directory: what goes in comes out, old segments go, a full disk stops admission and drops nothing."""

import asyncio
import contextlib
import errno
import os
from pathlib import Path

import pytest

from libs.common import ids
from libs.common.config import ConfigError
from libs.common.metrics import Metrics
from services.gateway import recovery
from services.gateway.spool import Place, Spool

pytestmark = pytest.mark.anyio
SMALL = 2**20
"""Sixteen segments of 64 KiB."""
EVENT = b'{"n":1}' + b" " * 1000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, Metrics(), bytes_max=SMALL)


def segments(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.directory.glob("*.spool"))


def open_files(directory: Path) -> list[Path]:
    """Of this process, those that were removed included."""
    found: list[Path] = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            found.append(link.readlink())
    return [path for path in found if path.is_relative_to(directory)]


def ended(spool: Spool, *, note: bytes = b"note") -> tuple[str, Place]:
    request_id = ids.new_request_id()
    spool.open(request_id, note)
    return request_id, spool.close(request_id, 7, EVENT)


async def test_an_event_is_with_the_kernel_at_once(spool: Spool) -> None:
    """What its caller has read whole must not depend on the rest of a busy turn."""
    spool.begin([])
    _, place = ended(spool)
    (path,) = [path for path in spool.directory.glob("*.spool") if path.stat().st_size and EVENT in path.read_bytes()]
    assert spool.read(place) == EVENT
    spool.open(ids.new_request_id(), b"note of the next")  # this one may wait for the end of the turn
    assert b"note of the next" not in path.read_bytes()
    await asyncio.sleep(0)
    assert b"note of the next" in path.read_bytes()
    await spool.aclose()


async def test_what_is_acknowledged_makes_room(spool: Spool, tmp_path: Path) -> None:
    spool.begin([])
    for _ in range(3_000):  # three times what the spool holds
        spool.done([ended(spool)])
        assert not spool.is_full
    assert len(segments(spool)) <= 3
    await spool.aclose()
    assert len(segments(spool)) <= 1
    assert not open_files(tmp_path)


async def test_a_stream_that_runs_for_long_keeps_no_segment_but_its_notes(spool: Spool, tmp_path: Path) -> None:
    spool.begin([])
    long = [ids.new_request_id() for _ in range(20)]
    for request_id in long:
        spool.open(request_id, recovery.open_note("", 1_000_000, b"{}"))
        spool.usage(request_id, b"told")
    for _ in range(3_000):
        spool.done([ended(spool)])
    assert len(segments(spool)) <= 7
    assert not spool.is_full
    await asyncio.sleep(0)
    text = b"".join(path.read_bytes() for path in tmp_path.glob("*.spool"))
    assert all(request_id.encode() in text for request_id in long)
    places = [(request_id, spool.close(request_id, 1, EVENT)) for request_id in long]
    assert [spool.read(place) for _, place in places] == [EVENT] * len(long)
    await spool.aclose()
    assert not open_files(tmp_path)


async def test_a_full_spool_admits_nothing_and_keeps_everything(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    spool.begin([])
    places = []
    while not spool.is_full:
        places.append(ended(spool))
        assert len(places) < 2_000
    assert spool.full_ppm >= 950_000
    assert "80 %" in caplog.text
    more = [ended(spool) for _ in range(200)]  # of requests that were under way
    assert [spool.read(place) for _, place in places + more] == [EVENT] * (len(places) + 200)
    for one in places + more:
        spool.done([one])
    assert not spool.is_full
    await spool.aclose()


async def test_a_disk_that_is_full_stops_admission_until_it_is_not(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool.begin([])
    real, room = os.pwrite, [5_000]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, bytes(data[: room[0]]), offset)  # the last one is written in part
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr("services.gateway.spool._RETRY_S", 0.01)
    places = []
    for _ in range(20):
        places.append(ended(spool))
        await asyncio.sleep(0)
    assert spool.is_full
    assert "No space left" in caplog.text
    assert [spool.read(place) for _, place in places] == [EVENT] * 20
    room[0] = 10**9
    while spool.is_full:
        await asyncio.sleep(0.01)
    assert "can be written again" in caplog.text
    await spool.aclose()
    again = Spool(spool.directory, Metrics(), bytes_max=SMALL)
    found = recovery.recover(again, Metrics())
    assert {request_id for request_id, _, _ in found} == {request_id for request_id, _ in places}
    assert [again.read(place) for _, _, place in found] == [EVENT] * 20
    await again.aclose()


async def test_no_room_for_the_next_segment_is_known_while_this_one_has_some(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.begin([])

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.posix_fallocate
    monkeypatch.setattr("services.gateway.spool._RETRY_S", 0.01)
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    places = []
    while not spool.is_full:
        places.append(ended(spool))
        await asyncio.sleep(0)
    places += [ended(spool) for _ in range(10)]
    assert [spool.read(place) for _, place in places] == [EVENT] * len(places)
    monkeypatch.setattr(os, "posix_fallocate", real)
    while spool.is_full:
        await asyncio.sleep(0.01)
    await spool.aclose()


async def test_a_start_on_a_full_disk_publishes_what_is_left_and_admits_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.begin([])
    left = ended(spool)
    await spool.aclose()

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    again = Spool(spool.directory, Metrics(), bytes_max=SMALL)
    found = recovery.recover(again, Metrics())
    assert [request_id for request_id, _, _ in found] == [left[0]]
    assert again.read(found[0][2]) == EVENT
    assert again.is_full
    again.done([(found[0][0], found[0][2])])
    await again.aclose()


async def test_everything_reaches_the_disk_within_milliseconds(spool: Spool) -> None:
    spool.begin([])
    for _ in range(200):
        ended(spool)
        await asyncio.sleep(0)
    for _ in range(400):
        if spool.synced[1] and spool.synced[0] * SMALL + spool.synced[1] >= _end(spool):
            break
        await asyncio.sleep(0.005)
    else:
        raise AssertionError(f"synced up to {spool.synced} of {_end(spool)}")
    await spool.aclose()


def _end(spool: Spool) -> int:
    number = int(segments(spool)[-2].partition(".")[0])  # the last one is in reserve
    return number * SMALL + spool.bytes_used - spool._bytes_behind


async def test_a_disk_that_cannot_sync_stops_admission_for_good(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    spool.begin([])
    ended(spool)
    for _ in range(200):
        if spool.is_full:
            break
        await asyncio.sleep(0.005)
    assert spool.is_full
    assert "Input/output error" in caplog.text
    await spool.aclose()


async def test_two_processes_cannot_use_one_directory(spool: Spool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another gateway"):
        Spool(tmp_path, Metrics(), bytes_max=SMALL)
    spool.begin([])
    await spool.aclose()
    again = Spool(tmp_path, Metrics(), bytes_max=SMALL)
    again.begin([])
    await again.aclose()


async def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="RELAY_SPOOL_DIRECTORY"):
        Spool(tmp_path / "file" / "spool", Metrics(), bytes_max=SMALL)
