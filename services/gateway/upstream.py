"""The only code that speaks to the Claude API: builds the request, opens the answer, and names what went wrong."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import httpx2
import msgspec

from libs.common.errors import Overloaded, RelayError, UpstreamFailed, UpstreamTimedOut
from services.gateway.headers import Headers, upstream_request, value
from services.gateway.outlet import Outlet
from services.gateway.transport import UpstreamTransport
from services.gateway.verdict import NEVER_SENT

_log: Final = logging.getLogger("relay.upstream")
_BUSY: Final = "The upstream cannot be reached. Nothing was charged; please try again in a few seconds."
_BROKE: Final = "The upstream closed the connection before it answered. Nothing was charged."
_SILENT: Final = "The upstream did not answer in time. Nothing was charged."
_ODD_ANSWER: Final = "The upstream sent an answer this relay cannot read. Nothing was charged."
_PLAIN: Final = frozenset({b"", b"identity"})


def _ignore() -> None: ...


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request to the upstream. `target` is a path of our own table, with the caller's query untouched."""

    method: str
    target: bytes
    headers: Headers
    body: bytes
    connection_listed: frozenset[bytes] = frozenset()


class Response(Protocol):
    """The upstream's answer. As an iterator it is the body, which is to be read to its end, or closed: safe to do twice."""

    @property
    def status(self) -> int:
        """Of the final head."""

    @property
    def headers(self) -> Headers:
        """As they came."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def pour(self, take: Callable[[bytes], bool], outlet: Outlet) -> None:
        """The body to its end, each chunk handed to `take`, which writes it to `outlet` and says whether that is full: then it is
        waited for. Raises httpx2.TransportError, and what the two raise."""

    async def aclose(self) -> None:
        """Let the upstream go."""


class _Foreign:
    """The answer of a transport that is not ours."""

    def __init__(self, response: httpx2.Response) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._stream = response.stream
        self.aclose = response.aclose

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def pour(self, take: Callable[[bytes], bool], outlet: Outlet) -> None:
        """See Response."""
        outlet.flush()
        async for chunk in self._stream:
            if take(chunk):
                await outlet.drained()


class Upstream:
    """A credential and the way to it."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, *, url: str, api_key: str) -> None:
        base = httpx2.URL(url)
        self._transport = transport
        self._base = base
        self._prefix = base.raw_path.rstrip(b"/")
        self._credential = api_key.encode()

    async def send(self, call: Call, *, on_sent: Callable[[], None] = _ignore) -> Response:
        """The upstream's answer, its body still to be read and then closed. Raises RelayError, ready for the caller; its cause
        is the transport's error.

        `on_sent` is called when the request goes out: before that, nobody can have worked for it.
        """
        target = self._prefix + call.target
        headers = upstream_request(call.headers, credential=self._credential, connection_listed=call.connection_listed)
        transport = self._transport
        try:
            if isinstance(transport, UpstreamTransport):  # no request is made that it would only take apart again
                return await transport.send(
                    call.method, self._base, target=target, headers=headers, body=call.body, on_sent=on_sent
                )
            request = httpx2.Request(
                call.method,
                self._base.copy_with(raw_path=target),
                headers=headers,
                stream=httpx2.ByteStream(call.body),
                extensions={"target": target, "sent": on_sent},
            )
            return _Foreign(await transport.handle_async_request(request))
        except httpx2.TransportError as error:
            _log.warning("no answer from the upstream: %s: %s", type(error).__name__, error)
            raise explain(error) from error


def explain(error: httpx2.TransportError) -> RelayError:
    """What the caller is told of a failure before the first byte of an answer."""
    if isinstance(error, NEVER_SENT):
        return Overloaded(_BUSY)
    if isinstance(error, httpx2.TimeoutException):
        return UpstreamTimedOut(_SILENT)
    return UpstreamFailed(_BROKE)


async def read_whole(response: Response, *, bytes_max: int) -> bytes:
    """A body, whole, so that it can be judged before any of it is shown. Raises RelayError."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in response:
            size += len(chunk)
            if size > bytes_max:
                raise UpstreamFailed(_ODD_ANSWER)
            chunks.append(chunk)
    except httpx2.TransportError as error:
        raise explain(error) from error
    return b"".join(chunks)


def is_packed(response: Response) -> bool:
    """Whether a body has a content coding, which was never asked for: it cannot be judged by its bytes."""
    return value(response.headers, b"content-encoding").lower() not in _PLAIN
