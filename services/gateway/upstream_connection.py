"""One HTTP/1.1 connection to the upstream: an asyncio protocol over httptools that carries one exchange at a time.

Body chunks are handed over as they come. Nothing here decides about reuse or retries; that is `transport.py`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httptools
import httpx2

from services.gateway.headers import Headers

_NO_BODY: Final = frozenset({204, 304})


class Connection(asyncio.Protocol):
    """States: idle → `begin` → head → body → done (idle again), or failed."""

    __slots__ = (
        "_bodyless",
        "_buffered",
        "_chunks",
        "_head_bytes",
        "_head_bytes_max",
        "_high_water",
        "_interim",
        "_loop",
        "_paused",
        "_until_eof",
        "_waiter",
        "busy",
        "closed",
        "done",
        "error",
        "head_complete",
        "headers",
        "idle_since",
        "origin",
        "parser",
        "received",
        "reusable",
        "status",
        "transport",
        "waiting_since",
    )

    def __init__(self, *, high_water: int, head_bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._high_water = high_water
        self._head_bytes_max = head_bytes_max
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self.origin = ""
        self.closed = False
        self.busy = False
        self.done = False
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "idle" if not self.busy else "done" if self.done else "busy"
        return f"<Connection {self.origin} {state}>"

    # -- called by the transport -------------------------------------------------------------------------------------

    def begin(self, head: bytes, body: bytes, *, bodyless: bool) -> None:
        """Send a request. `bodyless`: its answer has no body whatever its headers say (HEAD)."""
        self.parser = httptools.HttpResponseParser(self)
        self.headers: Headers = []
        self.status = 0
        self.error: httpx2.TransportError | None = None
        self.busy, self.done, self.head_complete, self.received = True, False, False, False
        self.reusable = True
        self._bodyless = bodyless
        self._interim = self._until_eof = False
        self._head_bytes = 0
        self.waiting_since = self._loop.time()
        if body:
            self.transport.writelines((head, body))
        else:
            self.transport.write(head)

    async def wait_head(self) -> None:
        """Return when status and headers are there. Raises httpx2.TransportError."""
        while not self.head_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    async def body(self) -> AsyncIterator[bytes]:
        """The body as it comes; what is there at once comes as one chunk. Raises httpx2.TransportError."""
        while True:
            if self._chunks:
                chunks, self._chunks = self._chunks, []
                self._buffered = 0
                if self._paused:
                    self._paused = False
                    self.waiting_since = self._loop.time()
                    self.transport.resume_reading()
                yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
            elif self.done:
                return
            elif self.error is not None:
                raise self.error
            else:
                await self._wait()

    def fail(self, error: httpx2.TransportError) -> None:
        """End the exchange with an error and close at once."""
        if self.error is None and not self.done:
            self.error = error
        self.reusable = False
        self.transport.abort()
        self._wake()

    def is_silent_since(self, first_byte_before: float, idle_before: float) -> bool:
        """Whether the exchange has waited too long. Time in which we did not read ourselves does not count."""
        if not self.busy or self.done or self._paused:
            return False
        return self.waiting_since < (idle_before if self.received else first_byte_before)

    @property
    def is_clean(self) -> bool:
        """Whether another request may be sent on it."""
        return (
            self.done
            and self.reusable
            and not self.closed
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self.busy or self.done:  # the upstream speaks out of turn
            self.reusable = False
            self.transport.abort()
            return
        self.received = True
        self.waiting_since = self._loop.time()
        if not self.head_complete:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(httpx2.RemoteProtocolError("the upstream switched protocols"))
        except httptools.HttpParserError as error:
            self.fail(httpx2.RemoteProtocolError(f"malformed answer: {error}"))
        if not self.head_complete and self._head_bytes > self._head_bytes_max:
            self.fail(httpx2.RemoteProtocolError("the head of the answer is too large"))
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.reusable = False
        if self.busy and not self.done and self.error is None:
            if self.head_complete and self._until_eof and exc is None:
                self.done = True
            elif exc is not None:
                self.error = httpx2.ReadError(f"connection lost: {type(exc).__name__}")
            else:
                self.error = httpx2.RemoteProtocolError("the upstream closed the connection inside its answer")
        self._wake()

    # -- httptools ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done:
            self.reusable = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.done:
            return
        status = self.parser.get_status_code()
        self._interim = status < 200
        if status == 101:
            self.fail(httpx2.RemoteProtocolError("the upstream switched protocols"))
        if self._interim:
            return
        self.status = status
        self.head_complete = True
        if not self.parser.should_keep_alive():
            self.reusable = False
        if self._bodyless:
            self.reusable = False
            self.done = True
            return
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        self._until_eof = not framed and status not in _NO_BODY

    def on_body(self, body: bytes) -> None:
        if self.done or self.error is not None:
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > self._high_water and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self.error is None:
            self.done = True

    # ----------------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
