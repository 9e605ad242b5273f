"""The pool and its rules, against scripted upstreams on loopback sockets, on both event loops."""

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from services.gateway import transport as transport_module
from tests.unit.gateway.upstreams import ENDLESS, OK, Wire, answering, ask, echo, fetch, read, serving, transport, until

pytestmark = pytest.mark.anyio
LARGE = b"x" * 8_000_000


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The services run uvloop; its transports differ from asyncio's where it hurts."""
    return "asyncio", {"use_uvloop": request.param}


# -- reuse ------------------------------------------------------------------------------------------------------------


async def test_one_connection_serves_many_requests() -> None:
    async with serving(echo) as server, transport() as via:
        for body in (b"one", b"", b"three"):
            assert await fetch(via, server.url + "/v1/messages?beta=true", body) == body
        assert via.stats.open == via.stats.idle == 1
    (wire,) = server.wires
    host = server.url.removeprefix("http://").encode()
    assert (
        wire.asked[0].head
        == b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: 3\r\n\r\n"
    )


async def test_a_head_is_what_was_given_less_what_is_ours_to_say() -> None:
    headers = [(b"X-Api-Key", b"k"), (b"Connection", b"close"), (b"a", b"1"), (b"a", b"2"), (b"content-length", b"99")]
    async with serving(answering(OK)) as server, transport() as via:
        await read(await ask(via, server.url, headers=headers, method="GET"))
    lines = server.wires[0].asked[0].head.split(b"\r\n")
    assert [lines[0], *lines[2:]] == [b"GET / HTTP/1.1", b"X-Api-Key: k", b"a: 1", b"a: 2", b"", b""]


@pytest.mark.parametrize("bad", [b"a\r\nx-evil: 1", b"a\n", b"a\r", b"a\0b"])
@pytest.mark.parametrize("where", ["name", "value", "target"])
async def test_line_breaks_and_nuls_are_refused(bad: bytes, where: str) -> None:
    async with serving(echo) as server, transport() as via:
        headers = [(bad, b"1")] if where == "name" else [(b"a", bad)] if where == "value" else []
        extensions = {"target": b"/" + bad} if where == "target" else {}
        with pytest.raises(httpx2.LocalProtocolError):
            await via.handle_async_request(
                httpx2.Request("GET", server.url, headers=headers, stream=httpx2.ByteStream(b""), extensions=extensions)
            )
    assert server.wires == []


async def test_an_answer_passes_raw_and_a_redirect_is_an_answer() -> None:
    zipped = b"HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\n\x1f\x8b\x08\0!"
    async with serving(answering(zipped)) as server, transport() as via:
        response = await ask(via, server.url)
        assert response.status_code == 302
        assert response.headers.raw[0] == (b"location", b"/b")
        assert await read(response) == b"\x1f\x8b\x08\0!"
    assert len(server.bodies) == 1


async def test_the_environment_s_proxies_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(echo) as server, transport() as via:
        assert await fetch(via, server.url, b"direct") == b"direct"


async def test_interim_answers_are_skipped() -> None:
    interim = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]
    async with serving(answering(*interim, OK)) as server, transport() as via:
        for _ in range(2):
            response = await ask(via, server.url)
            assert response.status_code == 200
            assert response.headers.raw == [(b"content-length", b"2")]
            assert await read(response) == b"ok"
    assert len(server.wires) == 1


async def test_a_chunk_is_handed_over_before_the_next_is_sent() -> None:
    taken = asyncio.Queue[bytes]()

    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(ENDLESS)
        for number in range(20):
            wire.chunk(b"%d" % number)
            async with asyncio.timeout(2):
                assert await taken.get() == b"%d" % number
        wire.send(b"0\r\n\r\n")

    async with serving(handler) as server, transport() as via:
        response = await ask(via, server.url)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        async for chunk in response.stream:
            taken.put_nowait(chunk)
        await response.aclose()
        await server.tasks[0]


async def test_an_answer_closed_unread_leaves_nothing_for_the_next_caller() -> None:
    async with serving(echo) as server, transport() as via:
        response = await ask(via, server.url, b"secret")
        await until(lambda: next(iter(via._active)).answer.done)  # type: ignore[union-attr]
        await response.aclose()
        await response.stream.aclose()  # type: ignore[union-attr]
        assert await fetch(via, server.url, b"mine") == b"mine"
        assert len(server.wires) == 1
        assert await read(response) == b""


# -- stale connections -------------------------------------------------------------------------------------------------


async def closing_when_reused(wire: Wire, *, reset: bool) -> None:
    await wire.request()
    wire.send(OK)
    if wire.number == 0:
        await wire.reader.read(1)
        await asyncio.sleep(0.005)
        wire.reset() if reset else wire.close()
    else:
        await wire.request()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_stale_connection_is_replaced_and_the_body_sent_again_whole(reset: bool) -> None:
    body = bytes(range(256)) * 2000
    async with serving(lambda wire: closing_when_reused(wire, reset=reset)) as server, transport() as via:
        await fetch(via, server.url, b"first")
        assert await fetch(via, server.url, body) == b"ok"
        assert via.stats.open == 1
    assert [len(wire.asked) for wire in server.wires] == [1, 1]
    assert server.bodies[1] == body


