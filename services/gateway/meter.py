"""The usage meter: reads a copy of a response, in any chunking, and never raises into the path of the bytes.

Only the events that carry usage or say what a refusal or a fallback was are decoded; text deltas are decoded for their
length alone, which is what an abandoned stream is billed by. Grammar and overlay rule: PROTOCOL.md, section 6.

An event is what its data say it is (`type`), whatever its `event:` line says: so do the SDKs read it. A field of a wrong type, or
one the fast decoder cannot read (lone surrogates, deep nesting), costs that field and not the rest of the answer.
"""

import contextlib
import zlib
from typing import Any, Final, Protocol

import msgspec

from libs.common.metrics import Metrics
from libs.common.usage import Usage, overlay
from services.gateway import sse, tolerant

JSON_BYTES_MAX: Final = 64 * 1024 * 1024
"""A JSON answer larger than this is not metered: the largest ones of the API are a few megabytes."""
PLAIN_BYTES_MAX: Final = 64 * 1024 * 1024
"""Nor is a coded one that unpacks to more."""
_PLAIN_CHUNK_BYTES: Final = 64 * 1024
_DELTA_LEAD: Final = b"event: content_block_delta\ndata: "
_DELTA_LEAD_BYTES: Final = len(_DELTA_LEAD)
_DELTA: Final = "content_block_delta"
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, tolerant.NotAnObject)


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
    """Characters of text, thinking and tool input received (docs/adr/0002)."""
    blocks: int = 0
    said_something: bool = False
    """Some content block is something else than an empty text."""
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


class _Delta(msgspec.Struct, gc=False):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _DeltaEvent(msgspec.Struct, gc=False):
    delta: _Delta
    type: str = ""


class _Block(msgspec.Struct, rename={"from_": "from"}):
    type: Any = ""
    text: Any = ""
    from_: Any = None


class _BlockEvent(msgspec.Struct):
    content_block: _Block


class _Message(msgspec.Struct):
    model: Any = ""
    usage: Any = None
    stop_reason: Any = None
    content: list[_Block] = []


class _StartEvent(msgspec.Struct):
    message: _Message


class _MessageDeltaEvent(msgspec.Struct):
    delta: Any = None
    usage: Any = None


class _ErrorInfo(msgspec.Struct):
    type: str


class _ErrorEvent(msgspec.Struct):
    error: _ErrorInfo


class _Typed(msgspec.Struct):
    type: str


UNREADABLE_USAGE: Final = "unreadable_usage"
"""An amount that no price covers, in the place of a usage that cannot be read."""
_GZIP_OR_ZLIB: Final = 47  # 32 + 15: told by the header
_decode_any: Final = msgspec.json.Decoder().decode
_decode_delta: Final = msgspec.json.Decoder(_DeltaEvent).decode
_decode_block: Final = msgspec.json.Decoder(_BlockEvent).decode
_decode_blocks: Final = msgspec.json.Decoder(list[_Block]).decode
_decode_start: Final = msgspec.json.Decoder(_StartEvent).decode
_decode_message_delta: Final = msgspec.json.Decoder(_MessageDeltaEvent).decode
_decode_error: Final = msgspec.json.Decoder(_ErrorEvent).decode
_decode_type: Final = msgspec.json.Decoder(_Typed).decode
_decode_message: Final = msgspec.json.Decoder(_Message).decode


