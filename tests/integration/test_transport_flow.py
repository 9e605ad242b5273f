"""Bodies of any size at any pace: a slow caller slows the upstream down, and nothing piles up in between. On both event loops."""

import asyncio
import ssl
import tracemalloc
from typing import Any

import httpx2
import pytest
import trustme

from tests.unit.gateway.upstreams import ENDLESS, Wire, ask, fetch, read, serving, transport, until

pytestmark = pytest.mark.anyio
MB = 1024 * 1024


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The services run uvloop; its transports differ from asyncio's where it hurts."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def contexts(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """The upstream's and the relay's."""
    if not request.param:
        return None, None
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


class Sender:
    """An upstream that sends so much, as fast as it is let, and knows how much has left it."""

    def __init__(self, size: int, piece: bytes) -> None:
        self.size = size
        self.piece = piece
        self.sent = 0
        self.stalled = False

    async def __call__(self, wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.size)
        while self.sent < self.size:
            wire.send(self.piece)
            self.sent += len(self.piece)
            try:
                async with asyncio.timeout(0.15):
                    await wire.writer.drain()
            except TimeoutError:
                self.stalled = True
                await wire.writer.drain()
        await wire.left()


async def test_a_caller_who_reads_nothing_stops_the_upstream(
    contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None],
) -> None:
    server_tls, client_tls = contexts
    sender = Sender(100 * MB, b"x" * MB)
    async with serving(sender, context=server_tls) as server:
        config = {"ssl_context": client_tls, "first_byte_timeout_s": 0.4, "idle_timeout_s": 0.4}
        async with transport(**config) as via:
            response = await ask(via, server.url)
            await until(lambda: sender.stalled)
            (connection,) = via._active
            assert connection.answer is not None
            assert sum(map(len, connection.answer._chunks)) < 2 * MB
            assert sender.sent < 30 * MB  # the rest is the kernel's
            await asyncio.sleep(0.6)  # longer than the upstream may be silent: it is we who are
            size = 0
            async for chunk in response.stream:  # type: ignore[union-attr]
                size += len(chunk)
            await response.aclose()
            assert size == 100 * MB
            assert via.stats.idle == 1


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("kind", ["large", "single"])
async def test_a_long_body_takes_no_memory(kind: str) -> None:
    """100 MB in large pieces; 1 MB in chunks of a single byte."""

    async def large(wire: Wire) -> None:
        await wire.request()
        wire.send(ENDLESS)
        piece = b"y" * MB
        for _ in range(100):
            wire.chunk(piece)
            await wire.writer.drain()
        wire.send(b"0\r\n\r\n")

    async def single(wire: Wire) -> None:
        await wire.request()
        wire.send(ENDLESS)
        piece = b"1\r\ny\r\n" * 10_000
        for _ in range(MB // 10_000):
            wire.send(piece)
            await wire.writer.drain()
        wire.send(b"0\r\n\r\n")

    async with serving(large if kind == "large" else single) as server, transport() as via:
        response = await ask(via, server.url)
        size = 0
        tracemalloc.start()
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                size += len(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await response.aclose()
        assert size == (100 * MB if kind == "large" else MB // 10_000 * 10_000)
        assert peak < 8 * MB
        assert via.stats.idle == 1


async def test_single_bytes_at_the_upstream_s_pace() -> None:
    body = bytes(range(256)) * 4

    async def handler(wire: Wire) -> None:
        await wire.request()
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body:
            wire.send(bytes([byte]))
            await asyncio.sleep(0)
        await wire.left()

    async with serving(handler) as server, transport() as via:
        assert await fetch(via, server.url) == body


async def test_a_large_request_body_arrives_whole_at_a_slow_upstream() -> None:
    body = bytes(range(256)) * (32 * MB // 256)

    async def handler(wire: Wire) -> None:
        await asyncio.sleep(0.05)
        asked = await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + (b"1" if asked.body == body else b"0"))
        await wire.left()

    async with serving(handler) as server, transport() as via:
        assert await fetch(via, server.url, body) == b"1"
        assert via.stats.idle == 1


async def test_leaving_a_paused_answer_closes_it() -> None:
    sender = Sender(100 * MB, b"x" * MB)
    async with serving(sender) as server, transport() as via:
        response = await ask(via, server.url)
        await until(lambda: sender.stalled)
        await response.aclose()
        assert via.stats.open == 0
        await server.tasks[0]


async def test_an_upstream_that_breaks_while_the_caller_is_slow() -> None:
    """What came before is delivered, then comes the error."""

    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"x" * 1_000_000)
        await wire.writer.drain()
        wire.close()

    async with serving(handler) as server, transport(high_water_bytes=1000) as via:
        response = await ask(via, server.url)
        await asyncio.sleep(0.05)
        size = 0
        with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012 - the error comes somewhere inside the loop
            async for chunk in response.stream:  # type: ignore[union-attr]
                size += len(chunk)
        assert size == 1_000_000
        with pytest.raises(httpx2.RemoteProtocolError):
            await read(response)
        assert via.stats.open == 0
