"""Disks for tests: an ext4 in a file whose power can be cut, and a small one that can be full. Both need root."""

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_MB: Final = 1024 * 1024
_SHUTDOWN: Final = 0x8004587D
"""FS_IOC_SHUTDOWN of Linux."""
_NO_LOG_FLUSH: Final = 2
"""Whatever is not on disk is lost, the file system's own log included: as when the power goes."""


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists()


def need_mounts() -> None:
    """Skip, or where CI is set fail, a test that cannot mount."""
    if not can_mount():
        if "CI" in os.environ:
            pytest.fail("this test mounts file systems, which needs root")
        pytest.skip("not run: mounting file systems needs root")


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, home: Path, size_mb: int) -> None:
        self._image, self.path = home / "disk.img", home / "disk"
        self.path.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(size_mb * _MB)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut_power(self) -> None:
        """From now on nothing reaches it, and what had not reached it is lost. Kill its users, then call `come_back`."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """The power is there again."""
        self.unmount()
        self._mount()

    def unmount(self) -> None:
        """Its users must have ended."""
        for _ in range(100):
            if subprocess.run(["umount", str(self.path)], check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise OSError(f"{self.path} is still in use")

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))


@contextlib.contextmanager
def disk(home: Path, *, size_mb: int = 512) -> Iterator[Disk]:
    """Unmounted at the end."""
    made = Disk(home, size_mb)
    try:
        yield made
    finally:
        made.unmount()


@contextlib.contextmanager
def small_disk(home: Path, *, size_mb: int) -> Iterator[Path]:
    """A tmpfs, unmounted at the end."""
    path = home / "small"
    path.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(path))
    try:
        yield path
    finally:
        _run("umount", "-l", str(path))


@contextlib.contextmanager
def full(path: Path, *, left_bytes: int = 0) -> Iterator[None]:
    """Fill a disk up, and make room again at the end."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = os.statvfs(path)
        chunk = bytes(64 * 1024)
        with contextlib.suppress(OSError):
            for _ in range(max(free.f_bavail * free.f_frsize - left_bytes, 0) // len(chunk)):
                file.write(chunk)
            while not left_bytes:
                file.write(chunk)
    try:
        yield
    finally:
        ballast.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
