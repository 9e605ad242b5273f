"""A thread that brings written files to the disk: as many records with one fdatasync as have come since the last.

The loop decides when, and hands over; the thread waits for that, and takes the interpreter from the loop for nothing else.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

_log: Final = logging.getLogger("relay.spool")
_PAUSE_S: Final = 0.005
"""From the first record that is not handed over: what a power cut may take, and what each record waits at most."""


class Syncer:
    """See the module's docstring. Everything but `failed` and `synced` is called from the event loop, and never waits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted: dict[int, tuple[int, int]] = {}
        """By segment, oldest first: its descriptor, and how many bytes are written."""
        self._directory_wanted = False
        self._timer: asyncio.TimerHandle | None = None
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What the thread has not begun yet, at most one sync; None is its end."""
        self.synced: tuple[int, int] = (0, 0)
        """(segment, bytes) of the last record that is on disk; all before it are."""
        self.failed: OSError | None = None
        """After a failed fdatasync nobody knows what is on disk: it stays so until the process is started anew."""
        self._thread = threading.Thread(target=self._run, name="spool-sync", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def want(self, segment: int, descriptor: int, size: int) -> None:
        """Have `size` bytes of a segment on disk soon."""
        self._wanted[segment] = (descriptor, size)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._hand_over)

    def want_directory(self) -> None:
        """A file was made: its name must be on disk too, with what is wanted next."""
        self._directory_wanted = True

    def forget(self, segment: int, descriptor: int) -> None:
        """The segment is no longer needed. The thread closes it: it may be at work on it."""
        self._wanted.pop(segment, None)
        self._work.put(partial(os.close, descriptor))

    async def aclose(self) -> None:
        """What is wanted is done, then the thread ends."""
        if self._timer is not None:
            self._timer.cancel()
        self._put_wanted()
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)

    def _hand_over(self) -> None:
        self._timer = None
        if self._work.empty():
            self._put_wanted()
        else:  # the disk is slow: what comes until it has done the last goes with this
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_S, self._hand_over)

    def _put_wanted(self) -> None:
        wanted, self._wanted = self._wanted, {}
        directory, self._directory_wanted = self._directory_wanted, False
        self._work.put(partial(self._sync, wanted, directory=directory))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except OSError as error:
                _log.critical("the spool's disk fails (%s): no request is admitted until it is mended", error.strerror)
                self.failed = error

    def _sync(self, wanted: dict[int, tuple[int, int]], *, directory: bool) -> None:
        if directory:
            _sync_directory(self._directory)
        for segment, (descriptor, size) in wanted.items():
            os.fdatasync(descriptor)
            self.synced = (segment, size)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
