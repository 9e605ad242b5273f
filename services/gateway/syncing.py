"""A thread that brings written files to the disk: as many records with one fdatasync as have come since the last."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

_log: Final = logging.getLogger("relay.spool")
_PAUSE_S: Final = 0.005
"""From one fdatasync to the next: what a power cut may take, and what each record waits at most."""


class Syncer:
    """See the module's docstring. `want` is called from the event loop, and never waits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted: dict[int, tuple[int, int]] = {}
        """By segment: its descriptor, and how many bytes are written."""
        self._directory_wanted = False
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = False
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
        with self._lock:
            self._wanted[segment] = (descriptor, size)
        self._work.set()

    def want_directory(self) -> None:
        """A file was made: its name must be on disk too."""
        self._directory_wanted = True

    def forget(self, segment: int) -> None:
        """The segment is no longer needed; its descriptor may be closed after this."""
        with self._lock:
            self._wanted.pop(segment, None)

    def stop(self) -> None:
        """What is wanted is done, then the thread ends. Blocks."""
        self._stopping = True
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._work.wait()
            self._work.clear()
            stopping = self._stopping
            try:
                self._sync()
            except OSError as error:
                _log.critical("the spool's disk fails (%s): no request is admitted until it is mended", error.strerror)
                self.failed = error
            if stopping:
                return
            time.sleep(_PAUSE_S)

    def _sync(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, {}
            # descriptors of our own: the others may be closed while we are at work
            mine = [(segment, os.dup(descriptor), size) for segment, (descriptor, size) in sorted(wanted.items())]
            directory, self._directory_wanted = self._directory_wanted, False
        try:
            if directory:
                _sync_directory(self._directory)
            for segment, descriptor, size in mine:
                os.fdatasync(descriptor)
                self.synced = (segment, size)
        finally:
            for _, descriptor, _ in mine:
                os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
