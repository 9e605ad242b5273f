"""One connection of a caller: uvicorn's httptools protocol, plus the limits, deadlines and refusals it lacks.

llhttp parses and judges; this module cuts the bytes so that llhttp sees one head or one body at a time: sizes are exact, and a
pipelined request stays unread until the one before it is answered. A connection is always in one phase:

    IDLE ─first byte─► HEAD ─blank line─► BODY ─last byte─► ANSWER ─answered─► IDLE
                         └─── refused ──────┴──── closing ─────┴─► DISCARD ──► gone

One coarse timer a process looks at all deadlines. ANSWER has none: an answer may stay silent for 600 s, and only a caller who
does not take our bytes ends it. What is refused is answered here; the application's `receive()` then says `http.disconnect`.
"""

import logging
import math
import sys
from collections.abc import Callable
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from libs.common.errors import BadRequest, Overloaded, RelayError
from services.gateway.cycle import CONTINUE, BodyBudget, CallerSide, Cycle, caller_side, refusal, reset, scope_of
from services.gateway.framing import (
    BodyTimedOut,
    HeadTimedOut,
    HeadTooLarge,
    ServerLimits,
    head_error,
    too_large,
)

_log: Final = logging.getLogger("relay.server")
_IDLE: Final = 0
_HEAD: Final = 1
_BODY: Final = 2
_ANSWER: Final = 3
_DISCARD: Final = 4
_BLANK_LINE: Final = b"\r\n\r\n"
_FRAMING_SHARE_MAX: Final = 8
"""Of chunk sizes, extensions and trailers, for each byte of a chunked body; a chunk of one byte needs five."""


class RelayProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    cycle: Cycle
    # Beyond 30 attributes CPython 3.11 gives each instance a dictionary layout of its own, which slows every access.
    __slots__ = (
        "_body_bytes",
        "_body_left",
        "_chunked",
        "_discarded_bytes",
        "_framing_bytes",
        "_head",
        "_held",
        "_limits",
        "_on_refused",
        "_phase",
        "_refusal",
        "_shutting_down",
        "budget",
        "deadline",
        "half_closed",
        "stalled_at",
    )

    def __init__(
        self, *, limits: ServerLimits, budget: BodyBudget, on_refused: Callable[[str], None], **uvicorn_arguments: Any
    ) -> None:
        super().__init__(**uvicorn_arguments)
        self.budget = budget
        self.deadline = self.loop.time() + limits.keep_alive_seconds
        self.stalled_at = math.inf
        """When the caller will have left our bytes untouched for too long."""
        self.half_closed = False
        self._limits = limits
        self._on_refused = on_refused
        self._phase = _IDLE
        self._refusal: RelayError | None = None
        """Why a callback stopped the parser."""
        self._shutting_down = False
        self._head = b""
        self._body_bytes = 0
        self._body_left = 0
        self._chunked = False
        self._framing_bytes = 0
        self._held = b""
        self._discarded_bytes = 0

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _DISCARD
        self._head = self._held = b""
        super().connection_lost(exc)
        if self.cycle is not None:
            self.cycle.tell_left()

    def data_received(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            phase = self._phase
            if phase == _IDLE:
                start = self._begin_head(data, start)
            elif phase == _HEAD:
                start = self._take_head(data, start)
            elif phase == _BODY:
                start = self._take_body(data, start)
            else:
                self._set_aside(data[start:])
                return

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller sends no more. Whether he waits for the answer or has left shows when something is written to him."""
        self.half_closed = True
        return self._after_eof()

    def pause_writing(self) -> None:
        self.stalled_at = self.loop.time() + self._limits.reader_stalled_seconds
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled_at = math.inf
        super().resume_writing()

    def shutdown(self) -> None:
        """uvicorn goes down: what has begun is answered, an idle connection ends now."""
        self._shutting_down = True
        if self._phase == _IDLE:
            self._finish()
        elif self._phase in (_BODY, _ANSWER):
            self.cycle.keep_alive = False

    # -- one head or one body at a time; each returns how far it got in `data` ------------------------------------------

    def _begin_head(self, data: bytes, start: int) -> int:
        if data[start] in b"\r\n":  # RFC 9112, 2.2: empty lines before a request mean nothing
            return len(data) - len(data[start:].lstrip(b"\r\n"))
        self._phase = _HEAD
        self._head = b""
        self.deadline = self.loop.time() + self._limits.head_seconds
        return start

    def _take_head(self, data: bytes, start: int) -> int:
        before = len(self._head)
        # One byte over the limit is enough to see that it is crossed; the rest may be many pipelined requests.
        head = self._head + data[start : start + self._limits.head_bytes_max + 1 - before]
        found = head.find(_BLANK_LINE, max(before - 3, 0))
        self._head = head = head[: found + 4] if found >= 0 else head
        if len(head) > self._limits.head_bytes_max:
            self._refuse(HeadTooLarge(self._limits))
        elif not head.isascii():
            self._refuse(BadRequest("The path or a header holds a byte that is not ASCII."))
        else:
            self._parse(head[before:])
        return start + len(head) - before

    def _take_body(self, data: bytes, start: int) -> int:
        piece = data[start : start + self._body_left]
        before = self._body_bytes
        self._parse(piece)
        if self._chunked and self._phase == _BODY:  # llhttp would take any number of extensions and trailers
            self._framing_bytes += len(piece) - (self._body_bytes - before)
            if self._framing_bytes > self._limits.head_bytes_max + _FRAMING_SHARE_MAX * self._body_bytes:
                self._refuse(HeadTooLarge(self._limits))
        return start + len(piece)

    def _set_aside(self, data: bytes) -> None:
        """What comes before the answer is out waits for it unread; what comes before the end is thrown away."""
        if self._phase == _ANSWER and self.cycle.keep_alive:
            self._held += data
            if len(self._held) > self._limits.pipelined_bytes_max:
                self.flow.pause_reading()
            return
        self._discarded_bytes += len(data)
        if self._discarded_bytes > self._limits.linger_bytes_max:
            self.transport.abort()

    def _parse(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._parse_without_upgrade()
        except httptools.HttpParserError:
            if self._phase == _ANSWER:
                # Behind a chunked body, in the same read, came more. The parser cannot stop in between: this answer is the last.
                self.cycle.keep_alive = False
            elif self._phase == _IDLE:  # the same, and the answer was even earlier
                self._linger()
            else:
                self._refuse(self._refusal or BadRequest("This is not an HTTP/1.1 request the relay can read."))

    def _parse_without_upgrade(self) -> None:
        """llhttp ends a message at an Upgrade header, its body unread. We do not upgrade: read the head again without it."""
        lines = self._head.split(b"\r\n")
        self._head = b"\r\n".join([line for line in lines if not line.lower().startswith(b"upgrade:")])
        self.parser = httptools.HttpRequestParser(self)
        self._parse(self._head)

    # -- httptools -----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._phase != _HEAD:
            raise ValueError("a request in the same read, behind a chunked body")
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        headers, self.headers = self.headers, []  # what comes later are trailers: they go nowhere
        by_name = dict(headers)
        size = int(by_name.get(b"content-length", 0))
        self._refusal = head_error(self.url, version, headers, by_name, size, self._limits)
        method = self.parser.get_method()
        if self._refusal is None and method == b"CONNECT":  # an upgrade by itself, which no missing header undoes
            self._refusal = BadRequest("The relay opens no tunnels.")
        if self._refusal is not None:
            raise self._refusal
        if self.parser.should_upgrade():
            return
        self._chunked, self._body_bytes, self._framing_bytes = b"transfer-encoding" in by_name, 0, 0
        self._body_left = sys.maxsize if self._chunked else size
        if size or self._chunked:
            self.deadline = self.loop.time() + self._body_seconds(size)
        expects = version == "1.1" and by_name.get(b"expect", b"").lower() == b"100-continue"
        # Who waits for 100 Continue and gets the answer instead may or may not send his body: keep alive only once it is here.
        keep_alive = version == "1.1" and self.parser.should_keep_alive() and not (expects or self._shutting_down)
        self.scope = scope_of(self, method.decode("ascii"), self.url, version, headers)
        self.cycle = Cycle(self, keep_alive=keep_alive, expects_continue=expects, body_is_chunked=self._chunked)
        self._phase = _BODY
        self._head = b""
        self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._body_left -= size
        self._body_bytes += size
        cycle = self.cycle
        if self._body_bytes > self._limits.body_bytes_max:
            self._refusal = too_large(self._limits)
            raise self._refusal
        if cycle.response_complete:
            return
        if not cycle.take_body(body):
            self._refusal = Overloaded("The relay is busy with other requests. Nothing was charged; please try again.")
            raise self._refusal

    def on_message_complete(self) -> None:
        if self._phase == _HEAD:  # an Upgrade: `_parse_without_upgrade` comes next
            return
        cycle = self.cycle
        if cycle.response_complete:
            self._become_idle()
            return
        self._phase = _ANSWER
        self.deadline = math.inf
        if not cycle.keep_alive and not cycle.response_started and self.scope["http_version"] == "1.1":
            cycle.keep_alive = self.parser.should_keep_alive() and not self._shutting_down
        cycle.more_body = False
        cycle.message_event.set()

    # -- answering and ending ------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Called by the cycle: its answer has been written whole."""
        self.server_state.total_requests += 1
        if self._phase == _ANSWER:
            self._become_idle()
        elif self._phase == _BODY:
            self.flow.resume_reading()  # the rest of the body is read and thrown away

    def _become_idle(self) -> None:
        self._phase = _IDLE
        self.deadline = self.loop.time() + self._limits.keep_alive_seconds
        self.flow.resume_reading()
        if self._held:
            held, self._held = self._held, b""
            self.data_received(held)
        if self.half_closed:
            self._after_eof()
        elif self._shutting_down and self._phase == _IDLE:
            self._finish()

    def _after_eof(self) -> bool:
        """Whether an answer is still due on a connection whose caller sends no more."""
        if self._phase == _ANSWER:
            if not self.cycle.response_started and self.scope["http_version"] == "1.1":
                self.transport.write(CONTINUE)  # a caller who has left answers it with a reset: see `expire`
            return True
        if self._phase == _IDLE:
            self._finish()
        elif self._phase != _DISCARD:
            self._refuse(BadRequest("The connection ended before the request did."))
        return False

    def close(self) -> None:
        """Called by the cycle: its answer, whole or broken, is the last on this connection."""
        if self._phase == _BODY or self._held or self._discarded_bytes:
            self._linger()
        elif self._phase != _DISCARD:
            self._finish()

    def break_off(self) -> None:
        """Called by the cycle: its answer ends here, and is not whole."""
        self.cycle.flush()
        if self.cycle.end_is_marked:
            self.close()
        else:
            self._reset()

    def _refuse(self, error: RelayError) -> None:
        """Answer in the application's stead, and close."""
        interrupted = self.cycle if self._phase == _BODY else None
        self._on_refused(type(error).__name__)
        _log.warning("refused %s with %d: %s", self.client, error.status, error.message)
        if interrupted is None or not interrupted.response_started:
            self.transport.write(refusal(error, self.server_state.default_headers))
        if interrupted is not None and not interrupted.response_complete:
            interrupted.flush()
            interrupted.disconnected = True
            interrupted.message_event.set()
            interrupted.tell_left()
            if interrupted.response_started and not interrupted.end_is_marked:
                self._reset()
                return
        self._linger()

    def _linger(self) -> None:
        """Close our side and go on reading for a while: closing on unread bytes would reset the answer away."""
        if self.half_closed or not self.transport.can_write_eof():
            self._finish()
            return
        self._phase = _DISCARD
        self.deadline = self.loop.time() + self._limits.linger_seconds
        self.flow.resume_reading()
        self.transport.write_eof()

    def _finish(self) -> None:
        """Close once all is written; `expire` ends it if the caller does not take it."""
        self._phase = _DISCARD
        self.deadline = self.loop.time() + self._limits.reader_stalled_seconds
        self.transport.close()

    def _reset(self) -> None:
        """End at once and visibly broken. The kernel, too, forgets what the caller has not taken."""
        self._phase = _DISCARD
        reset(self.transport)

    def cut(self) -> None:
        """The shutdown waits no longer. A request that is being answered ends through its task."""
        if self._phase not in (_BODY, _ANSWER):
            self.transport.abort()

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def _body_seconds(self, size: int) -> float:
        return self._limits.body_seconds + size / self._limits.body_bytes_per_second_min

    def expire(self, now: float) -> None:
        """Called by the sweep when something may be due."""
        if now >= self.stalled_at:
            self._on_refused("ReaderStalled")
            _log.warning("closed %s: it does not take its answer", self.client)
            self._reset()
            return
        if self.half_closed or self.flow.read_paused:
            side = caller_side(self.transport)
            if side is CallerSide.GONE:
                self.transport.abort()
                return
            if side is CallerSide.ENDED and self._phase == _ANSWER and not self.half_closed:
                self.eof_received()  # it stands behind what we do not read
        if now < self.deadline:
            return
        if self._phase == _HEAD:
            self._refuse(HeadTimedOut())
        elif self._phase == _BODY:
            self._expire_body(now)
        elif self._phase == _IDLE:
            self._finish()
        elif self.transport.get_write_buffer_size():
            self._reset()
        else:
            self.transport.abort()

    def _expire_body(self, now: float) -> None:
        if self.flow.read_paused:  # it is we who do not read
            self.deadline = now + self._body_seconds(0)
        elif not self._chunked or now >= self.deadline + self._body_bytes / self._limits.body_bytes_per_second_min:
            self._refuse(BodyTimedOut())
