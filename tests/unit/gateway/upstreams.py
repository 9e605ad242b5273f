"""Upstreams that do exactly what a test says, byte by byte, on a loopback socket; and what a test asks of them."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import httpx2

from services.gateway.transport import TransportConfig, UpstreamTransport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WITHIN_S = 5.0


@dataclass(frozen=True)
class Asked:
    """A request as it came over the wire."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]


class Wire:
    """One connection, seen from the upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self.asked: list[Asked] = []

    async def request(self) -> Asked:
        """Read one whole request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        asked = Asked(head, await self.reader.readexactly(int(length)))
        self.asked.append(asked)
        return asked

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n" % len(data) + data + b"\r\n")

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        """Wait until the relay has closed the connection; what still comes is read."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 20):
                pass


Handler = Callable[[Wire], Awaitable[None]]


@dataclass
class Server:
    """A listening upstream."""

    port: int
    scheme: str
    wires: list[Wire] = field(default_factory=list)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[bytes]:
        return [asked.body for wire in self.wires for asked in wire.asked]


@contextlib.asynccontextmanager
async def serving(handler: Handler, *, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """An upstream; `handler` speaks on each connection. What it raises fails the test, but for a connection that is gone."""
    loop = asyncio.get_running_loop()

    async def speak(wire: Wire) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await handler(wire)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer, len(server.wires))
        server.wires.append(wire)
        server.tasks.append(loop.create_task(speak(wire)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    server = Server(listener.sockets[0].getsockname()[1], "https" if context else "http")
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        results = await asyncio.gather(*server.tasks, return_exceptions=True)
        for wire in server.wires:
            wire.writer.transport.abort()
        await asyncio.sleep(0.01)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def echo(wire: Wire) -> None:
    """Answers each request with its own body."""
    while True:
        asked = await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(asked.body) + asked.body)


def answering(*pieces: bytes, close: bool = False) -> Handler:
    """Answers each request with these bytes."""

    async def handler(wire: Wire) -> None:
        while True:
            await wire.request()
            wire.send(*pieces)
            if close:
                wire.close()
                return

    return handler


@contextlib.asynccontextmanager
async def transport(**config: object) -> AsyncIterator[UpstreamTransport]:
    """A transport that is closed at the end, with nothing left open."""
    made = UpstreamTransport(TransportConfig(**config))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.aclose()
        assert made.stats.open == made.stats.idle == 0


async def ask(
    via: httpx2.AsyncBaseTransport,
    url: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> httpx2.Response:
    """Status and headers; the body still to be read."""
    request = httpx2.Request(method, url, headers=list(headers), stream=httpx2.ByteStream(body))
    async with asyncio.timeout(WITHIN_S):
        return await via.handle_async_request(request)


async def read(response: httpx2.Response) -> bytes:
    """The body; the response is closed after it."""
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    try:
        async with asyncio.timeout(WITHIN_S):
            return b"".join([chunk async for chunk in response.stream])
    finally:
        await response.aclose()


async def fetch(via: httpx2.AsyncBaseTransport, url: str, body: bytes = b"", *, method: str = "POST") -> bytes:
    """Ask and read."""
    return await read(await ask(via, url, body, method=method))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, not for long."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.002)
