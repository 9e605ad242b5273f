"""The HTTP server's edge: uvicorn on httptools, plus the limits and deadlines it lacks. Threats: RELIABILITY.md.

One coarse timer a process looks at all connections; nothing is set up or torn down per request or per chunk.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from libs.common import ids
from libs.common.errors import error_body
from services.gateway.headers import Headers

_SINGLETONS: Final = frozenset(
    {b"host", b"content-length", b"content-type", b"x-api-key", b"authorization", b"anthropic-version"}
)
_VALUE_ODD: Final = re.compile(rb"[^\x20-\x7e\t]")
_SWEEP_S_MAX: Final = 1.0
_LINGER_S: Final = 2.0
_PHRASES: Final = {400: b"Bad Request", 408: b"Request Timeout", 413: b"Content Too Large", 431: b"Headers Too Large"}


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one connection may do. Bytes, seconds, counts."""

    headers_max: int = 100
    head_bytes_max: int = 32 * 1024
    head_seconds: float = 10.0
    body_bytes_max: int = 32 * 1024 * 1024
    body_seconds: float = 30.0
    """For a body to be complete, plus its size over `body_bytes_per_second_min`."""
    body_bytes_per_second_min: int = 64 * 1024
    reader_stalled_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    pipelined_max: int = 8


class BodyBudget:
    """Bytes of request bodies in memory, over all connections of the process."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether new requests must wait."""
        return self.bytes_held >= self.bytes_max


class Violation(Exception):
    """A request that breaks a rule of HTTP or a limit of ours; raised inside the parser's callbacks."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


class RelayProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    def __init__(self, *, limits: ServerLimits, budget: BodyBudget, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self._limits = limits
        self._budget = budget
        self._violation: Violation | None = None
        self._refused = False
        self._head_since = 0.0
        """When the head that is being read began; 0 when none is."""
        self._head_bytes = 0
        self._body_since = 0.0
        """When the body that is being read began; 0 when none is."""
        self._body_declared = 0
        self._body_seen = 0
        self._quiet_since = self.loop.time()
        self._write_paused_since = 0.0

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _sweep_later(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_body()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._body_since:
            self._head_bytes += len(data)
        self._quiet_since = self.loop.time()
        super().data_received(data)
        if self._head_since and self._head_bytes > self._limits.head_bytes_max and not self._refused:
            self._refuse(_head_too_large(self._limits))

    def pause_writing(self) -> None:
        self._write_paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._write_paused_since = 0.0
        super().resume_writing()

    # -- httptools ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        if len(self.headers) > self._limits.headers_max:
            self._break(_head_too_large(self._limits))

    def on_headers_complete(self) -> None:
        self._head_since = 0.0
        self._check_head()
        if len(self.pipeline) >= self._limits.pipelined_max:
            self._break(_bad("Too many requests were sent on this connection without waiting for an answer."))
        super().on_headers_complete()
        self._forget_body()
        self._body_since = self.loop.time()
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._body_seen += len(body)
        self._budget.bytes_held += len(body)
        if self._body_seen > self._limits.body_bytes_max:
            self._break(_too_large(self._limits))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_since = 0.0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._forget_body()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for whatever the parser or a callback of ours could not accept."""
        self._refuse(self._violation or _bad("This is not an HTTP/1.1 request the relay can read."))

    # -- rules -------------------------------------------------------------------------------------------------------

    def _check_head(self) -> None:
        headers = self.headers
        names = [name for name, _ in headers]
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._limits.head_bytes_max:
            self._break(_head_too_large(self._limits))
        if _VALUE_ODD.search(b" ".join([value for _, value in headers])):
            self._break(_bad("A header holds a byte that is not printable ASCII."))
        if not self.url.startswith(b"/") or b"#" in self.url:
            self._break(_bad("The request target must be a path on this server."))
        if len(names) != len(set(names)):
            for name in _SINGLETONS:
                if names.count(name) > 1:
                    self._break(_bad(f"The header {name.decode()} stands more than once."))
        if b"host" not in names and self.parser.get_http_version() == "1.1":
            self._break(_bad("The header host is missing."))
        self._check_framing(headers, names)

    def _check_framing(self, headers: Headers, names: list[bytes]) -> None:
        self._body_declared = 0
        if b"transfer-encoding" in names:
            codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
            if b"content-length" in names or codings != [b"chunked"]:
                self._break(_bad("The length of the body is not clear: use content-length, or chunked alone."))
        elif b"content-length" in names:
            value = next(value for name, value in headers if name == b"content-length")
            if not value.isdigit():
                self._break(_bad("content-length is not a number."))
            self._body_declared = int(value)
            if self._body_declared > self._limits.body_bytes_max:
                self._break(_too_large(self._limits))

    def _break(self, violation: Violation) -> None:
        """Leave the parser; uvicorn turns any exception of a callback into `send_400_response`."""
        self._violation = violation
        raise violation

    def _refuse(self, violation: Violation) -> None:
        """Answer with an error and close, reading on for a moment so that the answer is not lost to a reset."""
        self._refused = True
        cycle = self.cycle
        in_body = bool(self._body_since)
        busy = cycle is not None and not cycle.response_complete
        if self.pipeline or (busy and (cycle.response_started or not in_body)):
            self.transport.abort()  # another answer is on its way: ours would end up in the middle of it
            return
        if busy:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(_answer(violation))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def _forget_body(self) -> None:
        self._budget.bytes_held -= self._body_seen
        self._body_seen = 0

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """Called by the sweep about once a second."""
        limits = self._limits
        if self._refused:
            return
        if self._write_paused_since and now - self._write_paused_since > limits.reader_stalled_seconds:
            self.transport.abort()
        elif self._head_since and now - self._head_since > limits.head_seconds:
            self._refuse(Violation(408, "timeout_error", "The request's headers did not arrive in time."))
        elif self._body_since and not self.flow.read_paused and now > self._body_deadline():
            self._refuse(Violation(408, "timeout_error", "The request's body did not arrive in time."))
        elif self._is_idle() and now - self._quiet_since > limits.keep_alive_seconds:
            self.transport.close()

    def _body_deadline(self) -> float:
        size = max(self._body_declared, self._body_seen)
        return self._body_since + self._limits.body_seconds + size / self._limits.body_bytes_per_second_min

    def _is_idle(self) -> bool:
        return self.cycle is None and not self._head_since and not self._body_since

    @property
    def sweep_period(self) -> float:
        """Seconds between two looks; shorter where a limit is short."""
        limits = self._limits
        shortest = min(
            limits.head_seconds, limits.body_seconds, limits.reader_stalled_seconds, limits.keep_alive_seconds
        )
        return min(_SWEEP_S_MAX, shortest / 4)


