"""Server-sent events, as far as metering needs them: whole frames out of any chunking, and nothing on the bytes' path.

Grammar: WHATWG HTML, section 9.2. Frames end at an empty line; lines may end in LF, CRLF or CR; one byte order mark may
stand first.
"""

import re
from typing import Final

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
"""A frame larger than this is passed over: usage frames are a few hundred bytes, fallback blocks a few kilobytes."""
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class FrameSplitter:
    """Feed chunks, get whole frames (without the empty line that ends them). Keeps at most one unfinished frame."""

    __slots__ = ("_cr_seen", "_kept", "_oversized", "skipped")

    def __init__(self) -> None:
        self._kept = bytearray()
        self._oversized = False
        self._cr_seen = False
        self.skipped = 0

    def is_frame(self, chunk: bytes) -> bool:
        """Whether the next chunk is one whole frame, as the API nearly always sends them: `feed` would return just that."""
        return not (self._kept or self._cr_seen or b"\r" in chunk) and chunk.find(b"\n\n") == len(chunk) - 2 > 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Frames that this chunk completes, in order; their lines end in LF."""
        if self._cr_seen or b"\r" in chunk:
            chunk = line_feeds(self._without_second_half(chunk))
        frames: list[bytes] = []
        if not self._kept:
            if chunk.find(b"\n\n") == len(chunk) - 2 > 0:  # one whole frame, as the API nearly always sends them
                return [chunk[:-2].lstrip(b"\n")]
        else:
            end = self._end_of_kept(chunk)
            if end < 0:
                self._keep(chunk)
                return frames
            self._complete(chunk[:end], frames)
            chunk = chunk[end:]
        *whole, rest = chunk.split(b"\n\n")
        frames += [frame for part in whole if (frame := part.lstrip(b"\n"))]
        if rest := rest.lstrip(b"\n"):  # further empty lines between two frames mean nothing
            self._keep(rest)
        return frames

    @property
    def unfinished(self) -> bytes:
        """The frame that is not complete yet; b"" between two frames, and for one that is too large."""
        return b"" if self._oversized else bytes(self._kept)

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two frames (or before the first)."""
        return not self._kept

    def _end_of_kept(self, chunk: bytes) -> int:
        """Where, in `chunk`, the unfinished frame ends (after its empty line); -1 if it does not."""
        if self._kept.endswith(b"\n") and chunk.startswith(b"\n"):
            return 1
        end = chunk.find(b"\n\n")
        return end + 2 if end >= 0 else -1

    def _complete(self, rest: bytes, frames: list[bytes]) -> None:
        self._keep(rest)
        if self._oversized:
            self.skipped += 1
        else:
            frames.append(bytes(self._kept).rstrip(b"\n"))
        self._kept.clear()
        self._oversized = False

    def _keep(self, part: bytes) -> None:
        self._kept += part
        if len(self._kept) > FRAME_BYTES_MAX:
            self._oversized = True
            self._kept = self._kept[-1:]  # enough to see the empty line when it comes

    def _without_second_half(self, chunk: bytes) -> bytes:
        """`chunk` less a LF whose CR was the end of the chunk before."""
        if self._cr_seen and chunk.startswith(b"\n"):
            self._cr_seen = False
            chunk = chunk[1:]
        if chunk:
            self._cr_seen = chunk.endswith(b"\r")
        return chunk


def line_feeds(text: bytes) -> bytes:
    """CRLF and CR to LF."""
    return _LINE_END.sub(b"\n", text)


def event_name(frame: bytes) -> bytes:
    """The `event:` field of a frame whose lines end in LF, b"" if it has none; the last one counts."""
    names = _values(frame, b"event:")
    return names[-1].strip(b" ") if names else b""


def data(frame: bytes) -> bytes:
    """The `data:` field of a frame whose lines end in LF: one line as it is, several joined by line feeds."""
    lines = _values(frame, b"data:")
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def _values(frame: bytes, field: bytes) -> list[bytes]:
    lines = frame.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    return [line[len(field) :].removeprefix(b" ") for line in lines if line.startswith(field)]
