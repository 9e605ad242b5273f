"""Sends a notice to a customer's URL: signed as Standard Webhooks, and fenced, because anybody may name any URL.

The name is resolved once. Every address it has must be open, and the connection goes to one of these very addresses;
TLS still asks for the certificate of the name. One connection for one notice: a kept one would outlive its check.
httpcore2 is used without a client around it, so that there are no redirects, no proxies of the environment, no cookies
and no decompression. Times and sizes are bounded below TLS and HTTP.
"""

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import httpcore2
import msgspec
from standardwebhooks.webhooks import Webhook

from libs.common import clock
from services.admin.notices.fence import Fence
from services.admin.notices.notices import ChannelTarget, Notice, Undelivered, refusal

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses. Raises OSError."""

LIMIT_S: Final = 5.0
"""For everything: name, connection, TLS, request and answer."""
ANSWER_BYTES_MAX: Final = 64 * 1024
_CONNECT_S: Final = 2.0
_ADDRESSES_TRIED_MAX: Final = 3
_URL_CHARS_MAX: Final = 2_000
_HOST: Final = r"\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}"
_URL: Final = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_HOST})(:(?P<port>[0-9]{{1,5}}))?(?P<target>[/?][!-\"$-~]*)?"
)
_SECRET: Final = re.compile(r"whsec_([A-Za-z0-9+/]{32,88}={0,2})")
_SECRET_BYTES: Final = range(24, 65)
_PORTS: Final = {"http": 80, "https": 443}
_NETWORK: Final = (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError)
_CLOSED: Final = "The URL leads to an address that is not public."
_SLOW: Final = f"The receiver did not answer within {LIMIT_S:.0f} seconds."


async def resolve(host: str, port: int) -> Sequence[str]:
    """Addresses as the system orders them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def check(target: ChannelTarget, fence: Fence) -> None:
    """Raises ValueError for what can be seen without a network. What a name leads to is judged whenever it is used."""
    url = _parse(target.address)
    if url.scheme == "http" and not fence.allows_more:
        raise ValueError("The URL of a webhook starts with https://.")
    if _is_address(url.host) and not fence.is_open(url.host):
        raise ValueError(_CLOSED)
    _key(target.secret)


class WebhookSender:
    """Sends webhooks. Raises Undelivered."""

    def __init__(
        self, fence: Fence, *, resolver: Resolver = resolve, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._fence = fence
        self._resolver = resolver
        self._ssl_context = ssl_context or ssl.create_default_context()

    async def send(self, target: ChannelTarget, notice: Notice) -> None:
        """2xx is delivered, whatever becomes of the rest of the answer. Of a target that `check` lets pass."""
        url, body = _parse(target.address), notice.json()
        headers = _headers(url, target.secret, notice.id, body)
        answered: list[int] = []
        failure, backend = None, _Pinned()
        try:
            async with asyncio.timeout(LIMIT_S):
                backend.addresses = await self._addresses(url)
                await self._exchange(backend, url, headers, body, answered)
        except TimeoutError:
            failure = Undelivered(_SLOW, retryable=True)
        except _NETWORK as error:
            failure = Undelivered(_sentence(error), retryable=True)
        finally:
            await backend.aclose()
        if not answered:
            raise failure or Undelivered("The receiver gave no answer.", retryable=True)
        if not 200 <= answered[0] < 300:
            raise refusal(answered[0])

    async def _addresses(self, url: "_Url") -> Sequence[str]:
        try:
            found = await self._resolver(url.host, url.port)
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise Undelivered("The name of the receiver cannot be resolved.", retryable=True)
        judge = self._fence.is_open if url.scheme == "https" else self._fence.is_allowed
        if not all(judge(address) for address in found):
            raise Undelivered(_CLOSED, retryable=False)
        return found[:_ADDRESSES_TRIED_MAX]

    async def _exchange(
        self, backend: "_Pinned", url: "_Url", headers: dict[bytes | str, bytes | str], body: bytes, answered: list[int]
    ) -> None:
        origin = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        async with (
            httpcore2.AsyncConnectionPool(ssl_context=self._ssl_context, network_backend=backend) as pool,
            pool.stream("POST", origin, headers=headers, content=body) as response,
        ):
            answered.append(response.status)
            async for _ in response.aiter_stream():
                pass


class _Url(msgspec.Struct, frozen=True):
    scheme: str
    host: str
    """Without brackets."""
    port: int
    authority: str
    target: str


class _Pinned(httpcore2.AsyncNetworkBackend):
    """Dials the addresses that were checked, whatever name it is asked for."""

    def __init__(self) -> None:
        self.addresses: Sequence[str] = []
        self._network = httpcore2.AnyIOBackend()
        self._opened: list[httpcore2.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("no address")
        for address in self.addresses:
            try:
                self._opened.append(await self._network.connect_tcp(address, port, timeout=_CONNECT_S))
                return _Bounded(self._opened[-1])
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        """A handshake that is cancelled leaves its connection open: httpcore2 closes it for errors only."""
        for stream in self._opened:
            await stream.aclose()


class _Bounded(httpcore2.AsyncNetworkStream):
    """Ends reading after ANSWER_BYTES_MAX, head and interim answers included."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = ANSWER_BYTES_MAX

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise httpcore2.ReadError("the answer is too large")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _Bounded(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _parse(text: str) -> _Url:
    """Raises ValueError, which does not repeat the URL: it may hold a token."""
    match = _URL.fullmatch(text) if len(text) <= _URL_CHARS_MAX else None
    if match is None or not 1 <= int(match["port"] or 1) <= 65_535:
        raise ValueError("The URL of a webhook is https://host[:port]/path, without a user and a fragment.")
    scheme, bracketed, target = match["scheme"], match["host"].lower(), match["target"] or "/"
    host = bracketed.strip("[]")
    if bracketed != host and not _is_address(host):
        raise ValueError("The address in the URL of a webhook cannot be read.")
    return _Url(
        scheme=scheme,
        host=host,
        port=int(match["port"] or _PORTS[scheme]),
        authority=f"{bracketed}:{match['port']}" if match["port"] else bracketed,
        target=target if target.startswith("/") else f"/{target}",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _headers(url: _Url, secret: str, notice_id: str, body: bytes) -> dict[bytes | str, bytes | str]:
    now = clock.utc_now()
    return {
        "host": url.authority,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "claude-relay",
        "accept-encoding": "identity",
        "connection": "close",
        "webhook-id": notice_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(_key(secret)).sign(notice_id, now, body.decode()),
    }


def _key(secret: str) -> bytes:
    """Raises ValueError."""
    match = _SECRET.fullmatch(secret)
    try:
        key = base64.b64decode(match[1], validate=True) if match else b""
    except ValueError:
        key = b""
    if len(key) not in _SECRET_BYTES:
        raise ValueError("The secret of a webhook is whsec_ and the base64 of 24 to 64 bytes.")
    return key


def _sentence(error: Exception) -> str:
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return "The certificate of the receiver is not valid for its name."
    if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
        return "The receiver cannot be reached."
    return "The connection to the receiver broke, or its answer cannot be read."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
