"""One HTTP/1.1 connection to the upstream, and the answers that come over it.

`Connection` is an asyncio protocol that carries one exchange at a time, each an `Answer` (upstream_answer.py). Nothing here
decides about reuse or repeats; that is `transport.py`.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from typing import Final

import httpx2

from services.gateway.upstream_answer import Answer

Origin = tuple[str, str, int]
"""Scheme, host, port."""

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 5))
"""An answer may be silent for 600 s: keeps gateways on the way from forgetting it, and finds a dead peer in 135 s."""


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
