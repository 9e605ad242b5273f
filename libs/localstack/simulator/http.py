"""A small HTTP/1.1 server that can misbehave on purpose: what uvicorn would never send must be sendable here."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import httptools

from libs.common.runtime import spawn

Headers = list[tuple[bytes, bytes]]
_PHRASES: Final = {200: b"OK", 302: b"Found", 400: b"Bad Request", 404: b"Not Found"}


class PeerGone(Exception):
    """The caller has closed the connection."""


class Request:
    """One request, whole."""

    def __init__(self, method: str, target: bytes, headers: Headers, body: bytes) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.body = body

    def header(self, name: bytes) -> str:
        """The first value of a header, "" if it is absent."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), "")


class Exchange:
    """The way back to the caller. Every write raises PeerGone once he is known to be gone."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._chunked = False
        self._zip: Any = None
        self.bytes_sent = bytearray()
        """The body as sent, before chunking."""

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
        self.raw(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)
        self.bytes_sent += data

    def end(self) -> None:
        """The clean end of a body."""
        if self._zip is not None:
            tail, self._zip = self._zip.flush(), None
            self.send(tail)
        if self._chunked:
            self.raw(b"0\r\n\r\n")

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        if self._connection.gone:
            raise PeerGone
        self._connection.transport.write(data)

    def abort(self) -> None:
        """Reset the connection."""
        self._connection.transport.abort()

    def close(self) -> None:
        """Close the connection after what was written."""
        self._connection.transport.close()

    async def pause(self, seconds: float) -> None:
        """Wait. Raises PeerGone as soon as the caller leaves."""
        if self._connection.gone:
            raise PeerGone
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._connection.gone_event.wait()
            except TimeoutError:
                return
            raise PeerGone


Handler = Callable[[Request, Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One connection; requests are answered one after another."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._parser = httptools.HttpRequestParser(self)
        self._queue: list[Request] = []
        self._busy = False
        self.gone_event = asyncio.Event()

    @property
    def gone(self) -> bool:
        """Whether the caller has closed, or we have."""
        return self.gone_event.is_set() or self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone_event.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if name.lower() == b"expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self._queue.append(Request(method, self._target, self._headers, b"".join(self._body)))
        if not self._busy:
            self._busy = True
            spawn(self._answer_all(), name="simulator-answer")

    async def _answer_all(self) -> None:
        while self._queue and not self.gone:
            exchange = Exchange(self)
            try:
                await self._handler(self._queue.pop(0), exchange)
            except PeerGone:
                return
        self._busy = False
