"""What an earlier process left in the spool: its events that the log does not have, and its requests that never ended.

1. **Read** every segment in order. A torn end and damaged records are counted and told of; all that can be read counts.
2. **Keep** each CLOSE without a DONE where it stands: the publisher takes it from there.
3. **End** each OPEN without a CLOSE: an event of version 2 is made of what the notes know, and closed like any other. The same
   notes make the same event; from then on it stands in the spool, so that another crash finds it there.

All of it happens before the first request is accepted, and nothing of it needs NATS or Redis.
"""

import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec

from libs.common import events, ids
from libs.common.events import VERSION_RECOVERED, UsageRecorded
from libs.common.metrics import Metrics
from services.gateway import records
from services.gateway.records import Damaged, Record
from services.gateway.spool import Place, Segment, Spool

_log: Final = logging.getLogger("relay.spool")
Found = tuple[str, int, Place]
"""Request id, partition, and where its event stands."""


class Told(msgspec.Struct, frozen=True):
    """What `message_start` has told."""

    model: str
    usage: dict[str, Any]


_told_decoder: Final = msgspec.json.Decoder(Told)
_encode: Final = msgspec.json.Encoder().encode


def open_note(member_id: str, multiplier_ppm: int, memo: bytes) -> bytes:
    """The body of OPEN: `memo` is the event to record if nothing else is known, multiplier and member still to be filled in."""
    return f"{multiplier_ppm} {member_id}\n".encode() + memo


def usage_note(model: str, usage: dict[str, Any]) -> bytes:
    """The body of USAGE."""
    return _encode(Told(model, usage))


def event_of(opened: bytes, told: bytes | None) -> UsageRecorded:
    """Version 2 of a request's event. Raises ValueError (msgspec's errors included) for notes that cannot be read."""
    line, _, memo = opened.partition(b"\n")
    multiplier_ppm, _, member_id = line.decode("ascii").partition(" ")
    event = msgspec.structs.replace(
        events.decode_event(memo),
        version=VERSION_RECOVERED,
        multiplier_ppm=int(multiplier_ppm),
        member_id=member_id,
    )
    if told is None:
        return event
    start = _told_decoder.decode(told)
    return msgspec.structs.replace(
        event, outcome="partial", status=200, usage=start.usage, model_answered=start.model or event.model_asked
    )


def recover(spool: Spool, metrics: Metrics) -> list[Found]:
    """Take over what stands in the spool's directory and begin it; the events that must be published, oldest first.

    Raises ConfigError as `Spool.begin` does, and OSError if a segment cannot be read at all.
    """
    reading = _Reading(metrics)
    for path in sorted(spool.directory.glob("*.spool")):
        reading.read(path)
    found = reading.unpublished()
    spool.begin(reading.segments)
    for request_id, (opened, told) in reading.running.items():
        try:
            event = event_of(opened, told)
        except ValueError:
            metrics.add("relay_spool_damaged_total")
            _log.critical("the spool's note of %s cannot be read; its lease will be ended instead", request_id)
            continue
        partition = ids.partition(event.account_id)
        place = spool.close(request_id, partition, events.encode_event(event))
        found.append((request_id, partition, place))
    if found:
        metrics.add("relay_spool_recovered_total", amount=len(found))
        _log.warning(
            "%d events were left in the spool, %d of them of requests that were cut off",
            len(found),
            len(reading.running),
        )
    return found


class _Reading:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.segments: list[Segment] = []
        self.running: dict[str, tuple[bytes, bytes | None]] = {}
        self._closed: dict[str, tuple[int, Segment, Place]] = {}

    def unpublished(self) -> list[Found]:
        for _, segment, _ in self._closed.values():
            segment.unpublished += 1
        return [(request_id, partition, place) for request_id, (partition, _, place) in self._closed.items()]

    def read(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        text = path.read_bytes()
        segment = Segment(int(path.stem), path, descriptor, len(records.MAGIC))
        self.segments.append(segment)
        for record in records.scan(text):
            match record:
                case Record():
                    segment.size = record.offset + record.length
                    self._take(record, text, segment)
                case Damaged(offset):
                    self._metrics.add("relay_spool_damaged_total")
                    _log.critical("%s is damaged at byte %d; what follows is read", path.name, offset)
                case "torn":
                    self._metrics.add("relay_spool_damaged_total")
                    _log.warning("%s ends in the middle of a record, after %d bytes", path.name, segment.size)
                case _:
                    pass

    def _take(self, record: Record, text: bytes, segment: Segment) -> None:
        name, body = record.request_id, text[record.offset : record.offset + record.length]
        match record.kind:
            case records.OPEN:
                self.running[name] = (body, None)
            case records.USAGE if name in self.running:
                self.running[name] = (self.running[name][0], body)
            case records.CLOSE:
                self.running.pop(name, None)
                place = Place(segment.number, record.offset + 1, record.length - 1)
                self._closed[name] = (body[0], segment, place)
            case records.DONE:
                more = body.decode("ascii", "replace")
                for begin in range(0, len(more), records.ID_BYTES):
                    self._forget(more[begin : begin + records.ID_BYTES])
                self._forget(name)

    def _forget(self, request_id: str) -> None:
        self.running.pop(request_id, None)
        self._closed.pop(request_id, None)
