"""The spool: what is under way is noted in local files first, and kept there until the log has acknowledged it.

OPEN after admission, USAGE at `message_start`, CLOSE with the event at the end, DONE when JetStream has it. CLOSE goes to the
kernel at once, the others in the turn of the loop they were made in (a killed process loses none of them); to the disk they go
a few milliseconds later, many at once, by a thread (a power cut loses those milliseconds). Nobody waits for either.

Segments have a fixed size and are reserved one ahead, so that a full disk is known while there is still room for what was
admitted: then, and when 95 % of the spool are used, no more requests are admitted. Nothing is ever dropped.
"""

import asyncio
import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from libs.common import failpoints
from libs.common.config import ConfigError
from libs.common.metrics import Metrics
from services.gateway import records
from services.gateway.syncing import Syncer

_log: Final = logging.getLogger("relay.spool")
_SEGMENT_BYTES_MAX: Final = 8 * 1024 * 1024
_SEGMENTS_MIN: Final = 16
"""A small spool has small segments."""
_PINNED_MAX: Final = 4
"""More segments than these, the oldest kept only by requests that still run: their notes are written again further on."""
_ALARM_PPM: Final = 800_000
_FULL_PPM: Final = 950_000
_RETRY_S: Final = 0.5
_PPM: Final = 1_000_000


class Place(msgspec.Struct, frozen=True):
    """Where an event stands."""

    segment: int
    offset: int
    length: int


class Segment:
    """One file."""

    def __init__(self, number: int, path: Path, descriptor: int, size: int) -> None:
        self.number = number
        self.path = path
        self.descriptor = descriptor
        self.size = size
        """Bytes in use, those not yet written included."""
        self.running = 0
        """Requests that are under way and noted here."""
        self.unpublished = 0
        """Events that stand here and are not acknowledged."""

    @property
    def is_needed(self) -> bool:
        """Whether anything would be lost without it."""
        return bool(self.running or self.unpublished)