class StreamMeter:
    """Meters `text/event-stream`."""

    def __init__(self, metrics: Metrics) -> None:
        self.reading = Reading()
        self._metrics = metrics
        self._frames = sse.FrameSplitter()

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body. Never raises: what cannot be read is counted and passed over."""
        is_lead = chunk.startswith(_DELTA_LEAD)
        if is_lead and self._frames.is_frame(chunk) and self._is_delta(chunk[_DELTA_LEAD_BYTES:]):
            return  # nearly always: the shortest road
        for frame in self._frames.feed(chunk):
            try:
                if not (frame.startswith(_DELTA_LEAD) and self._is_delta(frame[_DELTA_LEAD_BYTES:])):
                    self._on_event(frame)
            except _UNREADABLE:
                self._metrics.add("relay_meter_errors_total", "frame")

    def end(self) -> None:
        """The body has ended, cleanly or not. Its last event counts although the empty line behind it may be missing;
        an error does not: without that line no client reads it, and the stream must not pass for one that said why it ends."""
        error_type = self.reading.error_type
        frame = self._frames.unfinished
        with contextlib.suppress(*_UNREADABLE):
            _decode_type(sse.data(frame))  # an event cut in the middle is none, whatever its name
            self._on_event(frame)
        self.reading.error_type = error_type
        if self._frames.skipped:
            self._metrics.add("relay_meter_errors_total", "oversized", self._frames.skipped)

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end between two events."""
        return self._frames.at_boundary

    def _is_delta(self, data: bytes) -> bool:
        """The hot path: one decoding where it is one, as it nearly always is."""
        try:
            event = _decode_delta(data)
        except _UNREADABLE:
            return False
        if event.type == _DELTA:
            self._note_delta(event.delta)
        return event.type == _DELTA

    def _note_delta(self, delta: _Delta) -> None:
        chars = len(delta.text) + len(delta.thinking) + len(delta.partial_json)
        if chars:
            self.reading.text_chars += chars
            self.reading.said_something = True

    def _on_event(self, frame: bytes) -> None:
        data = sse.data(frame)
        if not data:
            return
        reading = self.reading
        match _type(data, frame):
            case "content_block_delta":
                self._note_delta(_decode_delta(_without_surrogates(data)).delta)
            case "content_block_start":
                _note_block(reading, _block(data))
            case "message_start":
                _note_message(reading, _started(data))
            case "message_delta":
                self._on_message_delta(_message_delta(data))
            case "message_stop":
                if not reading.error_type:  # which is terminal: what comes after it makes nothing whole
                    reading.complete = reading.final = True
            case "error":
                reading.error_type = _error_type(data)
            case _:
                pass  # content_block_stop, ping, and events yet to be invented

    def _on_message_delta(self, event: _MessageDeltaEvent) -> None:
        reading = self.reading
        if event.usage is not None:
            reading.usage = overlay(reading.usage or {}, _usage(event.usage))
        stop_reason = event.delta.get("stop_reason") if isinstance(event.delta, dict) else None
        if isinstance(stop_reason, str):
            reading.stop_reason = stop_reason
            reading.final = True


class JsonMeter:
    """Meters `application/json`: keeps a copy of the body and reads it once at the end."""

    def __init__(self, metrics: Metrics) -> None:
        self.reading = Reading()
        self._metrics = metrics
        self._body = bytearray()
        self._oversized = False

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body."""
        self.reading.text_chars += len(chunk)  # what it is billed by if it does not come to its end
        if len(self._body) + len(chunk) > JSON_BYTES_MAX:
            self._oversized = True
            self._body.clear()
        if not self._oversized:
            self._body += chunk

    def end(self) -> None:
        """Read the whole answer. Never raises."""
        if self._oversized:
            self._metrics.add("relay_meter_errors_total", "oversized")
            return
        body, self._body = bytes(self._body), bytearray()
        reading = self.reading
        try:
            message = _message(body)
        except _UNREADABLE:
            self._metrics.add("relay_meter_errors_total", "json")
            return
        _note_message(reading, message)
        reading.complete = reading.final = True
        for block in message.content:
            _note_block(reading, block)


class GzipMeter:
    """Reads through a content coding that was never asked for: the bytes pass as they came, the copy is unpacked."""

    def __init__(self, inner: Meter, metrics: Metrics) -> None:
        self.reading = inner.reading
        self._inner = inner
        self._metrics = metrics
        self._unzip = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
        self._plain_bytes = 0
        self._failed = False

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes of the body. Never raises, and never unpacks more than 64 KB at a time."""
        if self._failed:
            return
        try:
            self._unpack(chunk)
        except zlib.error:
            self._fail("gzip")

    def _unpack(self, chunk: bytes) -> None:
        while True:
            if self._unzip.eof:  # several members, one after another (RFC 1952, 2.2)
                if not chunk:
                    return
                self._unzip = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
            plain = self._unzip.decompress(chunk, _PLAIN_CHUNK_BYTES)
            chunk = self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail
            self._plain_bytes += len(plain)
            if self._plain_bytes > PLAIN_BYTES_MAX:
                self._fail("oversized")
                return
            if plain:
                self._inner.feed(plain)
            elif not self._unzip.eof:
                return

    def end(self) -> None:
        """The body came to a clean end."""
        self._inner.end()

    def _fail(self, why: str) -> None:
        self._failed = True
        self._metrics.add("relay_meter_errors_total", why)


