"""Holds an in-stream `error` event back until it is whole, so that the operator's own trouble is never shown to a caller.

Every other byte passes at once: the check is one search a chunk. A chunk that ends inside the words `event: error`
passes too, since what must not be seen, the event's data, comes only after them.
"""

import re
from typing import Final

from services.gateway import masks, sse

_ERROR_LINE: Final = b"event: error"
_FRAME_END: Final = re.compile(rb"\r?\n\r?\n")
_HELD_BYTES_MAX: Final = 1024 * 1024


class ErrorScreen:
    """Feed chunks in order; send what comes back."""

    __slots__ = ("_held", "_line", "_sent", "masked")

    def __init__(self) -> None:
        self._line: bytes | None = b""
        """The unfinished last line while it may still become `event: error`, else None. Its bytes have been sent."""
        self._held: bytes | None = None
        """The error event so far; None while none is coming."""
        self._sent = 0
        """How many of its bytes went out before it was known for one."""
        self.masked = 0

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent now; b"" while an error event is not whole yet."""
        if self._held is not None:
            return self._hold(self._held + chunk, self._sent)
        line = self._line
        if line is not None and (line + chunk[: len(_ERROR_LINE)]).startswith(_ERROR_LINE):
            return self._hold(line + chunk, len(line))
        start = chunk.find(b"\n" + _ERROR_LINE) + 1
        if start:
            return chunk[:start] + self._hold(chunk[start:], 0)
        if chunk.endswith(b"\n"):
            self._line = b""
        elif chunk:
            self._line = _line_begun(line, chunk)
        return chunk

    def _hold(self, held: bytes, sent: int) -> bytes:
        self._held, self._sent = held, sent
        end = _FRAME_END.search(held)
        if end is None and len(held) <= _HELD_BYTES_MAX:
            return b""
        self._held, self._line = None, b""
        if end is None:  # no error of the upstream is this long: it is none of ours to judge
            self._line = None
            return held[sent:]
        return self._judged(held[: end.end()])[sent:] + self.feed(held[end.end() :])

    def _judged(self, frame: bytes) -> bytes:
        plain = frame.replace(b"\r\n", b"\n")
        if sse.event_name(plain) != b"error":
            return frame
        masked = masks.masked_event_data(sse.data(plain))
        if masked is None:
            return frame
        self.masked += 1
        return b"event: error\ndata: " + masked + b"\n\n"


def _line_begun(line: bytes | None, chunk: bytes) -> bytes | None:
    end = chunk.rfind(b"\n") + 1
    if end:
        line = b""
    if line is None or len(chunk) - end >= len(_ERROR_LINE):
        return None
    begun = line + chunk[end:]
    return begun if _ERROR_LINE.startswith(begun) else None