class Spool:
    """One per process. `recovery.py` hands in what an earlier process left."""

    def __init__(self, directory: Path, metrics: Metrics, *, bytes_max: int) -> None:
        """Raises ConfigError if the directory cannot be used, or another process uses it."""
        self._directory = directory
        self._metrics = metrics
        self._bytes_max = bytes_max
        self._segment_bytes = min(_SEGMENT_BYTES_MAX, bytes_max // _SEGMENTS_MIN)
        self._lock = _lock(directory)
        self._segments: dict[int, Segment] = {}
        """By number, oldest first."""
        self._current: Segment
        self._loop: asyncio.AbstractEventLoop
        self._bytes_behind = 0
        """In all segments but the current one."""
        self._running: dict[str, tuple[Segment, list[bytes]]] = {}
        """By request id: where its notes begin, and the notes."""
        self._unwritten = bytearray()
        """What the kernel has not taken yet: of this turn of the loop, or all since the disk is full."""
        self._flush_at: asyncio.Handle | None = None
        self._reserved: tuple[int, Path, int] | None = None
        self._failing = False
        self._alarmed = False
        self._syncer = Syncer(directory)
        self._number = 0
        metrics.gauge("relay_spool_bytes", lambda: self.bytes_used)
        metrics.gauge("relay_spool_full_ppm", lambda: self.full_ppm)

    def begin(self, left: list[Segment]) -> None:
        """Go on behind the segments an earlier process left. Raises ConfigError if no file can be made."""
        self._loop = asyncio.get_running_loop()
        self._segments = {segment.number: segment for segment in left}
        self._number = max((segment.number for segment in left), default=0)
        self._reserve()
        if self._reserved is None:  # no room: nothing is admitted, but what is left can be published, which makes some
            self._reserve(bytes_wanted=0)
        if self._reserved is None:
            raise ConfigError("RELAY_SPOOL_DIRECTORY: no file can be made in it")
        self._syncer.start()
        self._roll()

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory

    @property
    def is_full(self) -> bool:
        """Whether no more requests may be admitted: 95 % are used, or the disk takes no more."""
        return self._failing or self._syncer.failed is not None or self.full_ppm >= _FULL_PPM

    @property
    def bytes_used(self) -> int:
        """Of all segments."""
        return self._bytes_behind + self._current.size

    @property
    def full_ppm(self) -> int:
        """Millionths of the largest size that are used."""
        return self.bytes_used * _PPM // self._bytes_max

    @property
    def synced(self) -> tuple[int, int]:
        """(segment, bytes of it) up to which everything would survive a power cut."""
        return self._syncer.synced

    def open(self, request_id: str, note: bytes) -> None:
        """A request was admitted. `note` is what recovery.py makes an event of, should this process die."""
        record = records.encode(records.OPEN, request_id, note)
        self._append(record)
        segment = self._current
        segment.running += 1
        self._running[request_id] = (segment, [record])

    def usage(self, request_id: str, note: bytes) -> None:
        """`message_start` has come."""
        record = records.encode(records.USAGE, request_id, note)
        self._append(record)
        if (running := self._running.get(request_id)) is not None:
            running[1].append(record)

    def close(self, request_id: str, partition: int, event: bytes) -> Place:
        """A request has ended in this event."""
        record = records.encode(records.CLOSE, request_id, bytes([partition]) + event)
        self._append(record)
        if not self._failing:  # its caller has his answer: not even the rest of this turn may come between
            self._write()
        if (running := self._running.pop(request_id, None)) is not None:
            running[0].running -= 1
        segment = self._current
        segment.unpublished += 1
        failpoints.reach("spool_appended")
        return Place(segment.number, segment.size - len(event), len(event))

    def read(self, place: Place) -> bytes:
        """The event that `close` was given. Raises OSError if the disk does not give it back."""
        segment = self._segments[place.segment]
        written = segment.size - len(self._unwritten) if segment is self._current else segment.size
        on_disk = min(max(written - place.offset, 0), place.length)
        event = os.pread(segment.descriptor, on_disk, place.offset) if on_disk else b""
        if len(event) < place.length:
            begins = place.offset + len(event) - written
            event += self._unwritten[begins : begins + place.length - len(event)]
        if len(event) != place.length:
            raise OSError(errno.EIO, f"the spool's segment {place.segment} is shorter than it was")
        return event

    def done(self, acknowledged: list[tuple[str, Place]]) -> None:
        """JetStream has these events: they are not needed any more."""
        names = [request_id for request_id, _ in acknowledged]
        self._append(records.encode(records.DONE, names[0], "".join(names[1:]).encode()))
        for _, place in acknowledged:
            self._segments[place.segment].unpublished -= 1
        failpoints.reach("spool_marked")
        self._trim()

    async def aclose(self) -> None:
        """Everything on disk, files closed. What is not acknowledged stays for the next start."""
        self._flush()
        if self._flush_at is not None:
            self._flush_at.cancel()
        if self._unwritten:
            _log.critical("%d bytes of the spool could not be written before the end", len(self._unwritten))
        self._trim()
        await self._syncer.aclose()
        if self._reserved is not None:
            self._reserved[1].unlink(missing_ok=True)
            os.close(self._reserved[2])
        if list(self._segments.values()) == [self._current] and not self._current.is_needed:
            self._current.path.unlink(missing_ok=True)
        for segment in self._segments.values():
            os.close(segment.descriptor)
        os.close(self._lock)

    def _append(self, record: bytes) -> None:
        if self._current.size + len(record) > self._segment_bytes and self._reserved is not None:
            self._flush()
            if not self._unwritten:
                self._roll()
        self._unwritten += record
        self._current.size += len(record)
        if self._flush_at is None:
            self._flush_at = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Give the kernel what it has not yet. A full disk is tried again; what was written in part goes on where it stopped."""
        self._flush_at = None
        self._write()
        segment = self._current
        self._syncer.want(segment.number, segment.descriptor, segment.size - len(self._unwritten))
        if self._reserved is None:
            self._reserve()
        if self._reserved is None or self._unwritten:
            self._flush_at = self._loop.call_later(_RETRY_S, self._flush)
        elif self._failing:
            self._failing = False
            _log.warning("the spool can be written again; requests are admitted")

    def _write(self) -> None:
        segment = self._current
        try:
            while self._unwritten:
                offset = segment.size - len(self._unwritten)
                written = os.pwrite(segment.descriptor, self._unwritten, offset)
                del self._unwritten[:written]
        except OSError as error:
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        self._metrics.add("relay_spool_failures_total")
        if not self._failing:
            self._failing = True
            _log.critical("the spool cannot be written (%s): no request is admitted until it can", error.strerror)

    def _reserve(self, bytes_wanted: int | None = None) -> None:
        """Make the file for the next segment: who has the room cannot run out of it in the middle."""
        number = self._number + 1
        path = self._directory / f"{number:012d}.spool"
        descriptor = -1
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if size := self._segment_bytes if bytes_wanted is None else bytes_wanted:
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                path.unlink(missing_ok=True)
            self._fails(error)
            return
        self._number = number
        self._reserved = (number, path, descriptor)

    def _roll(self) -> None:
        """Begin the next segment, and look after the old ones."""
        assert self._reserved is not None
        number, path, descriptor = self._reserved
        self._reserved = None
        self._bytes_behind = sum(behind.size for behind in self._segments.values())
        segment = Segment(number, path, descriptor, len(records.MAGIC))
        self._segments[number] = self._current = segment
        self._unwritten += records.MAGIC
        self._syncer.want_directory()
        self._reserve()
        self._carry()
        self._trim()
        self._look_at_size()

    def _carry(self) -> None:
        """Streams that run for long must not keep what came after them: their notes are written again, at the end."""
        oldest = next(iter(self._segments.values()))
        if len(self._segments) <= _PINNED_MAX or oldest.unpublished or not oldest.running:
            return
        for request_id, (segment, notes) in self._running.items():
            if segment is oldest:
                for note in notes:
                    self._unwritten += note
                    self._current.size += len(note)
                oldest.running -= 1
                self._current.running += 1
                self._running[request_id] = (self._current, notes)

    def _trim(self) -> None:
        """Remove what nobody needs, oldest first: a DONE must not go before the CLOSE it speaks of."""
        for segment in list(self._segments.values())[:-1]:
            if segment.is_needed:
                return
            del self._segments[segment.number]
            self._bytes_behind -= segment.size
            self._syncer.forget(segment.number, segment.descriptor)
            segment.path.unlink(missing_ok=True)

    def _look_at_size(self) -> None:
        full_ppm = self.full_ppm
        if full_ppm >= _ALARM_PPM and not self._alarmed:
            _log.critical("the spool is %d %% full; at 95 %% no more requests are admitted", full_ppm // 10_000)
        self._alarmed = full_ppm >= _ALARM_PPM


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"RELAY_SPOOL_DIRECTORY {str(directory)!r} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"RELAY_SPOOL_DIRECTORY {str(directory)!r} is in use by another gateway") from None
    return descriptor
