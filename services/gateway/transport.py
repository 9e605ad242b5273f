"""The way to the upstream: an `httpx2.AsyncBaseTransport` of our own, with a pool, TLS, a proxy, and time limits.

Why not httpx2's: CPU. See DESIGN.md, performance.

What is repeated, and what never is: a connection is taken from the pool only if the upstream has not closed it. If it turns
out closed all the same (end or reset before a single byte of an answer, soon after the request, on a connection that had
been used before), the request is sent once more on a fresh connection: an upstream that closes an idle connection has not
read the request. The same on a fresh connection is an error for the caller: the upstream may have worked.

A place in the pool is given, never taken: who frees one hands it, or the connection itself, to the request that has waited
longest, and who gives up waiting hands on what he was given.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx2

from services.gateway.dial import PORTS, Dialer
from services.gateway.headers import Headers
from services.gateway.upstream_answer import Answer
from services.gateway.upstream_connection import Connection, Origin

_DROPPED: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"te", b"trailer"}
)
_SWEEP_S_MAX: Final = 1.0
_STALE_S_MAX: Final = 5.0
"""A connection that was closed while idle shows it within a round trip; later, the upstream may have worked."""
_CLOSING: Final = "the relay is shutting down"
_CLOSE_S_MAX: Final = 1.0


def _ignore() -> None: ...


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Limits; seconds and bytes."""

    connect_timeout_s: float = 10.0
    """For a place in the pool, and then for TCP, proxy and TLS together."""
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0
    """Longest silence inside an answer."""
    pool_idle_s: float = 30.0
    pool_connections_max: int = 2000
    pool_idle_connections_max: int = 1000
    head_bytes_max: int = 64 * 1024
    high_water_bytes: int = 256 * 1024
    """Bytes of one answer kept for a slow caller before we stop reading from the upstream."""
    proxy_url: str | None = None
    """`http://` or `https://`, with user and password if the proxy asks for them."""
    ssl_context: ssl.SSLContext | None = None


@dataclass(frozen=True)
class PoolStats:
    """For metrics."""

    open: int
    idle: int


