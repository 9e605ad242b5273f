"""Holds an in-stream `error` event back until it is whole, so that the operator's own trouble is never shown to a caller.

Every other byte passes at once, in any chunking. An event is held from its line `event: error` on, or, where its data come
without such a line or before it, from the words `data: {"type":"error"` on: what stands before them tells nothing. Data of
another shape are not held for a name that may follow: the API sends the name first, and a chunk must not wait.
"""

import re
from typing import Final

from services.gateway import masks, sse

_TRIGGER: Final = re.compile(
    rb"""[\r\n] (?:\xef\xbb\xbf)? (?:
        event:[\x20\t]* error [\x20\t]* (?P<named>[\r\n])
      | data:[\x20\t]* \{ [\x20\t]* (?: "type"[\x20\t]*:[\x20\t]*"error"(?P<typed>) | "error"(?P<bare>) )
    )""",
    re.VERBOSE,
)
_FRAME_END: Final = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_FRAME_END_BYTES: Final = 4
_LINE_BYTES_MAX: Final = 256
"""No line that leads in an error is longer; of a longer one the rest is not looked at."""
_HELD_BYTES_MAX: Final = 1024 * 1024
_TYPE: Final = b'{"type":"error"'
_ERROR: Final = _TYPE + b',"error"'


class ErrorScreen:
    """Feed chunks in order and send what comes back; `flush` once at the end."""

    __slots__ = ("_held", "_kind", "_line", "_mark", "_sent", "masked")

    def __init__(self) -> None:
        self._line: bytes | None = b""
        """The unfinished last line while it may still lead in an error, else None. Its bytes have been sent."""
        self._held: bytearray | None = None
        """The error event so far, from its leading line on; None while none is coming."""
        self._sent = 0
        """How many of its bytes went out before it was known for one."""
        self._mark = 0
        """How many of its bytes lead it in: a masked event keeps them."""
        self._kind = ""
        self.masked = 0

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent now; b"" while an error event is not whole yet."""
        if self._held is None and not self._line and chunk.endswith(b"\n") and b"error" not in chunk:
            self._line = b""
            return chunk
        passed: list[bytes] = []
        while chunk:
            chunk = self._look(chunk, passed) if self._held is None else self._hold(self._held, chunk, passed)
        return b"".join(passed)

    def flush(self) -> bytes:
        """What is left when the upstream's bytes have come to an end, clean or broken."""
        if self._held is None:
            return b""
        held, self._held = bytes(self._held), None
        return self._judged(held)

    def _look(self, chunk: bytes, passed: list[bytes]) -> bytes:
        """Pass what leads to an error event; the rest, which begins with one or is b""."""
        before = b"" if self._line is None else b"\n" + self._line
        text = before + chunk
        trigger = _TRIGGER.search(text) if b"error" in text else None
        if trigger is None:
            end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            self._line = text[end:] if end > 0 and len(text) - end <= _LINE_BYTES_MAX else None
            passed.append(chunk)
            return b""
        start = trigger.start() + 1
        self._kind = trigger.lastgroup or ""
        self._mark = (trigger.start("named") if self._kind == "named" else trigger.end()) - start
        self._sent = max(len(before) - start, 0)
        self._held = bytearray(text[start : start + self._sent])
        at = max(start - len(before), 0)
        passed.append(chunk[:at])
        return chunk[at:]

    def _hold(self, held: bytearray, more: bytes, passed: list[bytes]) -> bytes:
        """Hold until the event is whole, then pass it judged; the rest, which comes after it."""
        before = len(held)
        held += more
        end = _FRAME_END.search(held, max(before - _FRAME_END_BYTES + 1, 0))
        if end is None and len(held) <= _HELD_BYTES_MAX:
            return b""
        self._held = None
        if end is None:  # no error of the upstream is this long: it is none of ours to judge
            self._line = None
            passed.append(bytes(held[self._sent :]))
            return b""
        self._line = b""
        passed.append(self._judged(bytes(held[: end.end()])))
        return more[end.end() - before :]

    def _judged(self, frame: bytes) -> bytes:
        plain = sse.line_feeds(frame)
        masked = masks.masked_event_data(sse.data(plain), frame=plain)
        if masked is None:
            return frame[self._sent :]
        self.masked += 1
        lead = frame[self._sent : self._mark]
        match self._kind:
            case "named":
                return lead + b"\ndata: " + masked + b"\n\n"
            case "typed":
                return lead + masked.removeprefix(_TYPE) + b"\nevent: error\n\n"
            case _:
                return lead + masked.removeprefix(_ERROR)[:-1] + b',"type":"error"}\nevent: error\n\n'
