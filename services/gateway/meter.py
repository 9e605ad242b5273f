"""The usage meter: reads a copy of a response, in any chunking, and never raises into the path of the bytes.

Only the events that carry usage or say what a refusal or a fallback was are decoded; text deltas are decoded for their
length alone, which is what an abandoned stream is billed by. Grammar and overlay rule: PROTOCOL.md, section 6.
"""

import zlib
from typing import Any, Final, Protocol

import msgspec

from libs.common.metrics import Metrics
from libs.common.usage import Usage, overlay
from services.gateway import sse

_DELTA_EVENT: Final = b"event: content_block_delta\n"
_PING_EVENT: Final = b"event: ping\n"


class Reading(msgspec.Struct, kw_only=True):
    """What a response has told so far."""

    model: str = ""
    usage_start: Usage | None = None
    """`message_start.message.usage`; for a JSON answer the same as `usage`."""
    usage: Usage | None = None
    """The last known usage: start overlaid by every delta."""
    final: bool = False
    """The usage will not change any more: the last `message_delta`, or a whole JSON answer, was read."""
    complete: bool = False
    """The answer came to its own end: `message_stop`, or a whole JSON answer."""
    error_type: str = ""
    """The type of an `error` event inside the stream."""
    stop_reason: str = ""
    text_chars: int = 0
    """Characters of text, thinking and tool input received."""
    blocks: int = 0
    said_something: bool = False
    """Some content block is not an empty text."""
    declined_models: list[str] = []
    """Models that handed over to a fallback before any output."""

    @property
    def content_empty(self) -> bool:
        """No content block, or one empty text: what a free refusal looks like."""
        return self.blocks <= 1 and not self.said_something


class Meter(Protocol):
    """Feed it every chunk in order; read `reading` at any time."""

    reading: Reading

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body."""

    def end(self) -> None:
        """The body came to a clean end."""


class _Delta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _DeltaEvent(msgspec.Struct):
    delta: _Delta


class _Named(msgspec.Struct):
    model: str = ""


class _Block(msgspec.Struct, rename={"from_": "from"}):
    type: str = ""
    text: str = ""
    from_: _Named | None = None


class _BlockEvent(msgspec.Struct):
    content_block: _Block


class _Message(msgspec.Struct):
    model: str = ""
    usage: dict[str, Any] | None = None
    stop_reason: str | None = None
    content: list[_Block] = []


class _StartEvent(msgspec.Struct):
    message: _Message


class _StopInfo(msgspec.Struct):
    stop_reason: str | None = None


class _MessageDeltaEvent(msgspec.Struct):
    delta: _StopInfo | None = None
    usage: dict[str, Any] | None = None


class _ErrorInfo(msgspec.Struct):
    type: str = "api_error"


class _ErrorEvent(msgspec.Struct):
    error: _ErrorInfo


class _Typed(msgspec.Struct):
    type: str = ""


_decode_delta: Final = msgspec.json.Decoder(_DeltaEvent).decode
_decode_block: Final = msgspec.json.Decoder(_BlockEvent).decode
_decode_start: Final = msgspec.json.Decoder(_StartEvent).decode
_decode_message_delta: Final = msgspec.json.Decoder(_MessageDeltaEvent).decode
_decode_error: Final = msgspec.json.Decoder(_ErrorEvent).decode
_decode_typed: Final = msgspec.json.Decoder(_Typed).decode
_decode_message: Final = msgspec.json.Decoder(_Message).decode


class StreamMeter:
    """Meters `text/event-stream`."""

    def __init__(self, metrics: Metrics) -> None:
        self.reading = Reading()
        self._metrics = metrics
        self._frames = sse.FrameSplitter()

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body. Never raises: what cannot be read is counted and passed over."""
        for frame in self._frames.feed(chunk):
            if frame.startswith(_PING_EVENT):
                continue
            try:
                if frame.startswith(_DELTA_EVENT):
                    self._on_delta(sse.data(frame))
                else:
                    self._on_event(sse.data(frame))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
                self._metrics.add("relay_meter_errors_total", "frame")

    def end(self) -> None:
        """A stream's end is `message_stop`, not the end of its bytes: nothing to do but to count what was passed over."""
        if self._frames.skipped:
            self._metrics.add("relay_meter_errors_total", "oversized", self._frames.skipped)

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events."""
        return self._frames.at_boundary

    def _on_event(self, data: bytes) -> None:
        if not data:
            return
        reading = self.reading
        match _decode_typed(data).type:
            case "content_block_delta":
                self._on_delta(data)
            case "content_block_start":
                self._on_block(_decode_block(data).content_block)
            case "message_start":
                message = _decode_start(data).message
                reading.model = message.model
                reading.usage_start = reading.usage = message.usage
            case "message_delta":
                self._on_message_delta(_decode_message_delta(data))
            case "message_stop":
                reading.complete = reading.final = True
            case "error":
                reading.error_type = _decode_error(data).error.type
            case _:
                pass  # content_block_stop, ping, and events yet to be invented

    def _on_delta(self, data: bytes) -> None:
        delta = _decode_delta(data).delta
        chars = len(delta.text) + len(delta.thinking) + len(delta.partial_json)
        if chars:
            self.reading.text_chars += chars
            self.reading.said_something = True

    def _on_message_delta(self, event: _MessageDeltaEvent) -> None:
        reading = self.reading
        if event.usage is not None:
            reading.usage = overlay(reading.usage or {}, event.usage)
        if event.delta is not None and event.delta.stop_reason is not None:
            reading.stop_reason = event.delta.stop_reason
            reading.final = True

    def _on_block(self, block: _Block) -> None:
        _note_block(self.reading, block)


class JsonMeter:
    """Meters `application/json`: keeps references to the chunks and reads them once at the end."""

    def __init__(self, metrics: Metrics) -> None:
        self.reading = Reading()
        self._metrics = metrics
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body."""
        self._chunks.append(chunk)

    def end(self) -> None:
        """Read the whole answer. Never raises."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        try:
            message = _decode_message(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._metrics.add("relay_meter_errors_total", "json")
            return
        reading = self.reading
        reading.model = message.model
        reading.usage_start = reading.usage = message.usage
        reading.stop_reason = message.stop_reason or ""
        reading.complete = reading.final = True
        for block in message.content:
            _note_block(reading, block)


class GzipMeter:
    """Reads through a content coding that was never asked for: the bytes pass as they came, the copy is unpacked."""

    def __init__(self, inner: Meter, metrics: Metrics) -> None:
        self.reading = inner.reading
        self._inner = inner
        self._metrics = metrics
        self._unzip = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, told by the header

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body. Never raises."""
        try:
            plain = self._unzip.decompress(chunk)
        except zlib.error:
            self._metrics.add("relay_meter_errors_total", "gzip")
            return
        if plain:
            self._inner.feed(plain)

    def end(self) -> None:
        """The body came to a clean end."""
        self._inner.end()


def _note_block(reading: Reading, block: _Block) -> None:
    if block.type == "fallback":
        if not reading.said_something and block.from_ is not None:
            reading.declined_models.append(block.from_.model)
        return
    reading.blocks += 1
    if block.type not in ("text", "thinking") or block.text:
        reading.said_something = True