def make_server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    limits: ServerLimits,
    body_budget: BodyBudget,
    shutdown_seconds: int,
) -> uvicorn.Server:
    """A server that is ready to `serve()`. Signals are uvicorn's: SIGTERM and SIGINT end it gracefully."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=functools.partial(RelayProtocol, limits=limits, budget=body_budget),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=int(limits.keep_alive_seconds) or 1,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    return uvicorn.Server(config)


def connection_listed(headers: Headers) -> frozenset[bytes]:
    """Header names that `connection` declares hop-by-hop, lower case."""
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
        if token.strip()
    )


_sweeping: Final[set[int]] = set()
"""Ids of the connection sets that have a timer: one a server."""


def _sweep_later(protocol: RelayProtocol) -> None:
    connections = protocol.connections
    if id(connections) in _sweeping:
        return
    _sweeping.add(id(connections))

    def sweep() -> None:
        now = protocol.loop.time()
        for connection in list(connections):
            if isinstance(connection, RelayProtocol):
                connection.check_deadlines(now)
        if connections:
            protocol.loop.call_later(protocol.sweep_period, sweep)
        else:
            _sweeping.discard(id(connections))

    protocol.loop.call_later(protocol.sweep_period, sweep)


def _bad(message: str) -> Violation:
    return Violation(400, "invalid_request_error", message)


def _too_large(limits: ServerLimits) -> Violation:
    size = limits.body_bytes_max // (1024 * 1024)
    return Violation(413, "request_too_large", f"The request is larger than {size} MB; send less.")


def _head_too_large(limits: ServerLimits) -> Violation:
    return Violation(
        431,
        "invalid_request_error",
        f"The request has more than {limits.headers_max} headers, or more than {limits.head_bytes_max} bytes of them.",
    )


def _answer(violation: Violation) -> bytes:
    request_id = ids.new_request_id()
    body = error_body(violation.kind, violation.message, request_id)
    identifier = request_id.encode()
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nrequest-id: %s\r\n"
        b"x-relay-request-id: %s\r\nconnection: close\r\n\r\n"
    ) % (violation.status, _PHRASES[violation.status], len(body), identifier, identifier) + body
