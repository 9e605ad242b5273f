"""Opens connections to the upstream: straight or through an HTTP(S) proxy, with TLS where a URL asks for it."""

import asyncio
import base64
import functools
import ssl
from typing import Final

import httpx2

from services.gateway.upstream_connection import Connection

PORTS: Final = {"http": 80, "https": 443}
_TUNNEL_ANSWER_BYTES_MAX: Final = 16 * 1024


class Dialer:
    """Opens connections: straight or through a proxy, with TLS where a URL asks for it."""

    def __init__(self, *, proxy_url: str | None, ssl_context: ssl.SSLContext | None, timeout_s: float) -> None:
        self._given_context = ssl_context
        self._timeout_s = timeout_s
        self.proxy = httpx2.URL(proxy_url) if proxy_url else None
        if self.proxy is not None and (self.proxy.scheme not in PORTS or not self.proxy.host):
            raise ValueError("the proxy to the upstream must be given as http://host:port or https://host:port")
        self.proxy_headers: list[bytes] = []
        if self.proxy is not None and self.proxy.userinfo:
            credentials = base64.b64encode(f"{self.proxy.username}:{self.proxy.password}".encode())
            self.proxy_headers.append(b"proxy-authorization: Basic " + credentials)

    async def dial(self, url: httpx2.URL, connection: Connection) -> None:
        """Open `connection`. Raises httpx2.ConnectError, ConnectTimeout, ProxyError: nothing was sent in either case."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._dial(url, connection)
        except TimeoutError:
            raise httpx2.ConnectTimeout("no connection to the upstream in time") from None
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError(f"no connection to the upstream: {error or type(error).__name__}") from error

    async def _dial(self, url: httpx2.URL, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        hop = url if self.proxy is None else self.proxy
        to_proxy = hop is self.proxy
        secure = url.scheme == "https"
        port = hop.port or PORTS[hop.scheme]
        raw, opening = await loop.create_connection(_Opening, hop.host, port)
        try:
            transport = raw
            if to_proxy and hop.scheme == "https":
                transport = await self._start_tls(transport, opening if secure else connection, hop.host)
            if to_proxy and secure:
                await opening.tunnel(transport, _authority(url), self.proxy_headers)
            if secure:
                transport = await self._start_tls(transport, connection, url.host)
            elif transport is raw:
                transport.set_protocol(connection)
        except BaseException:
            raw.abort()
            raise
        connection.adopt(transport, raw)

    async def _start_tls(
        self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol, host: str
    ) -> asyncio.Transport:
        if transport.is_closing():
            raise ConnectionResetError("closed before the TLS handshake")
        secure = await asyncio.get_running_loop().start_tls(transport, protocol, self._context, server_hostname=host)
        assert secure is not None
        return secure

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        context = self._given_context or ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context


class _Opening(asyncio.Protocol):
    """Holds a connection while it is being opened, and waits for a proxy's answer to CONNECT."""

    def __init__(self) -> None:
        self._answer = b""
        self._waiter: asyncio.Future[None] | None = None

    async def tunnel(self, transport: asyncio.Transport, authority: bytes, headers: list[bytes]) -> None:
        """Ask the proxy for a way to `authority`. Raises httpx2.ProxyError."""
        if transport.is_closing():
            raise httpx2.ProxyError("the proxy closed the connection")
        self._waiter = asyncio.get_running_loop().create_future()
        lines = [b"CONNECT " + authority + b" HTTP/1.1", b"host: " + authority, *headers]
        transport.write(b"\r\n".join(lines) + b"\r\n\r\n")
        await self._waiter

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            return
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end and len(head) <= _TUNNEL_ANSWER_BYTES_MAX:
            return
        version, _, status = head[:12].partition(b" ")
        if not end or rest or not version.startswith(b"HTTP/1.") or not status.isdigit():
            self._waiter.set_exception(httpx2.ProxyError("the proxy gave no readable answer to CONNECT"))
        elif not status.startswith(b"2"):
            self._waiter.set_exception(httpx2.ProxyError(f"the proxy answered {int(status)} to CONNECT"))
        else:
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(httpx2.ProxyError("the proxy closed the connection"))


def _authority(url: httpx2.URL) -> bytes:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return f"{host}:{url.port or PORTS[url.scheme]}".encode("ascii")
