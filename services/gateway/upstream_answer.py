"""An answer of the upstream as it comes over one connection: head, then body, then done or failed.

Each exchange has an `Answer` of its own, so that nothing of one can show up in the next.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import httptools
import httpx2

from services.gateway.headers import Headers
from services.gateway.outlet import Outlet

_NO_BODY: Final = frozenset({204, 304})
_PIECE_BYTES: Final = 64
"""What keeping a chunk costs beside its bytes: an upstream that sends single bytes is slowed down in time too."""


class Line(Protocol):
    """What an answer needs of its connection."""

    high_water: int
    head_bytes_max: int
    paused: bool

    def release(self, answer: "Answer") -> None:
        """The reader is done with this answer."""

    def abort(self) -> None:
        """Close at once."""

    def pause(self) -> None:
        """Stop reading from the socket."""

    def resume(self) -> None:
        """Read again."""


class Answer(httpx2.AsyncByteStream):
    """An exchange: head, then body, then done or failed. As a stream it is the body; closing it ends the exchange."""

    def __init__(self, connection: Line, loop: asyncio.AbstractEventLoop, *, bodyless: bool) -> None:
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
                outlet.flush()
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
            if self._take is None or self.done or self.error is not None:
                self._keep(chunk)
            else:
                try:
                    if not self._take(chunk):
                        return
                    self._taker_is_full = True
                except Exception as error:  # noqa: BLE001 - raised in the task that reads
                    self._taker_failed = error
                self._take = None
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
