"""Server-sent events, as far as metering needs them: whole frames out of any chunking, and nothing on the bytes' path.

Grammar: WHATWG HTML, section 9.2. Frames end at an empty line; lines may end in LF, CRLF or CR.
"""

import re
from collections.abc import Iterator
from typing import Final

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
"""A frame larger than this is passed over: usage frames are a few hundred bytes, fallback blocks a few kilobytes."""
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


class FrameSplitter:
    """Feed chunks, get whole frames (without the empty line that ends them). Keeps at most one unfinished frame."""

    __slots__ = ("_cr_seen", "_parts", "_size", "skipped")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._cr_seen = False
        self.skipped = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Frames that this chunk completes, in order."""
        if b"\r" in chunk or self._cr_seen:
            chunk = self._line_feeds(chunk)
        end = self._first_end(chunk)
        if end < 0:
            self._keep(chunk)
            return
        yield from self._complete(chunk[:end])
        start = end
        while (end := chunk.find(b"\n\n", start)) >= 0:
            if end > start:
                yield chunk[start:end]
            start = end + 2
        if start < len(chunk):
            self._keep(chunk[start:])

    @property
    def unfinished(self) -> bytes:
        """The start of the frame that is not complete yet: at most its first 64 bytes."""
        return b"".join(self._parts)[:64] if self._size else b""

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two frames (or before the first)."""
        return not self._size

    def _first_end(self, chunk: bytes) -> int:
        """Where, in `chunk`, the rest of the unfinished frame ends (after its empty line); -1 if it does not."""
        if not self._parts:
            return 0 if chunk else -1
        if self._parts[-1].endswith(b"\n") and chunk.startswith(b"\n"):
            return 1
        end = chunk.find(b"\n\n")
        return end + 2 if end >= 0 else -1

    def _complete(self, rest: bytes) -> Iterator[bytes]:
        if not self._parts:
            return
        self._parts.append(rest)
        frame = b"".join(self._parts)
        oversized = self._size + len(rest) > FRAME_BYTES_MAX
        self._parts = []
        self._size = 0
        if oversized:
            self.skipped += 1
        elif frame := frame.strip(b"\n"):
            yield frame

    def _keep(self, part: bytes) -> None:
        if not part:
            return
        self._size += len(part)
        if self._size > FRAME_BYTES_MAX:
            self._parts = [part[-1:]]  # enough to see the empty line when it comes
        else:
            self._parts.append(part)

    def _line_feeds(self, chunk: bytes) -> bytes:
        """CRLF and CR to LF, over chunk borders."""
        if self._cr_seen and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._cr_seen = chunk.endswith(b"\r") if chunk else self._cr_seen
        return _LINE_END.sub(b"\n", chunk)


def event_name(frame: bytes) -> bytes:
    """The `event:` field of a frame, b"" if it has none."""
    for line in frame.split(b"\n"):
        if line.startswith(b"event:"):
            return line[6:].strip(b" ")
    return b""


def data(frame: bytes) -> bytes:
    """The `data:` field: one line as it is, several joined by line feeds."""
    lines = [line[5:].removeprefix(b" ") for line in frame.split(b"\n") if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)
