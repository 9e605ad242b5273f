"""The way to the upstream: an `httpx2.AsyncBaseTransport` of our own, with a pool, TLS, a proxy, and time limits.

Why not httpx2's: CPU. See DESIGN.md, performance: 2,765 µs a request against 65 to 85 µs.

What is repeated, and what never is: a connection is taken from the pool only if the upstream has not closed it. If it turns
out closed all the same (end or reset before a single byte of an answer, on a connection that had been used before), the
request is sent once more on a fresh connection: an upstream that closes an idle connection has not read the request. The
same on a fresh connection is an error for the caller: the upstream may have worked.
"""

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx2

from services.gateway.upstream_connection import Connection

_DROPPED: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"te", b"trailer"}
)
_SWEEP_S_MAX: Final = 1.0
_CONNECT_ANSWER_BYTES_MAX: Final = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Limits; seconds and bytes."""

    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0
    """Longest silence inside an answer."""
    pool_idle_s: float = 30.0
    pool_connections_max: int = 2000
    pool_idle_connections_max: int = 1000
    head_bytes_max: int = 256 * 1024
    high_water_bytes: int = 256 * 1024
    """Bytes of one answer kept for a slow caller before we stop reading from the upstream."""
    proxy_url: str | None = None
    ssl_context: ssl.SSLContext | None = None


@dataclass(frozen=True)
class PoolStats:
    """For metrics."""

    open: int
    idle: int


class UpstreamTransport(httpx2.AsyncBaseTransport):
    """See the module's docstring. Made inside or outside a loop, used inside one."""

    def __init__(self, config: TransportConfig | None = None) -> None:
        self._config = config or TransportConfig()
        self._ssl = self._config.ssl_context or ssl.create_default_context()
        self._ssl.set_alpn_protocols(["http/1.1"])
        self._proxy = httpx2.URL(self._config.proxy_url) if self._config.proxy_url else None
        if self._proxy is not None and self._proxy.scheme != "http":
            raise ValueError("the proxy to the upstream must be given as http://host:port")
        self._idle: dict[str, list[Connection]] = {}
        self._active: set[Connection] = set()
        self._open = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def stats(self) -> PoolStats:
        """Connections now."""
        return PoolStats(self._open, sum(len(idle) for idle in self._idle.values()))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send, and return when status and headers are there. The stream must be read to its end or closed."""
        body = request.content if hasattr(request, "_content") else await request.aread()
        head = self._head(request, len(body))
        bodyless = request.method == "HEAD"
        connection, reused = await self._take(request.url)
        try:
            connection.begin(head, body, bodyless=bodyless)
            try:
                await connection.wait_head()
            except (httpx2.RemoteProtocolError, httpx2.ReadError):
                if not reused or connection.received:
                    raise
                self._discard(connection)
                connection = await self._connect(request.url)
                connection.begin(head, body, bodyless=bodyless)
                await connection.wait_head()
        except BaseException:
            self._discard(connection)
            raise
        return httpx2.Response(
            connection.status,
            headers=connection.headers,
            stream=_Body(self, connection),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Close every connection at once."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._active, *(one for idle in self._idle.values() for one in idle)]:
            self._discard(connection)
        self._idle.clear()

    # -- the request's head ------------------------------------------------------------------------------------------

    def _head(self, request: httpx2.Request, length: int) -> bytes:
        url = request.url
        target = url.raw_path
        lines = [b"", b"host: " + url.netloc]
        if self._proxy is not None and url.scheme == "http":
            target = str(url.copy_with(fragment=None)).encode("ascii")
            lines += self._proxy_authorization()
        lines[0] = request.method.encode("ascii") + b" " + target + b" HTTP/1.1"
        lines += [name + b": " + value for name, value in request.headers.raw if name.lower() not in _DROPPED]
        if length or request.method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d" % length)
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
            raise httpx2.LocalProtocolError("a header holds a line break or a NUL")
        return head + b"\r\n\r\n"

    def _proxy_authorization(self) -> list[bytes]:
        proxy = self._proxy
        if proxy is None or not proxy.username:
            return []
        credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode())
        return [b"proxy-authorization: Basic " + credentials]

    # -- the pool ----------------------------------------------------------------------------------------------------

    async def _take(self, url: httpx2.URL) -> tuple[Connection, bool]:
        idle = self._idle.get(_origin(url))
        while idle:
            connection = idle.pop()
            if connection.is_clean:
                self._active.add(connection)
                return connection, True
            self._discard(connection)
        return await self._connect(url), False

    async def _connect(self, url: httpx2.URL) -> Connection:
        await self._wait_for_place()
        self._open += 1
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                connection = await self._open_connection(url)
        except TimeoutError:
            self._closed_one()
            raise httpx2.ConnectTimeout("no connection to the upstream in time") from None
        except (OSError, ssl.SSLError) as error:
            self._closed_one()
            raise httpx2.ConnectError(f"no connection to the upstream: {type(error).__name__}") from error
        except BaseException:
            self._closed_one()
            raise
        connection.origin = _origin(url)
        self._active.add(connection)
        self._sweep_later()
        return connection

    async def _wait_for_place(self) -> None:
        """At the limit: throw out an idle connection, else wait for one to be returned or closed."""
        while self._open >= self._config.pool_connections_max:
            for idle in self._idle.values():
                if idle:
                    self._discard(idle.pop(0))
                    return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                async with asyncio.timeout(self._config.connect_timeout_s):
                    await waiter
            except TimeoutError:
                raise httpx2.PoolTimeout("all connections to the upstream are in use") from None

    async def _open_connection(self, url: httpx2.URL) -> Connection:
        loop = asyncio.get_running_loop()
        secure = self._ssl if url.scheme == "https" else None
        port = url.port or (443 if secure else 80)
        if self._proxy is None:
            _, connection = await loop.create_connection(
                self._new_connection, url.host, port, ssl=secure, server_hostname=url.host if secure else None
            )
            return connection
        proxy_port = self._proxy.port or 80
        if secure is None:
            _, connection = await loop.create_connection(self._new_connection, self._proxy.host, proxy_port)
            return connection
        return await self._tunnel(url.host, port, proxy_port)

    async def _tunnel(self, host: str, port: int, proxy_port: int) -> Connection:
        assert self._proxy is not None
        loop = asyncio.get_running_loop()
        raw, opening = await loop.create_connection(_TunnelOpening, self._proxy.host, proxy_port)
        try:
            authority = f"{host}:{port}".encode("ascii")
            lines = [b"CONNECT " + authority + b" HTTP/1.1", b"host: " + authority, *self._proxy_authorization()]
            raw.write(b"\r\n".join(lines) + b"\r\n\r\n")
            await opening.opened
            connection = self._new_connection()
            secure = await loop.start_tls(raw, connection, self._ssl, server_hostname=host)
        except BaseException:
            raw.abort()
            raise
        assert secure is not None
        connection.connection_made(secure)
        return connection

    def _new_connection(self) -> Connection:
        return Connection(high_water=self._config.high_water_bytes, head_bytes_max=self._config.head_bytes_max)

    def _release(self, connection: Connection) -> None:
        """Back to the pool if the answer ended cleanly, else closed. Safe to call twice."""
        if connection not in self._active:
            return
        if not connection.is_clean or self._closed or self.stats_idle_full:
            self._discard(connection)
            return
        self._active.discard(connection)
        connection.busy = False
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.origin, []).append(connection)
        self._wake_waiter()

    @property
    def stats_idle_full(self) -> bool:
        """Whether no more idle connections are kept."""
        return sum(len(idle) for idle in self._idle.values()) >= self._config.pool_idle_connections_max

    def _discard(self, connection: Connection) -> None:
        self._active.discard(connection)
        if connection.origin:  # counted, and not discarded before
            connection.origin = ""
            connection.transport.abort()
            self._closed_one()

    def _closed_one(self) -> None:
        self._open -= 1
        self._wake_waiter()

    def _wake_waiter(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # -- time limits: one timer for all ------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        if self._sweeper is None and not self._closed:
            shortest = min(self._config.first_byte_timeout_s, self._config.idle_timeout_s, self._config.pool_idle_s)
            period = min(_SWEEP_S_MAX, shortest / 4)
            self._sweeper = asyncio.get_running_loop().call_later(period, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        config = self._config
        for connection in list(self._active):
            if connection.is_silent_since(now - config.first_byte_timeout_s, now - config.idle_timeout_s):
                connection.fail(httpx2.ReadTimeout("the upstream was silent for too long"))
        for idle in self._idle.values():
            for connection in [one for one in idle if one.closed or one.idle_since < now - config.pool_idle_s]:
                idle.remove(connection)
                self._discard(connection)
        if self._active or any(self._idle.values()):
            self._sweep_later()


class _Body(httpx2.AsyncByteStream):
    """The body of an answer. Closing it before its end closes the connection."""

    __slots__ = ("_connection", "_transport")

    def __init__(self, transport: UpstreamTransport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.body()

    async def aclose(self) -> None:
        self._transport._release(self._connection)


class _TunnelOpening(asyncio.Protocol):
    """Waits for a proxy's answer to CONNECT."""

    def __init__(self) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answer = b""

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self.opened.done():
            return
        if b"\r\n\r\n" in self._answer:
            status = self._answer.split(b" ", 2)[1:2]
            if status == [b"200"]:
                self.opened.set_result(None)
            else:
                self.opened.set_exception(httpx2.ProxyError("the proxy refused the connection"))
        elif len(self._answer) > _CONNECT_ANSWER_BYTES_MAX:
            self.opened.set_exception(httpx2.ProxyError("the proxy's answer is too large"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(httpx2.ProxyError("the proxy closed the connection"))


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.host}:{url.port or 0}"
