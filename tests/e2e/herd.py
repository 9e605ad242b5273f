"""Hundreds of callers on connections that stay open, and an upstream that keeps every request waiting until a test lets it go."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx2

from libs.common import money
from tests.e2e.leaving import ANSWER, FINAL, JSON_HEAD, START, STOP, STREAM_HEAD, request_body
from tests.e2e.relay import Gateway, Relay
from tests.e2e.waiting import PLAIN, WAIT_S
from tests.e2e.wire import chunk

END_OF_HEAD: Final = b"\r\n\r\n"
_STREAM_BEGIN: Final = STREAM_HEAD + chunk(START)
_STREAM_END: Final = chunk(FINAL + STOP) + b"0\r\n\r\n"
_WHOLE: Final = JSON_HEAD + ANSWER
_OPENED_AT_ONCE: Final = 50


@dataclass(frozen=True)
class Answer:
    """What a caller got."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The `error` of an answer that is one."""
        return dict(json.loads(self.body)["error"])


class Line:
    """A caller's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, gateway: Gateway) -> Self:
        """Connect."""
        address = urlsplit(gateway.url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    def send(self, request: bytes) -> None:
        """At once, as far as the kernel takes it."""
        self._writer.write(request)

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Status and headers. Raises IncompleteReadError, ConnectionError."""
        start, *lines = (await self._reader.readuntil(END_OF_HEAD))[:-4].split(b"\r\n")
        pairs = [line.partition(b":") for line in lines]
        return int(start.split(b" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self) -> Answer:
        """A whole answer. Raises IncompleteReadError, ConnectionError."""
        status, headers = await self.head()
        if headers.get(b"transfer-encoding") != b"chunked":
            return Answer(status, headers, await self._reader.readexactly(int(headers[b"content-length"])))
        pieces = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            pieces.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return Answer(status, headers, b"".join(pieces))

    def abort(self) -> None:
        """Leave without a word."""
        self._writer.transport.abort()


class HoldingUpstream:
    """Begins a stream, or says nothing yet, and goes on when the test lets it. Counts how many it has open at once."""

    def __init__(self) -> None:
        self.holding = True
        self.received = 0
        self.open_max = 0
        self._waiting: dict[_Peer, bytes] = {}
        """What each is still to be told."""
        self.peers: set[_Peer] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, port: int) -> AsyncIterator[Self]:
        """On a port that gateways know already."""
        upstream = cls()
        server = await asyncio.get_running_loop().create_server(
            lambda: _Peer(upstream), "127.0.0.1", port, backlog=1024
        )
        try:
            yield upstream
        finally:
            upstream.let_go()
            server.close()
            for peer in upstream.peers:
                peer.close()
            await until(lambda: not upstream.peers, lambda: f"{len(upstream.peers)} connections are open")

    @property
    def open(self) -> int:
        """Requests under way."""
        return len(self._waiting)

    def hold(self) -> None:
        """From now on everybody waits."""
        self.holding, self.open_max = True, 0

    def let_go(self, count: int | None = None) -> None:
        """Answer so many of those who wait; without a number all of them, and all who come."""
        self.holding = count is not None
        for peer in list(self._waiting)[:count]:
            peer.write(self._waiting.pop(peer))

    def came(self, peer: "_Peer", *, stream: bool) -> None:
        """A request is whole."""
        self.received += 1
        if stream:
            peer.write(_STREAM_BEGIN)
        self._waiting[peer] = _STREAM_END if stream else _WHOLE
        self.open_max = max(self.open_max, self.open)
        if not self.holding:
            peer.write(self._waiting.pop(peer))

    def left(self, peer: "_Peer") -> None:
        """The relay has hung up."""
        self.peers.discard(peer)
        self._waiting.pop(peer, None)


class _Peer(asyncio.Protocol):
    """A connection of the relay's."""

    def __init__(self, upstream: HoldingUpstream) -> None:
        self._upstream = upstream
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.write, self.close = transport.write, transport.close
        self._upstream.peers.add(self)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(END_OF_HEAD)
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._read = b""
            self._upstream.came(self, stream=b'"stream": true' in body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.left(self)


class Herd:
    """Many lines, spread over gateways."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.answers: list[asyncio.Task[Answer]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, size: int, gateways: Sequence[Gateway]) -> AsyncIterator[Self]:
        """Connected."""
        lines: list[Line] = []
        while len(lines) < size:
            places = range(len(lines), min(size, len(lines) + _OPENED_AT_ONCE))
            lines += await asyncio.gather(*(Line.to(gateways[place % len(gateways)]) for place in places))
        herd = cls(lines)
        try:
            yield herd
        finally:
            for line in lines:
                line.abort()
            for answer in herd.answers:
                answer.cancel()
            await asyncio.gather(*herd.answers, asyncio.sleep(0), return_exceptions=True)

    def ask(self, request: bytes) -> None:
        """All of them, all at once."""
        for line in self.lines:
            line.send(request)
        self.answers = [asyncio.ensure_future(line.answer()) for line in self.lines]

    def answered(self) -> list[Answer]:
        """So far."""
        return [answer.result() for answer in self.answers if answer.done()]

    async def all_answered(self) -> list[Answer]:
        """Wait for all."""
        async with asyncio.timeout(WAIT_S):
            return await asyncio.gather(*self.answers)

    def statuses(self) -> Counter[int]:
        """Of what was answered so far."""
        return Counter(answer.status for answer in self.answered())


def request(key: str, *, stream: bool = False) -> bytes:
    """A request that holds more than it costs."""
    body = request_body(stream=stream)
    lines = [
        "POST /v1/messages HTTP/1.1",
        "host: relay",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-api-key: {key}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass(frozen=True)
class Size:
    """What such a request takes when it is admitted."""

    hold_nanos: int
    input_tokens: int
    """Estimated."""


def learned_size(relay: Relay) -> Size:
    """From the relay's own answers: what it needs, and what it leaves of a bucket."""
    bucket = 60_000_000  # a token a microsecond: nothing is rounded
    account, key = relay.new_account(credit_usd="0", limits={"itpm": bucket})

    def ask() -> httpx2.Response:
        headers = {"x-api-key": key, "content-type": "application/json"}
        return httpx2.post(
            f"{relay.gateway_url}/v1/messages", content=request_body(stream=False), headers=headers, verify=PLAIN
        )

    needed = ask().json()["error"]["needed_usd"]
    relay.post(f"/accounts/{account}/credits", {"amount_usd": needed, "reason": "test"})
    left = int(ask().headers["anthropic-ratelimit-input-tokens-remaining"])
    return Size(money.parse_usd(needed), bucket - left)


async def until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = WAIT_S) -> float:
    """As `wait_until`, without standing in the way of the loop."""
    started = asyncio.get_running_loop().time()
    while not condition():
        assert asyncio.get_running_loop().time() - started < seconds, f"not within {seconds} s: {what()}"
        await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time() - started