def _type(data: bytes, frame: bytes) -> str:
    try:
        return _decode_type(data).type
    except _UNREADABLE:
        return sse.event_name(frame).decode("ascii", "replace")


def _started(data: bytes) -> _Message:
    try:
        return _decode_start(data).message
    except _UNREADABLE:
        return _loose_message(_members(data).get("message", b""))


def _message(body: bytes) -> _Message:
    try:
        return _decode_message(body)
    except _UNREADABLE:
        return _loose_message(body)


def _loose_message(text: bytes) -> _Message:
    """Field by field. Content that cannot be read is content all the same. Raises NotAnObject."""
    members = _members(text)
    content = members.get("content", b"null")
    try:
        blocks = [] if content == b"null" else _decode_blocks(_without_surrogates(content))
    except _UNREADABLE:
        blocks = [_Block(type="unreadable")]
    fields = {name: _loose(members, name) for name in ("model", "usage", "stop_reason")}
    return _Message(**fields, content=blocks)


def _message_delta(data: bytes) -> _MessageDeltaEvent:
    try:
        return _decode_message_delta(data)
    except _UNREADABLE:
        members = _members(data)
        return _MessageDeltaEvent(delta=_loose(members, "delta"), usage=_loose(members, "usage"))


def _block(data: bytes) -> _Block:
    try:
        return _decode_block(_without_surrogates(data)).content_block
    except _UNREADABLE:
        return _Block(type="unreadable")


def _error_type(data: bytes) -> str:
    try:
        return _decode_error(data).error.type or "api_error"
    except _UNREADABLE:
        return "api_error"


def _members(text: bytes) -> dict[str, bytes]:
    return dict(tolerant.top_level(text))


def _loose(members: dict[str, bytes], name: str) -> Any:
    try:
        return _decode_any(_without_surrogates(members.get(name, b"null")))
    except _UNREADABLE:
        return UNREADABLE_USAGE if name == "usage" else None


def _without_surrogates(text: bytes) -> bytes:
    """Lone surrogates become private-use characters; of whole pairs too, each half counts as one."""
    return text.replace(rb"\ud", rb"\ue").replace(rb"\uD", rb"\uE")


def _note_message(reading: Reading, message: _Message) -> None:
    if isinstance(message.model, str):
        reading.model = message.model
    if isinstance(message.stop_reason, str):
        reading.stop_reason = message.stop_reason
    if message.usage is not None:
        reading.usage_start = reading.usage = _usage(message.usage)


def _usage(value: Any) -> Usage:
    """What is there and cannot be read has no price: accounting parks it, and nobody takes it for nothing."""
    return value if isinstance(value, dict) else {UNREADABLE_USAGE: 1}


def _note_block(reading: Reading, block: _Block) -> None:
    if block.type == "fallback":
        declined = block.from_.get("model") if isinstance(block.from_, dict) else None
        if isinstance(declined, str) and not reading.said_something:
            reading.declined_models.append(declined)
        return
    reading.blocks += 1
    if block.type != "text" or block.text:
        reading.said_something = True
