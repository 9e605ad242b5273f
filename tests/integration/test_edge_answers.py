"""How answers are written: each piece at once, never more nor less than was announced, and half an answer never ends cleanly."""

import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.framing import ServerLimits
from tests.integration.edge_rig import (
    GET,
    HOST,
    Edge,
    Watched,
    answer,
    begin,
    chunk,
    chunked,
    echo,
    post,
    read_all,
    running,
    wait_until,
)

pytestmark = pytest.mark.alone

GET_10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(scope="module")
def one_edge() -> Iterator[Edge]:
    with running() as edge:
        yield edge


@pytest.fixture
def edge(one_edge: Edge) -> Iterator[Edge]:
    one_edge.app = echo
    yield one_edge
    wait_until(one_edge.at_rest)


def test_each_piece_is_written_at_once(edge: Edge) -> None:
    """A piece arrives while the next one does not exist yet, however small it is."""
    gate = threading.Semaphore(0)
    pieces = [b"%d" % number for number in range(50)]

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        for piece in pieces:
            await chunk(send, piece)
            await edge.loop.run_in_executor(None, gate.acquire)
        await chunk(send, b"", more=False)

    edge.app = streams
    with edge.caller() as caller:
        caller.send(GET)
        caller.until(b"\r\n\r\n")
        started = time.monotonic()
        for piece in pieces:
            assert caller.until(b"\r\n") + caller.until(b"\r\n") == b"%x\r\n%b\r\n" % (len(piece), piece)
            gate.release()
        assert caller.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert time.monotonic() - started < 1.5  # Nagle's algorithm would wait 40 ms for each


def test_the_kernel_is_told_not_to_wait_and_not_to_hoard(edge: Edge) -> None:
    edge.app = watched = Watched()
    with edge.caller() as caller:
        caller.send(GET)
        wait_until(lambda: watched.read == 1)
        (connection,) = edge.server.server_state.connections
        peer = connection.transport.get_extra_info("socket")
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024


def test_who_does_not_read_holds_up_the_application(edge: Edge) -> None:
    sent = 0
    size = 16_384

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await begin(send)
        while sent < 200 * size:
            await chunk(send, b"a" * size)
            sent += size
        await chunk(send, b"", more=False)

    edge.app = streams
    with edge.caller(receive_buffer=4_096) as caller:
        caller.send(GET)
        before = -1
        while before != sent or not sent:
            before = sent
            time.sleep(0.1)
        assert sent < 600_000
        assert caller.answer().body == b"a" * 200 * size


@pytest.mark.parametrize(
    ("request_bytes", "marked"), [(GET, b"transfer-encoding: chunked\r\n"), (GET_10, b"connection: close\r\n")]
)
def test_an_answer_without_a_length(edge: Edge, request_bytes: bytes, marked: bytes) -> None:
    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, (b"transfer-encoding", b"chunked"), (b"connection", b"keep-alive"))
        for piece in (b"a", b"", b"b"):
            await chunk(send, piece)
        await chunk(send, b"c", more=False)

    edge.app = streams
    with edge.caller() as caller:
        caller.send(request_bytes)
        answered = caller.answer()
        assert answered.body == b"abc" and marked in answered.head


def test_answers_without_a_body(edge: Edge) -> None:
    """A body the application gives all the same goes nowhere, and the connection lives on."""
    status = 200

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, *([(b"content-length", b"7")] if status == 200 else []), status=status)
        await chunk(send, b"no body", more=False)

    edge.app = app
    with edge.caller() as caller:
        caller.send(HEAD + HEAD)
        for _ in range(2):
            assert caller.answer(has_body=False).headers["content-length"] == "7"
        for status in (204, 304):
            caller.send(GET)
            answered = caller.answer(has_body=False)
            assert answered.status == status and "transfer-encoding" not in answered.headers
        status = 200
        caller.send(GET)
        assert caller.answer().body == b"no body"


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"1\r\nset-cookie: a=b"),
        (b"x-a", b"1\nset-cookie: a=b"),
        (b"x-a", b"1\rset-cookie: a=b"),
        (b"x-a\r\nx-b", b"1"),
        (b"x-a", b"1\0"),
        (b"x-a", b"na\xc3\xafve"),
        (b"content-length", b"many"),
    ],
)
def test_what_does_not_belong_into_a_header_never_gets_there(edge: Edge, header: tuple[bytes, bytes]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, header)

    edge.app = app
    with edge.caller() as caller:
        caller.send(GET)
        failed = caller.answer()
        assert failed.status == 500 and failed.error["type"] == "api_error"
        assert b"set-cookie" not in failed.head and b"x-a" not in failed.head


