"""One HTTP/1.1 connection to the upstream, and the answers that come over it.

`Connection` is an asyncio protocol over httptools that carries one exchange at a time. Each exchange is an `Answer` of its
own, so that nothing of one can show up in the next. Body chunks are handed over as they come. Nothing here decides about
reuse or repeats; that is `transport.py`.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final

import httptools
import httpx2

from services.gateway.headers import Headers
from services.gateway.outlet import Outlet

Origin = tuple[str, str, int]
"""Scheme, host, port."""

_NO_BODY: Final = frozenset({204, 304})
_PIECE_BYTES: Final = 64
"""What keeping a chunk costs beside its bytes: an upstream that sends single bytes is slowed down in time too."""


_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 5))
"""An answer may be silent for 600 s: keeps gateways on the way from forgetting it, and finds a dead peer in 135 s."""


class Answer(httpx2.AsyncByteStream):
    """An exchange: head, then body, then done or failed. As a stream it is the body; closing it ends the exchange."""

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop, *, bodyless: bool) -> None:
        self._connection = connection
        self._loop = loop
        self._bodyless = bodyless
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        """Who is handed each chunk in the read that brings it."""
        self._taker_is_full = False
        self._taker_failed: Exception | None = None
        self._pieces: list[bytes] = []
        self._chunks: list[bytes] = []
        self._buffered = self._head_bytes = self._barren_bytes = 0
        self._interim = self._until_eof = False
        self.headers: Headers = []
        self.status = 0
        self.error: httpx2.TransportError | None = None
        self.received = self.head_complete = self.done = False
        self.reusable = True
        self.waiting_since = loop.time()

    async def head(self) -> None:
        """Return when status and headers are there. Raises httpx2.TransportError."""
        while not self.head_complete:
            if self.error is not None:
                raise self.error
            await self._wait()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """The body as it comes; what is there at once comes as one chunk. Raises httpx2.TransportError."""
        while not self._chunks:
            if self.done:
                raise StopAsyncIteration
            if self.error is not None:
                raise self.error
            await self._wait()
        return self._kept()

    async def pour(self, take: Callable[[bytes], bool], outlet: Outlet) -> None:
        """The body to its end, each chunk handed to `take`, which writes it to `outlet`, in the very read that brought it.

        `take` says whether the outlet is full: then what comes is kept, up to the high water mark, until there is room again.
        What comes with the end of the body is taken by the reader's own task, so that the two go out together.
        Raises httpx2.TransportError, and what `take` and `outlet` raise.
        """
        while True:
            if self._taker_failed is not None:
                raise self._taker_failed
            if self._taker_is_full:
                self._taker_is_full = False
                await outlet.drained()
            elif self._chunks:
                if self.done:
                    outlet.hold()
                self._taker_is_full = take(self._kept())
            elif self.done:
                return
            elif self.error is not None:
                raise self.error
            else:
                self._take = take
                try:
                    await self._wait()
                finally:
                    self._take = None

    async def aclose(self) -> None:
        """End the exchange; before its end this closes the connection. Safe to call twice."""
        self._connection.release(self)

    def is_silent(self, now: float, first_byte_s: float, idle_s: float) -> bool:
        """Whether it has waited too long. Time in which we did not read ourselves does not count."""
        if self.done or self._connection.paused:
            return False
        return now - self.waiting_since > (idle_s if self.received else first_byte_s)

    def is_untouched_since(self, seconds: float) -> bool:
        """Whether nothing of it has come, and the request is not older than that."""
        return not self.received and self._loop.time() - self.waiting_since < seconds

    # -- called by the connection ------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """What one read of the socket brought."""
        if self._parser is None or self.error is not None:
            return
        self.received = True
        self.waiting_since = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(httpx2.RemoteProtocolError("the upstream switched protocols"))
        except httptools.HttpParserError as error:
            self.fail(httpx2.RemoteProtocolError(f"malformed answer: {error}"))
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._barren_bytes = 0
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._take is not None and not self.done and self.error is None:
                self._hand_over(chunk, self._take)
                return
            self._keep(chunk)
        else:  # head, trailers, chunk extensions
            self._barren_bytes += len(data)
            if self._barren_bytes > self._connection.head_bytes_max and not self.done:
                self.fail(httpx2.RemoteProtocolError("the head of the answer is too large"))
        self._wake()

    def end(self, error: Exception | None, *, clean: bool) -> None:
        """Nothing more will come. `clean`: the upstream said so itself."""
        if not self.done and self.error is None:
            if clean and self._until_eof:
                self.done = True
            elif error is not None:
                self.error = httpx2.ReadError(f"connection to the upstream lost: {type(error).__name__}")
            else:
                self.error = httpx2.RemoteProtocolError("the upstream closed the connection inside its answer")
        self._wake()

    def fail(self, error: httpx2.TransportError) -> None:
        """End with an error, and close the connection at once."""
        if not self.done and self.error is None:
            self.error = error
        self.reusable = False
        self._connection.abort()
        self._wake()

    def drop(self) -> None:
        """Nobody reads it any more."""
        if not self.done and self.error is None:
            self.error = httpx2.ReadError("the answer was closed before its end")
        self._chunks.clear()
        self._parser = None  # it refers to us, and we to it
        self._wake()

    # -- httptools ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An interim answer's head does not count; a second answer means that the upstream is out of step."""
        if self.done:
            self.reusable = False
        elif not self.head_complete:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which has no place in what we forward."""
        if self.head_complete:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._connection.head_bytes_max:
            self.fail(httpx2.RemoteProtocolError("the head of the answer is too large"))
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The final head, or an interim one."""
        if self.head_complete or self.error is not None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status == 101 or not 100 <= status < 600:
            self.fail(httpx2.RemoteProtocolError(f"an answer with the status {status}"))
            return
        self._interim = status < 200
        if self._interim:
            return
        self.status = status
        self.head_complete = True
        if not self._parser.should_keep_alive():
            self.reusable = False
        if self._bodyless:
            self.reusable = False
            self.done = True
            return
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        self._until_eof = not framed and status not in _NO_BODY

    def on_body(self, body: bytes) -> None:
        """A piece of the body; what one read brought is kept as one chunk."""
        if self._interim:
            self.fail(httpx2.RemoteProtocolError("an interim answer with a body"))
        elif not self.done and self.error is None:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The end of the answer, or of an interim one."""
        if self._interim:
            self._interim = False
        elif self.error is None:
            self.done = True

    # ----------------------------------------------------------------------------------------------------------------

    def _hand_over(self, chunk: bytes, take: Callable[[bytes], bool]) -> None:
        try:
            self._taker_is_full = take(chunk)
        except Exception as error:  # noqa: BLE001 - raised in the task that reads
            self._taker_failed = error
        else:
            if not self._taker_is_full:
                return
        self._take = None
        self._wake()

    def _kept(self) -> bytes:
        """What has come and nobody has taken, as one chunk."""
        chunks, self._chunks = self._chunks, []
        self._buffered = 0
        if self._connection.paused:
            self.waiting_since = self._loop.time()
            self._connection.resume()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _keep(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._buffered += len(chunk) + _PIECE_BYTES
        if self._buffered > self._connection.high_water and not self.done:
            self._connection.pause()

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


class Connection(asyncio.Protocol):
    """Idle, or busy with an `Answer`, or closed."""

    def __init__(
        self,
        origin: Origin,
        *,
        high_water: int,
        head_bytes_max: int,
        on_release: Callable[["Connection"], None],
        on_idle_lost: Callable[["Connection"], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_release = on_release
        self._on_idle_lost = on_idle_lost
        self._raw: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self.high_water = high_water
        self.head_bytes_max = head_bytes_max
        self.answer: Answer | None = None
        self.paused = False
        self.closed = False
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.origin = origin
        self.idle_since = 0.0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "idle" if self.answer is None else "busy"
        return f"<Connection {self.origin} {state}>"

    # -- called by the transport -------------------------------------------------------------------------------------

    def adopt(self, transport: asyncio.Transport, raw: asyncio.Transport) -> None:
        """It is open. `raw` is the TCP transport below TLS, or the same: what is paused and asked for unsent bytes, because
        a TLS transport forgets what it has read when the peer closes while it is paused (uvloop), and does not know how
        much of what it wrote has left (both loops)."""
        self._transport, self._raw = transport, raw
        if transport.is_closing():  # possibly before we were told of it
            self.connection_lost(None)
        else:
            sock = raw.get_extra_info("socket")
            self._poll.register(sock.fileno(), select.POLLIN)
            _keep_alive(sock)

    def begin(self, head: bytes, body: bytes, *, bodyless: bool) -> Answer:
        """Send a request. `bodyless`: its answer has no body whatever its headers say (HEAD)."""
        answer = self.answer = Answer(self, self._loop, bodyless=bodyless)
        transport = self._transport
        if self.closed or transport is None or transport.is_closing():
            answer.error = httpx2.ConnectError("the upstream closed the connection before it was used")
        elif body:
            transport.writelines((head, body))
        else:
            transport.write(head)
        return answer

    def release(self, answer: Answer) -> None:
        """The reader is done with this answer."""
        if self.answer is answer:
            self._on_release(self)

    def finish(self) -> bool:
        """Take the answer off. Whether another request may be sent: not if anything of this exchange is still under way."""
        answer, self.answer = self.answer, None
        if answer is None:
            return False
        clean = answer.done and answer.reusable and not self.paused and self.is_open and not self._unsent
        answer.drop()
        return clean

    @property
    def is_quiet(self) -> bool:
        """Whether it is open and nothing has come since: no end of the connection, and no bytes we did not ask for."""
        return self.is_open and not self._poll.poll(0)

    @property
    def is_open(self) -> bool:
        """As far as has been noticed."""
        return not self.closed and self._transport is not None and not self._transport.is_closing()

    @property
    def _unsent(self) -> int:
        assert self._raw is not None and self._transport is not None
        return self._raw.get_write_buffer_size() + self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close at once."""
        self.closed = True
        if self._raw is not None:
            self._raw.abort()

    def pause(self) -> None:
        """Stop reading from the socket."""
        if not self.paused and self._raw is not None:
            self.paused = True
            self._raw.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.paused and self._raw is not None:
            self.paused = False
            self._raw.resume_reading()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None or answer.done:  # the upstream speaks out of turn
            if answer is not None:
                answer.reusable = False
            self.abort()
            return
        answer.feed(data)

    def eof_received(self) -> bool:
        if self.answer is not None:
            self.answer.end(None, clean=self._is_true_end())
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if not self.lost.done():
            self.lost.set_result(None)
        if self.answer is not None:
            self.answer.end(exc, clean=False)
        else:
            self._on_idle_lost(self)

    def _is_true_end(self) -> bool:
        """Over TLS an end counts only if the peer has signed it; asyncio reports both alike."""
        secure = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        if secure is None:
            return True
        try:
            return not secure.read(1)
        except ssl.SSLZeroReturnError:
            return True
        except ssl.SSLError:
            return False


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not every system has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
