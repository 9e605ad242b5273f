"""One request on a caller's connection, and how its answer is written. uvicorn's cycle, with its differences:

The head is checked as a whole; HTTP/1.0 gets no chunks; our own 500 has Anthropic's shape; a connection that must close does
so through the protocol, which knows whether the caller is still sending.
"""

import asyncio
import enum
import logging
import socket
import struct
import sys
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, Protocol

from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent, HTTPScope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from libs.common import ids
from libs.common.errors import InternalError, Overloaded, RelayError
from services.gateway.asgi import answer_of
from services.gateway.headers import Headers
from services.gateway.outlet import EXTENSION

_log: Final = logging.getLogger("relay.server")
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING: Final = frozenset({b"connection", b"transfer-encoding"})
"""Said by us alone."""
_BODILESS: Final = frozenset({204, 304})
_OWN_FAULT: Final = "The relay failed while it handled this request."
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_TCP_CLOSE: Final = 7
_TCP_CLOSE_WAIT: Final = 8
_CUT: Final = "The relay is being restarted; please try again."


class BodyBudget:
    """Bytes of request bodies in memory, over all connections of the process.

    A body counts from its arrival until its answer begins, or its handler has returned. Who sends the byte that is too many is
    refused with 529 by the server; the application looks at `is_exhausted` to refuse before it reads.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether new requests must wait."""
        return self.bytes_held >= self.bytes_max


