"""The form of a spool's records: pure. A segment is a magic word and records; what is torn or flipped is never believed.

Record: length of the body (4 bytes), crc32 of kind, id and body (4), kind (1), request id (36: `req_` + 32 hex digits), body. All
little-endian. Zeros after the last record are room that was reserved and not used.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

MAGIC: Final = b"RELAYSP1"
OPEN: Final = b"O"
"""Admitted. Body: `<multiplier> <member id>`, a line end, the event to record if nothing else is known (JSON, version 1)."""
USAGE: Final = b"U"
"""`message_start` has come. Body: JSON of the model and the usage it told."""
CLOSE: Final = b"C"
"""Ended. Body: the event, JSON, after one byte: its partition."""
DONE: Final = b"D"
"""Acknowledged by the log. Body: further request ids of the same message."""
ID_BYTES: Final = 36
HEAD_BYTES: Final = 9 + ID_BYTES
_HEAD: Final = struct.Struct(f"<II1s{ID_BYTES}s")
_BEFORE_ID: Final = 9
_ID_BEGINS: Final = b"req_"
_KINDS: Final = frozenset({OPEN, USAGE, CLOSE, DONE})

End = Literal["clean", "torn"]


class Record(msgspec.Struct, frozen=True):
    """One record of a segment."""

    kind: bytes
    request_id: str
    offset: int
    """Of the body, in the segment."""
    length: int
    """Of the body."""


class Damaged(msgspec.Struct, frozen=True):
    """Something that is no record; what follows it can be read."""

    offset: int


def encode(kind: bytes, request_id: str, body: bytes) -> bytes:
    """A record. Raises ValueError for an id that is not one of a request."""
    name = request_id.encode("ascii")
    if len(name) != ID_BYTES:
        raise ValueError(f"not the id of a request: {request_id[:64]!r}")
    crc = zlib.crc32(body, zlib.crc32(kind + name))
    return _HEAD.pack(len(body), crc, kind, name) + body


def scan(segment: bytes) -> Iterator[Record | Damaged | End]:
    """All records of a segment in order, and last how it ends: `torn` if something stands there that cannot be read."""
    at = len(MAGIC)
    if not segment.startswith(MAGIC):
        at = 0
    while True:
        record = _read(segment, at) if at else None
        if record is None:
            after = _resume(segment, at + 1)
            if after is None:
                yield "torn" if segment.count(0, at) < len(segment) - at else "clean"
                return
            yield Damaged(at)
            at = after
        else:
            yield record
            at = record.offset + record.length


def _read(segment: bytes, at: int) -> Record | None:
    """The record at `at`, if there is one that can be believed."""
    body = at + HEAD_BYTES
    if body > len(segment):
        return None
    length, crc, kind, name = _HEAD.unpack_from(segment, at)
    if kind not in _KINDS or body + length > len(segment):
        return None
    if zlib.crc32(memoryview(segment)[body : body + length], zlib.crc32(kind + name)) != crc:
        return None
    return Record(kind, name.decode("ascii", "replace"), body, length)


def _resume(segment: bytes, at: int) -> int | None:
    """Where the next record begins that can be believed: a bit that flipped costs one record, not all that follow."""
    found = segment.find(_ID_BEGINS, at + _BEFORE_ID)
    while found >= 0:
        if _read(segment, found - _BEFORE_ID) is not None:
            return found - _BEFORE_ID
        found = segment.find(_ID_BEGINS, found + 1)
    return None