class UpstreamTransport(httpx2.AsyncBaseTransport):
    """See the module's docstring. Made inside or outside a loop, used inside one. Raises ValueError for a bad proxy URL."""

    def __init__(self, config: TransportConfig | None = None) -> None:
        self._config = config or TransportConfig()
        self._dialer = Dialer(
            proxy_url=self._config.proxy_url,
            ssl_context=self._config.ssl_context,
            timeout_s=self._config.connect_timeout_s,
        )
        self._idle: dict[Origin, dict[Connection, None]] = {}
        """The longest idle first."""
        self._idle_count = 0
        self._active: set[Connection] = set()
        self._open = 0
        """Places taken: idle, active, being opened, or on their way to a waiter."""
        self._waiters: dict[asyncio.Future[Connection | None], Origin] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def stats(self) -> PoolStats:
        """Connections now."""
        return PoolStats(self._open, self._idle_count)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """`send` for whoever knows an httpx2 transport only; the extensions `target` and `sent` are its `target`, `on_sent`."""
        answer = await self.send(
            request.method,
            request.url,
            target=request.extensions.get("target") or request.url.raw_path,
            headers=[pair for pair in request.headers.raw if pair[0].lower() not in _DROPPED],
            body=await request.aread(),
            on_sent=request.extensions.get("sent", _ignore),
        )
        return httpx2.Response(answer.status, headers=answer.headers, stream=answer)

    async def send(
        self,
        method: str,
        url: httpx2.URL,
        *,
        target: bytes,
        headers: Headers,
        body: bytes,
        on_sent: Callable[[], None],
    ) -> Answer:
        """Send, and return when status and headers are there. The answer must be read to its end or closed.

        `target` is the path and query, byte for byte (httpx2 would quote some characters). `headers` have nothing of the
        connection or of the body's length. `on_sent` is called when there is a connection and the request goes out.
        """
        head = self._head(method, url, target, headers, len(body))
        bodyless = method == "HEAD"
        connection, reused = await self._take(url)
        on_sent()
        try:
            answer = connection.begin(head, body, bodyless=bodyless)
            try:
                await answer.head()
            except (httpx2.NetworkError, httpx2.RemoteProtocolError):
                if not (reused and answer.is_untouched_since(_STALE_S_MAX)):
                    raise
                self._discard(connection)
                connection, _ = await self._take(url, fresh=True)
                answer = connection.begin(head, body, bodyless=bodyless)
                await answer.head()
            if answer.status == 407 and self._dialer.proxy is not None:
                raise httpx2.ProxyError("the proxy asks for another user or password")
        except BaseException:
            self._discard(connection)
            raise
        return answer

    async def aclose(self) -> None:
        """Close every connection at once; answers under way fail, and so does who waits for a place."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(httpx2.ConnectError(_CLOSING))
        self._waiters.clear()
        connections = [*self._active, *(one for idle in self._idle.values() for one in idle)]
        for connection in connections:
            if connection.answer is not None:
                connection.answer.fail(httpx2.ReadError(_CLOSING))
            self._discard(connection)
        if connections:
            await asyncio.wait([connection.lost for connection in connections], timeout=_CLOSE_S_MAX)

    def _head(self, method: str, url: httpx2.URL, target: bytes, headers: Headers, length: int) -> bytes:
        proxy, host = self._dialer.proxy, url.netloc
        lines = [b"", b"host: " + host]
        if proxy is not None and url.scheme == "http":
            target = b"http://" + host + target
            lines += self._dialer.proxy_headers
        lines[0] = method.encode("ascii") + b" " + target + b" HTTP/1.1"
        lines += [name + b": " + value for name, value in headers]
        if length or method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d" % length)
        head = b"\r\n".join(lines)
        breaks = len(lines) - 1
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head or b" " in target:
            raise httpx2.LocalProtocolError("a line break, a NUL or a space where none may be")
        return head + b"\r\n\r\n"

    # -- the pool ----------------------------------------------------------------------------------------------------

    async def _take(self, url: httpx2.URL, *, fresh: bool = False) -> tuple[Connection, bool]:
        """A connection for one exchange, and whether it was used before."""
        if self._closed:
            raise httpx2.ConnectError(_CLOSING)
        origin = (url.scheme, url.host, url.port or PORTS[url.scheme])
        if not fresh and (connection := self._take_idle(origin)) is not None:
            return connection, True
        handed = await self._place(origin)
        if handed is not None:
            if handed not in self._active:
                raise httpx2.ConnectError(_CLOSING)
            if not fresh and handed.is_quiet:
                return handed, True
            self._active.discard(handed)  # its place is ours
            handed.abort()
        return await self._open_connection(url, origin), False

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()
            self._idle_count -= 1
            self._active.add(connection)
            if connection.is_quiet:
                return connection
            self._discard(connection)
        return None

    async def _place(self, origin: Origin) -> Connection | None:
        """The right to have one connection more, or one that has just become free. Raises httpx2.PoolTimeout."""
        if self._open < self._config.pool_connections_max:
            self._open += 1
            return None
        for idle in self._idle.values():
            for oldest in idle:
                self._forget_idle(oldest)
                oldest.abort()
                return None
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = origin
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                return await waiter
        except BaseException as error:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())
            if isinstance(error, TimeoutError):
                raise httpx2.PoolTimeout("all connections to the upstream are in use") from None
            raise

    async def _open_connection(self, url: httpx2.URL, origin: Origin) -> Connection:
        """Fill a place that is ours already."""
        connection = Connection(
            origin,
            high_water=self._config.high_water_bytes,
            head_bytes_max=self._config.head_bytes_max,
            on_release=self._release,
            on_idle_lost=self._lost,
        )
        try:
            await self._dialer.dial(url, connection)
            if self._closed:
                connection.abort()
                raise httpx2.ConnectError(_CLOSING)
        except BaseException:
            self._place_freed()
            raise
        self._active.add(connection)
        self._sweep_later()
        return connection

    def _release(self, connection: Connection) -> None:
        """Back to the pool, or to who waits, if the exchange ended cleanly; else closed."""
        if not connection.finish() or self._closed:
            self._discard(connection)
        elif connection in self._active:
            self._hand_on(connection)

    def _hand_on(self, given: Connection | None) -> None:
        """A connection (active, without an answer) or a place that is free now."""
        if given is None:
            self._place_freed()
            return
        for waiter, origin in self._waiters.items():
            if origin == given.origin and not waiter.done():
                del self._waiters[waiter]
                waiter.set_result(given)
                return
        if self._waiters or not given.is_open or self._idle_count >= self._config.pool_idle_connections_max:
            self._discard(given)
            return
        self._active.discard(given)
        given.idle_since = time.monotonic()
        self._idle.setdefault(given.origin, {})[given] = None
        self._idle_count += 1

    def _discard(self, connection: Connection) -> None:
        """Close, and free its place. Safe to call twice."""
        if connection in self._active:
            self._active.discard(connection)
        elif not self._forget_idle(connection):
            return
        connection.finish()
        connection.abort()
        self._place_freed()

    def _lost(self, connection: Connection) -> None:
        """The upstream has closed an idle connection."""
        if self._forget_idle(connection):
            self._place_freed()

    def _forget_idle(self, connection: Connection) -> bool:
        idle = self._idle.get(connection.origin)
        if idle is None or connection not in idle:
            return False
        del idle[connection]
        self._idle_count -= 1
        return True

    def _place_freed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                del self._waiters[waiter]
                waiter.set_result(None)
                return
        self._open -= 1

    # -- time limits: one timer for all ------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self._closed:
            shortest = min(self._config.first_byte_timeout_s, self._config.idle_timeout_s, self._config.pool_idle_s)
            period = min(_SWEEP_S_MAX, shortest / 4)
            self._sweeper = asyncio.get_running_loop().call_later(period, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        first_byte_s, idle_s = self._config.first_byte_timeout_s, self._config.idle_timeout_s
        for connection in list(self._active):
            if connection.answer is not None and connection.answer.is_silent(now, first_byte_s, idle_s):
                connection.answer.fail(httpx2.ReadTimeout("the upstream was silent for too long"))
        idle_from = time.monotonic() - self._config.pool_idle_s
        for idle in self._idle.values():
            for connection in [one for one in idle if one.idle_since < idle_from]:
                self._discard(connection)
        if self._active or self._idle_count:
            self._sweep_later()
