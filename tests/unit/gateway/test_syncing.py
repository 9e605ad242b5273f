"""The thread that syncs: many records with one call, in order, and a failure that is not forgotten."""

import os
import time
from pathlib import Path

import pytest

from services.gateway.syncing import Syncer


def synced(syncer: Syncer, wanted: tuple[int, int]) -> bool:
    for _ in range(500):
        if syncer.synced >= wanted:
            return True
        time.sleep(0.002)
    return False


def test_many_wishes_are_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    syncer = Syncer(tmp_path)
    descriptor = os.open(tmp_path / "one", os.O_RDWR | os.O_CREAT)
    for size in range(1, 1_001):
        syncer.want(1, descriptor, size)
    syncer.start()
    assert synced(syncer, (1, 1_000))
    assert len(calls) == 1
    syncer.stop()
    os.close(descriptor)


def test_what_is_wanted_at_the_end_is_done(tmp_path: Path) -> None:
    syncer = Syncer(tmp_path)
    syncer.start()
    descriptor = os.open(tmp_path / "one", os.O_RDWR | os.O_CREAT)
    syncer.want_directory()
    syncer.want(1, descriptor, 10)
    syncer.want(2, descriptor, 20)
    syncer.stop()
    assert syncer.synced == (2, 20)
    os.close(descriptor)


def test_a_segment_that_is_removed_meanwhile_is_no_failure(tmp_path: Path) -> None:
    syncer = Syncer(tmp_path)
    descriptor = os.open(tmp_path / "one", os.O_RDWR | os.O_CREAT)
    syncer.want(1, descriptor, 10)
    syncer.forget(1)
    os.close(descriptor)
    syncer.start()
    syncer.want_directory()
    syncer.stop()
    assert syncer.failed is None
