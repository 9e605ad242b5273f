"""A small HTTP/1.1 server that can misbehave on purpose: what uvicorn would never send must be sendable here."""

import asyncio
import contextlib
import hashlib
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import httptools

from libs.common.runtime import spawn

Headers = list[tuple[bytes, bytes]]
_PHRASES: Final = {200: b"OK", 302: b"Found", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found"}
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_SEND_BUFFER_BYTES: Final = 128 * 1024
"""Small and fixed: what the invoice calls sent must not be megabytes ahead of what the caller has received."""


class PeerGone(Exception):
    """The connection is closed, by the caller or by us."""


class Request:
    """One request, whole."""

    def __init__(self, method: str, target: bytes, headers: Headers, body: bytes, *, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive

    def header(self, name: bytes) -> str:
        """The first value of a header, "" if it is absent."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), "")

    @property
    def api_key(self) -> str:
        """The credential; x-api-key counts where both headers are sent."""
        bearer = self.header(b"authorization")
        return self.header(b"x-api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else "")


class Exchange:
    """The way back to the caller. Every write raises PeerGone once the connection is known to be closed."""

    def __init__(self, connection: "Connection", *, head_only: bool) -> None:
        self._connection = connection
        self._head_only = head_only
        self._chunked = False
        self._zip: Any = None
        self._sent = hashlib.sha256()

    @property
    def body_sha256(self) -> str:
        """Of the body as sent, before chunking."""
        return self._sent.hexdigest()

    @property
    def connection(self) -> "Connection":
        """Where the request came from."""
        return self._connection

    def start(self, status: int, headers: Headers, *, length: int | None = None, gzip: bool = False) -> None:
        """Status line and headers; without a length the body is chunked."""
        self._chunked = length is None
        self._zip = zlib.compressobj(wbits=31) if gzip else None
        framing = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        lines = [b"HTTP/1.1 %d %s" % (status, _PHRASES.get(status, b"Status"))]
        lines += [name + b": " + value for name, value in [*headers, framing]]
        self.raw(b"\r\n".join(lines) + b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        """Bytes of the body, in one chunk and one write."""
        if self._zip is not None:
            data = self._zip.compress(data) + self._zip.flush(zlib.Z_SYNC_FLUSH)
        self._send(data)

    def end(self) -> None:
        """The clean end of a body."""
        if self._zip is not None:
            self._send(self._zip.flush())
        if self._chunked and not self._head_only:
            self.raw(b"0\r\n\r\n")

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        if self._connection.gone:
            raise PeerGone
        self._connection.transport.write(data)

    def close(self) -> None:
        """Close the connection after what was written: inside a chunked or sized body, that breaks it."""
        self._connection.transport.close()

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        transport = self._connection.transport
        with contextlib.suppress(OSError):  # the caller may have been quicker
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()

    async def pause(self, seconds: float = 0.0) -> None:
        """Wait, at least until what was written fits the socket. Raises PeerGone as soon as the caller leaves."""
        await self._connection.pause(seconds)

    def _send(self, data: bytes) -> None:
        if data and not self._head_only:
            self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)
            self._sent.update(data)


Handler = Callable[[Request, Exchange], Awaitable[None]]


class Server:
    """Listens, and knows its connections."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self.accepted = 0

    async def listen(self, host: str, port: int) -> int:
        """Start; the port, for port 0 the one that was free."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=2048)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop, and break every connection."""
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()


class Connection(asyncio.Protocol):
    """One connection; requests are answered one after another."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._queue: list[Request] = []
        self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self.busy = False
        """Whether a request is being answered."""

    @property
    def gone(self) -> bool:
        """Whether the caller has closed, or we have."""
        return self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        self._server.accepted += 1
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    async def pause(self, seconds: float) -> None:
        """Wait, and then until the transport takes more. Raises PeerGone."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        if not seconds and not self._full:
            await asyncio.sleep(0)
        while not self.gone and (self._full or loop.time() < ends):
            self._waiter = loop.create_future()
            timer = None if self._full else loop.call_at(ends, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        if self.gone:
            raise PeerGone

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(_BAD_REQUEST)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if any(name.lower() == b"expect" for name, _ in self._headers):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method, keep_alive = self._parser.get_method().decode(), self._parser.should_keep_alive()
        self._queue.append(Request(method, self._target, self._headers, b"".join(self._body), keep_alive=keep_alive))
        if not self.busy:
            self.busy = True
            spawn(self._answer_all(), name="simulator-answer")

    async def _answer_all(self) -> None:
        while self._queue and not self.gone:
            request = self._queue.pop(0)
            try:
                await self._server.handler(request, Exchange(self, head_only=request.method == "HEAD"))
            except PeerGone:
                break
            except Exception:
                self.transport.abort()  # a defect of ours; the task's failure is logged where it was spawned
                raise
            if not request.keep_alive:
                self.transport.close()
        self.busy = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
