"""The thread that syncs: many records with one call, in order, and a failure that is not forgotten."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from services.gateway.syncing import Syncer

pytestmark = pytest.mark.anyio


async def synced(syncer: Syncer, wanted: tuple[int, int]) -> bool:
    for _ in range(500):
        if syncer.synced >= wanted:
            return True
        await asyncio.sleep(0.002)
    return False


def opened(directory: Path, name: str = "one") -> int:
    return os.open(directory / name, os.O_RDWR | os.O_CREAT)


async def test_many_wishes_are_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    syncer = Syncer(tmp_path)
    descriptor = opened(tmp_path)
    syncer.start()
    for size in range(1, 1_001):
        syncer.want(1, descriptor, size)
    assert await synced(syncer, (1, 1_000))
    assert len(calls) == 1
    await syncer.aclose()
    os.close(descriptor)


async def test_what_comes_while_the_disk_is_slow_is_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    go_on = threading.Event()

    def slow(descriptor: int) -> None:
        calls.append(descriptor)
        go_on.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    syncer = Syncer(tmp_path)
    descriptor = opened(tmp_path)
    syncer.start()
    for size in range(1, 51):
        syncer.want(1, descriptor, size)
        await asyncio.sleep(0.002)
    go_on.set()
    assert await synced(syncer, (1, 50))
    assert len(calls) <= 3
    await syncer.aclose()
    os.close(descriptor)


async def test_what_is_wanted_at_the_end_is_done(tmp_path: Path) -> None:
    syncer = Syncer(tmp_path)
    syncer.start()
    descriptor = opened(tmp_path)
    syncer.want_directory()
    syncer.want(1, descriptor, 10)
    syncer.want(2, descriptor, 20)
    await syncer.aclose()
    assert syncer.synced == (2, 20)
    os.close(descriptor)


async def test_a_segment_that_is_removed_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open for as long as it is worked on; what was not begun is left out."""
    begun, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        begun.set()
        go_on.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    syncer = Syncer(tmp_path)
    first, second = opened(tmp_path, "one"), opened(tmp_path, "two")
    syncer.start()
    syncer.want(1, first, 10)
    assert await asyncio.to_thread(begun.wait, 10)
    syncer.want(2, second, 20)
    syncer.forget(1, first)
    syncer.forget(2, second)
    go_on.set()
    await syncer.aclose()
    assert syncer.failed is None
    assert syncer.synced == (1, 10)
    for descriptor in (first, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


async def test_a_failure_stays(tmp_path: Path) -> None:
    syncer = Syncer(tmp_path)
    syncer.start()
    descriptor = opened(tmp_path)
    syncer.want(1, descriptor, 10)
    os.close(descriptor)
    await syncer.aclose()
    assert syncer.failed is not None
    assert syncer.synced == (0, 0)