async def test_a_connection_is_replaced_once_only() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        if wire.number == 0:
            wire.send(OK)
            await wire.request()
        wire.close()

    async with serving(handler) as server, transport() as via:
        await fetch(via, server.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await fetch(via, server.url)
        assert via.stats.open == 0
    assert len(server.wires) == 2


async def test_a_stale_connection_is_not_replaced_by_another_stale_one() -> None:
    together = asyncio.Event()

    async def handler(wire: Wire) -> None:
        await wire.request()
        if wire.number < 2:
            await together.wait()
            wire.send(OK)
            await wire.request()
            wire.close()
        else:
            wire.send(OK)
            await wire.left()

    async with serving(handler) as server, transport() as via:
        loop = asyncio.get_running_loop()
        both = [loop.create_task(fetch(via, server.url)) for _ in range(2)]
        await until(lambda: len(server.bodies) == 2)
        together.set()
        await asyncio.gather(*both)
        assert via.stats.idle == 2
        assert await fetch(via, server.url, b"x") == b"ok"
    assert len(server.wires) == 3
    assert server.bodies.count(b"x") == 2


@pytest.mark.parametrize("reset", [False, True])
async def test_a_fresh_connection_is_never_replaced(reset: bool) -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.reset() if reset else wire.close()

    async with serving(handler) as server, transport() as via:
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            await fetch(via, server.url)
        assert via.stats.open == 0
    assert len(server.wires) == 1


@pytest.mark.parametrize("began", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n"])
async def test_nothing_is_repeated_after_a_byte_of_an_answer(began: bytes) -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(OK)
        await wire.request()
        wire.send(began)
        wire.close()

    async with serving(handler) as server, transport() as via:
        await fetch(via, server.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await fetch(via, server.url)
    assert len(server.wires) == 1


async def test_nothing_is_repeated_when_the_upstream_had_time_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_STALE_S_MAX", 0.01)

    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(OK)
        await wire.request()
        await asyncio.sleep(0.05)
        wire.close()

    async with serving(handler) as server, transport() as via:
        await fetch(via, server.url)
        with pytest.raises(httpx2.RemoteProtocolError):
            await fetch(via, server.url)
    assert len(server.wires) == 1


async def test_bytes_not_asked_for_are_never_taken_for_an_answer() -> None:
    """They wait in the kernel, unseen by the loop, when the connection is taken from the pool."""
    async with serving(echo) as server, transport() as via:
        await fetch(via, server.url)
        peer: socket.socket = server.wires[0].writer.get_extra_info("socket")
        with socket.socket(fileno=socket.dup(peer.fileno())) as raw:
            raw.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")
            assert await fetch(via, server.url, b"right") == b"right"
    assert len(server.wires) == 2


# -- broken connections ------------------------------------------------------------------------------------------------


async def test_an_error_and_then_a_good_answer() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n" if wire.number == 0 else OK)
        await wire.left()

    async with serving(handler) as server, transport() as via:
        with pytest.raises(httpx2.RemoteProtocolError):
            await fetch(via, server.url)
        assert via.stats.open == 0
        assert await fetch(via, server.url) == b"ok"


@pytest.mark.parametrize("close", [False, True])
async def test_an_early_answer_is_delivered_although_the_request_cannot_be_sent(close: bool) -> None:
    """The upstream answers 413 while the body is still on its way, reads no more of it, and may be gone at once."""

    async def handler(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await asyncio.sleep(0.01)
        if close:
            wire.close()

    async with serving(handler) as server, transport() as via:
        response = await ask(via, server.url, LARGE)
        assert response.status_code == 413
        await server.tasks[0]
        await asyncio.sleep(0.02)
        assert await read(response) == b"large"
        assert via.stats.open == 0


async def test_a_head_too_large_is_refused_and_the_connection_closed() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"a" * 300_000 + b"\r\ncontent-length: 0\r\n\r\n")
        await wire.left()

    async with serving(handler) as server, transport() as via:
        with pytest.raises(httpx2.RemoteProtocolError):
            await ask(via, server.url)
        assert via.stats.open == 0
        await server.tasks[0]


# -- time limits -------------------------------------------------------------------------------------------------------


async def test_a_refused_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with transport() as via:
            with pytest.raises(httpx2.ConnectError):
                await ask(via, f"http://127.0.0.1:{unused.getsockname()[1]}")
            assert via.stats.open == 0


async def test_the_first_byte_has_a_time_limit() -> None:
    async def handler(wire: Wire) -> None:
        await wire.left()

    async with serving(handler) as server, transport(first_byte_timeout_s=0.05, idle_timeout_s=60) as via:
        with pytest.raises(httpx2.ReadTimeout):
            await ask(via, server.url)
        assert via.stats.open == 0
        await server.tasks[0]
    assert len(server.wires) == 1


async def test_silence_inside_an_answer_has_a_time_limit() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(ENDLESS)
        for _ in range(8):  # together longer than the limit
            wire.chunk(b"a")
            await asyncio.sleep(0.05)
        await wire.left()

    async with serving(handler) as server, transport(first_byte_timeout_s=60, idle_timeout_s=0.3) as via:
        response = await ask(via, server.url)
        received: list[bytes] = []
        with pytest.raises(httpx2.ReadTimeout):
            await take(response, received)
        await response.aclose()
        assert b"".join(received) == b"a" * 8
        assert via.stats.open == 0
        await server.tasks[0]


async def take(response: httpx2.Response, received: list[bytes]) -> None:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    async for chunk in response.stream:
        received.append(chunk)  # noqa: PERF401 - what came before an error counts