class Edge(Protocol):
    """What a cycle needs of its connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    scope: HTTPScope
    budget: BodyBudget
    server_state: ServerState
    app_state: dict[str, Any]
    scheme: Literal["http", "https"] | None
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    access_logger: logging.Logger

    def on_response_complete(self) -> None:
        """The answer is whole; the next request may be read."""

    def close(self) -> None:
        """End the connection once what was written has gone out."""

    def break_off(self) -> None:
        """End the connection so that nobody takes what was written for a whole answer."""


class Cycle(RequestResponseCycle):
    """See the module's docstring. It is an `outlet.Outlet` too, which the application finds in its scope."""

    def __init__(self, edge: Edge, *, keep_alive: bool, expects_continue: bool, body_is_chunked: bool) -> None:
        super().__init__(
            edge.scope,
            edge.transport,
            edge.flow,
            _log,
            edge.access_logger,
            access_log=False,
            default_headers=edge.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_continue,
            keep_alive=keep_alive,
            on_response=edge.on_response_complete,
        )
        self._edge = edge
        self._pieces: list[bytes] = []
        """Of the request's body: what has come and was not received yet."""
        self._unread_bytes = 0
        self._body_bytes = 0
        self._body_is_chunked = body_is_chunked
        self._has_body = True
        self._due: int | None = None
        """Bytes of the answer still due; None where its length is not declared."""
        self._unsent = b""
        """The head, until something follows it; what is held for the end."""
        self._holding = False
        self._in_chunks = False
        """The caller is there, and the next piece is a chunk like the one before: the road of nearly all of them."""
        self._on_left: Callable[[], None] | None = None
        edge.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def take_body(self, piece: bytes) -> bool:
        """A piece of the request's body, kept until it is received. False: the process holds too many bytes of bodies."""
        self._pieces.append(piece)
        self._unread_bytes += len(piece)
        if self._unread_bytes > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.message_event.set()
        if self.response_started:
            return True
        budget = self._edge.budget
        self._body_bytes += len(piece)
        budget.bytes_held += len(piece)
        return budget.bytes_held <= budget.bytes_max

    async def receive(self) -> ASGIReceiveEvent:
        """ASGI. What has come of the body, as it was read from the socket where that was one read."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(CONTINUE)
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self._pieces = self._pieces, []
        self._unread_bytes = 0
        self.flow.resume_reading()  # also behind the last piece: who is not read from leaves unseen
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def _release_body(self) -> None:
        if self._body_bytes:
            self._edge.budget.bytes_held -= self._body_bytes
            self._body_bytes = 0

    @property
    def end_is_marked(self) -> bool:
        """Whether the answer that has begun says itself where it ends, so that a connection closed early shows."""
        return bool(self.chunked_encoding) or self._due is not None or not self._has_body

    async def run_asgi(self, app: ASGI3Application) -> None:
        """The request's task. An application that returns in mid-answer breaks the connection: nobody takes that for an end."""
        failure: RelayError | None = None
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # by the server, whose shutdown has waited long enough
            _log.warning("a request was cut by the shutdown")
            failure = Overloaded(_CUT)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets an answer
            _log.error("the application failed", exc_info=error)
        try:
            if self.disconnected or self.response_complete:
                return
            if self.response_started:
                self._edge.break_off()
            else:
                await self._answer_failure(failure or InternalError(_OWN_FAULT))
        finally:
            self._release_body()
            self._pieces.clear()
            self.scope.pop("extensions", None)  # it refers to us, and we to it

    async def _answer_failure(self, error: RelayError) -> None:
        """The application has failed without a word."""
        request_id = ids.new_request_id()
        status, headers, body = answer_of(error, request_id)
        _log.error("answered %d in the application's stead, as %s", status, request_id)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def send(self, message: ASGISendEvent) -> None:
        """ASGI. Waits while the caller does not take what was written."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError(f"{message['type']} after the answer was complete")
        if message["type"] == "http.response.body" and self.response_started:
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self.response_started:
            self._send_head(message["status"], message.get("headers", ()))
            self._edge.loop.call_soon(self.flush)
        else:
            raise RuntimeError(f"{message['type']} is out of order")

    # -- Outlet --------------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """See Outlet."""
        return self.flow.write_paused and not (self.disconnected or self.response_complete)

    async def drained(self) -> None:
        """See Outlet."""
        await self.flow.drain()

    def begin(self, status: int, headers: Headers) -> None:
        """See Outlet."""
        if self.response_started:
            raise RuntimeError("the answer has begun")
        if not self.disconnected:
            self._send_head(status, headers)

    def write(self, chunk: bytes) -> bool:
        """See Outlet."""
        if self._in_chunks:
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            return self.flow.write_paused
        if self.disconnected:
            return False
        if self.response_complete or not self.response_started:
            raise RuntimeError("a piece of the answer is out of order")
        self._send_body(chunk, more=True)
        self._in_chunks = bool(self.chunked_encoding) and not self._holding
        return self.flow.write_paused

    def hold(self) -> None:
        """See Outlet."""
        self._holding = True
        self._in_chunks = False

    def end(self) -> None:
        """See Outlet."""
        if self.disconnected:
            return
        self._in_chunks = False
        if self.response_complete or not self.response_started:
            raise RuntimeError("the end of the answer is out of order")
        self._send_body(b"", more=False)

    def watch(self, left: Callable[[], None]) -> None:
        """See Outlet."""
        self._on_left = left
        if self.disconnected:
            self.tell_left()

    def unwatch(self) -> None:
        """See Outlet."""
        self._on_left = None

    def tell_left(self) -> None:
        """Called by the connection when it is over: the caller is gone, if his answer was not whole."""
        self._in_chunks = False
        left, self._on_left = self._on_left, None
        if left is not None and self.disconnected:
            left()

    # ------------------------------------------------------------------------------------------------------------------

    def _send_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """`headers` as ASGI has them: names in lower case."""
        self.waiting_for_100_continue = False
        self._has_body = self.scope["method"] != "HEAD" and status not in _BODILESS
        if self._body_is_chunked and self.more_body:
            # What he sends next may come in one read with the end of this body, where the parser cannot stop in between.
            self.keep_alive = False
        by_name = dict(headers)
        if (length := by_name.get(b"content-length")) is not None:
            self._due = int(length)
        if (wish := by_name.get(b"connection")) is not None:
            self.keep_alive = self.keep_alive and b"close" not in wish.lower()
        if wish is not None or b"transfer-encoding" in by_name:
            headers = [pair for pair in headers if pair[0] not in _FRAMING]
        lines = [STATUS_LINE[status][:-2], *[name + b": " + value for name, value in (*self.default_headers, *headers)]]
        self.chunked_encoding = False
        if self._due is None and self._has_body:
            if self.scope["http_version"] == "1.1":
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked")
            else:
                self.keep_alive = False  # the end of the connection is the end of the body
        if not self.keep_alive:
            lines.append(b"connection: close")
        lines += (b"", b"")
        head = b"\r\n".join(lines)
        breaks = len(lines) - 1
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head or not head.isascii():
            raise RuntimeError("a line break, a NUL or a byte beyond ASCII inside a response header")
        self.response_started = True
        self._release_body()
        self._unsent = head

    def _put(self, data: bytes, *, more: bool) -> None:
        """Write what begins with all that was unsent."""
        if self._holding and more:
            self._unsent = data
            return
        self._unsent = b""
        if data:
            self.transport.write(data)

    def flush(self) -> None:
        """See Outlet. Also for what was held for an end that does not come."""
        if self._unsent and not self.disconnected:
            unsent, self._unsent = self._unsent, b""
            self.transport.write(unsent)

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self._has_body:
            self._due = 0
        elif self.chunked_encoding:
            pieces = [self._unsent, b"%x\r\n" % len(body), body, b"\r\n"] if body else [self._unsent]
            if not more:
                pieces.append(b"0\r\n\r\n")
            self._put(b"".join(pieces), more=more)
        else:
            if self._due is not None:
                self._due -= len(body)
                if self._due < 0:
                    raise RuntimeError("the body is longer than its content-length")
            self._put(self._unsent + body if self._unsent else body, more=more)
        if more:
            return
        if self._due:
            raise RuntimeError("the body is shorter than its content-length")
        self.flush()  # where there is no body
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self._edge.close()
        self.on_response()


def scope_of(edge: Edge, method: str, target: bytes, version: str, headers: Headers) -> HTTPScope:
    """ASGI's view of a request head. `target` is a path, as it came."""
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version,
        "method": method,
        "scheme": edge.scheme or "http",
        "path": urllib.parse.unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": edge.client,
        "server": edge.server,
        "state": edge.app_state.copy(),
    }


def refusal(error: RelayError, default_headers: Headers) -> bytes:
    """The whole answer to a request that no application will see."""
    status, headers, body = answer_of(error, ids.new_request_id())
    headers = [*default_headers, *headers, (b"connection", b"close")]
    return b"\r\n".join([STATUS_LINE[status][:-2], *(b"%b: %b" % pair for pair in headers), b"", body])


class CallerSide(enum.Enum):
    """What the caller's end of a connection is known to do, whether or not we read from it."""

    SENDS = "sends"
    ENDED = "ended"
    """He sends no more, and reads or has left."""
    GONE = "gone"


def caller_side(transport: asyncio.Transport) -> CallerSide:
    """Ask the kernel: an event loop that does not read a connection does not see its end."""
    peer = transport.get_extra_info("socket")
    if peer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return CallerSide.GONE
    if sys.platform == "linux":
        state = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _TCP_CLOSE:
            return CallerSide.GONE
        if state == _TCP_CLOSE_WAIT:
            return CallerSide.ENDED
    return CallerSide.SENDS


def reset(transport: asyncio.Transport) -> None:
    """End a connection visibly broken; what was written and not taken is forgotten, by the kernel too."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