async def _crashes(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("a secret of ours")


async def _says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await read_all(receive)


async def _starts_with_a_body(scope: Scope, receive: Receive, send: Send) -> None:
    await chunk(send, b"body")


async def _unknown_status(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, status=999)


@pytest.mark.parametrize("app", [_crashes, _says_nothing, _starts_with_a_body, _unknown_status])
def test_an_application_that_fails_before_its_answer(edge: Edge, app: ASGIApp) -> None:
    edge.app = app
    with edge.caller() as caller:
        for _ in range(2):
            caller.send(post(b"hello"))
            failed = caller.answer()
            assert failed.status == 500 and failed.error["type"] == "api_error"
            assert b"secret" not in failed.body
        edge.app = echo
        caller.send(GET)
        assert caller.answer().status == 200


async def _half_chunked(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send)
    await chunk(send, b"half")


async def _half_of_its_length(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, (b"content-length", b"8"))
    await chunk(send, b"half")


async def _shorter_than_its_length(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, (b"content-length", b"8"))
    await chunk(send, b"half", more=False)


async def _longer_than_its_length(scope: Scope, receive: Receive, send: Send) -> None:
    await begin(send, (b"content-length", b"8"))
    await chunk(send, b"half")
    await chunk(send, b"more than half", more=False)


async def _crashes_in_between(scope: Scope, receive: Receive, send: Send) -> None:
    await _half_chunked(scope, receive, send)
    raise ValueError


@pytest.mark.parametrize(
    "app",
    [_half_chunked, _half_of_its_length, _shorter_than_its_length, _longer_than_its_length, _crashes_in_between],
)
@pytest.mark.parametrize("request_bytes", [GET, GET_10, GET + GET, post(b"a")], ids=["get", "1.0", "two", "post"])
def test_half_an_answer_is_seen_to_be_half(edge: Edge, app: ASGIApp, request_bytes: bytes) -> None:
    edge.app = app
    with edge.caller() as caller:
        caller.send(request_bytes)
        with pytest.raises((EOFError, ConnectionResetError)):
            caller.answer()


def test_half_an_answer_to_who_is_still_sending(edge: Edge) -> None:
    edge.app = _half_chunked
    with edge.caller() as caller:
        caller.send(post(b"a" * 100_000)[:-1])
        with pytest.raises((EOFError, ConnectionResetError)):
            caller.answer()


# -- shutdown ----------------------------------------------------------------------------------------------------------


def test_a_graceful_shutdown() -> None:
    """Idle connections end at once; what has begun is answered, and told that it was the last; nobody new is let in."""
    gate = threading.Event()
    watched = Watched()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        watched.read += 1
        await own.loop.run_in_executor(None, gate.wait)
        await answer(send, b"done")

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        await waits(scope, receive, _without_head(send))

    with running() as own, own.caller() as idle, own.caller() as waiting, own.caller() as reading:
        own.app = waits
        port = own.port
        sending = own.caller()
        idle.send(b"\r\n")
        waiting.send(GET)
        wait_until(lambda: watched.read == 1)
        own.app = streams
        reading.send(GET)
        reading.until(b"\r\n\r\n")
        wait_until(lambda: watched.read == 2)
        own.app = echo
        sending.send(post(b"hello")[:-2])
        wait_until(lambda: own.calls == 3)
        own.stop()
        assert idle.is_closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
        sending.send(b"lo")
        answered = sending.answer()
        assert answered.seen["body"] == "hello" and answered.headers["connection"] == "close"
        assert sending.is_closed() and not select.select([waiting.socket, reading.socket], [], [], 0.2)[0]
        assert not own.lifespan_ended_at
        gate.set()
        answered = waiting.answer()
        assert answered.body == b"done" and answered.headers["connection"] == "close"
        assert waiting.is_closed()
        assert reading.until(b"0\r\n\r\n") == b"4\r\ndone\r\n0\r\n\r\n" and reading.is_closed()
        sending.leave()


def _without_head(send: Send) -> Send:
    async def rest(message: object) -> None:
        if message["type"] == "http.response.body":  # type: ignore[index]
            await send(message)  # type: ignore[arg-type]

    return rest


def test_a_shutdown_that_waits_no_longer() -> None:
    """What runs is cancelled, may still put its things in order, and only then the lifespan ends."""
    cleaned_up_at: list[float] = []

    async def forever(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/streams":
            await begin(send)
            await chunk(send, b"half")
        try:
            while True:
                await receive()
        finally:
            for _ in range(20):  # many turns of the loop, as the closing of an upstream connection may take
                await own.loop.run_in_executor(None, time.sleep, 0.005)
            cleaned_up_at.append(time.monotonic())

    with (
        running(shutdown_seconds=1) as own,
        own.caller() as waiting,
        own.caller() as reading,
        own.caller() as speaking,
        own.caller() as lingering,
    ):
        own.app = forever
        waiting.send(GET)
        reading.send(b"GET /streams HTTP/1.1\r\n" + HOST + b"\r\n")
        reading.until(b"half\r\n")
        wait_until(lambda: own.calls == 2)
        speaking.send(b"POST / HT")
        lingering.send(b"nonsense\r\n\r\n")
        assert lingering.answer().status == 400
        wait_until(lambda: own.connections == 4)
        started = time.monotonic()
        own.stop()
        cut = waiting.answer()
        assert cut.status == 529 and cut.error["type"] == "overloaded_error"
        assert waiting.is_closed()
        with pytest.raises((EOFError, ConnectionResetError)):
            reading.until(b"0\r\n\r\n")
        assert speaking.is_closed()
        own.thread.join(5)
        assert time.monotonic() - started < 4
        assert len(cleaned_up_at) == 2 and own.lifespan_ended_at > max(cleaned_up_at)


def test_deadlines_are_kept_during_the_shutdown() -> None:
    limits = ServerLimits(head_seconds=0.3, body_seconds=0.3)
    with running(limits) as own, own.caller() as speaking, own.caller() as sending:
        speaking.send(b"POST / HT")
        sending.send(chunked(b"hello")[:-5])
        wait_until(lambda: own.connections == 2 and own.calls == 1)
        own.stop()
        assert speaking.answer().status == 408 and sending.answer().status == 408
