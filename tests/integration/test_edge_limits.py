"""Callers who send too slowly, too much or too early, and those who do not read: each is told in time, and costs no memory."""

import select
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from services.gateway.connection import RelayProtocol
from services.gateway.framing import ServerLimits
from tests.integration.edge_rig import (
    GET,
    HOST,
    WAIT_S,
    Caller,
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

SHORT_S = 0.4
BODY_BYTES_MAX = 1 << 20
BUDGET_BYTES = 2 << 20
LENGTH = b"POST / HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def one_edge() -> Iterator[Edge]:
    limits = ServerLimits(
        head_seconds=SHORT_S,
        body_seconds=SHORT_S,
        body_bytes_max=BODY_BYTES_MAX,
        reader_stalled_seconds=SHORT_S,
        keep_alive_seconds=2 * SHORT_S,
        linger_seconds=2 * SHORT_S,
        body_bytes_per_second_min=1 << 20,
    )
    with running(limits, budget_bytes=BUDGET_BYTES) as edge:
        yield edge


@pytest.fixture
def edge(one_edge: Edge) -> Iterator[Edge]:
    """One that forgets nothing: after each test nothing of it may be left."""
    one_edge.app = echo
    one_edge.refused.clear()
    yield one_edge
    wait_until(one_edge.at_rest)


def trickle(caller: Caller, data: bytes, *, pause_s: float = SHORT_S / 8) -> float:
    """Send byte after byte until an answer comes; how long that took."""
    started = time.monotonic()
    caller.socket.settimeout(pause_s)
    for at in range(len(data)):
        caller.send(data[at : at + 1])
        try:
            caller.ahead += caller.socket.recv(1 << 16)
        except TimeoutError:
            continue
        caller.socket.settimeout(WAIT_S)
        return time.monotonic() - started
    raise AssertionError("all of it was taken")


def test_a_trickled_head(edge: Edge) -> None:
    with edge.caller() as caller:
        took_s = trickle(caller, b"GET / HTTP/1.1\r\n" + b"x-a: 1\r\n" * 20)
        refused = caller.answer()
        assert refused.status == 408 and refused.error["type"] == "timeout_error"
        assert SHORT_S * 0.9 < took_s < SHORT_S * 3
        assert caller.is_closed()
    assert edge.refused == ["HeadTimedOut"]


def test_a_head_that_stops(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"G")
        assert caller.answer().status == 408


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_trickled_body(edge: Edge, framing: str) -> None:
    edge.app = watched = Watched()
    with edge.caller() as caller:
        caller.send(LENGTH % 10_000 if framing == "length" else CHUNKED)
        took_s = trickle(caller, b"1\r\na\r\n" * 50 if framing == "chunked" else b"a" * 100)
        refused = caller.answer()
        assert refused.status == 408 and refused.error["type"] == "timeout_error"
        assert SHORT_S * 0.9 < took_s < SHORT_S * 3
        watched.wait_told()
        assert caller.is_closed()
    assert edge.refused == ["BodyTimedOut"]


def test_a_large_body_has_longer(edge: Edge) -> None:
    """`body_seconds` plus a second a megabyte."""
    body = b"a" * BODY_BYTES_MAX
    with edge.caller() as caller:
        caller.send(LENGTH % len(body) + body[:10])
        time.sleep(SHORT_S * 2)
        caller.send(body[10:])
        assert caller.answer().status == 200


def test_a_body_the_application_is_slow_to_read_is_not_late(edge: Edge) -> None:
    read = threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await edge.loop.run_in_executor(None, read.wait)
        await answer(send, b"%d" % len(await read_all(receive)))

    edge.app = slow
    with edge.caller() as caller:
        caller.send(LENGTH % 500_000 + b"a" * 400_000)
        time.sleep(SHORT_S * 3)
        read.set()
        caller.send(b"a" * 100_000)
        assert caller.answer().body == b"500000"


def test_idle_connections_are_closed(edge: Edge) -> None:
    """Without a word: one that never spoke, one after an answer, and one that sends empty lines only."""
    with edge.caller() as silent, edge.caller() as served, edge.caller() as empty:
        served.send(GET)
        assert served.answer().status == 200
        for _ in range(5):
            empty.send(b"\r\n")
        started = time.monotonic()
        assert silent.is_closed() and served.is_closed() and empty.is_closed()
        assert time.monotonic() - started < SHORT_S * 6
    assert edge.refused == []


def test_a_body_over_the_limit_is_refused_before_it_is_read(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"POST / HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 1048577\r\n\r\n")
        refused = caller.answer()
        assert refused.status == 413 and refused.error["type"] == "request_too_large"
        assert caller.is_closed()
    assert edge.budget.bytes_held == 0


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_the_refusal_reaches_who_is_still_sending(edge: Edge, framing: str) -> None:
    """He sends all of 20 MB before he reads: no reset may destroy the answer."""
    edge.app = watched = Watched()
    size = 20 << 20
    with edge.caller() as caller:
        caller.send(
            LENGTH % size + b"a" * size if framing == "length" else chunked(*(b"a" * (1 << 16),) * (size >> 16))
        )
        refused = caller.answer()
        assert refused.status == 413 and refused.error["type"] == "request_too_large"
        assert caller.is_closed()
    assert edge.refused == ["RequestTooLarge"]
    if framing == "chunked":
        watched.wait_told()


async def _refuses(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"no", status=401)


def test_an_early_answer_reaches_who_is_still_sending(edge: Edge) -> None:
    """And the connection can be used again: the rest of the body is read and thrown away."""
    edge.app = _refuses
    with edge.caller() as caller:
        for request in (post(b"a" * BODY_BYTES_MAX), post(b"a" * 1_000), GET):
            caller.send(request)
            answered = caller.answer()
            assert answered.status == 401 and "connection" not in answered.headers


def test_an_early_answer_to_a_chunked_body_is_the_last(edge: Edge) -> None:
    """Where the body ends is known when it has ended; what he sent behind it would be lost without a word."""
    edge.app = _refuses
    with edge.caller() as caller:
        caller.send(CHUNKED + b"5\r\nhello\r\n")
        answered = caller.answer()
        assert answered.status == 401 and answered.headers["connection"] == "close"
        caller.send(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
        caller.send(b"0\r\n\r\n" + GET)
        assert caller.is_closed()


def test_who_goes_on_sending_after_a_refusal_is_cut_off(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"nonsense\r\n\r\n")
        assert caller.answer().status == 400
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            _send_on(caller)


def _send_on(caller: Caller) -> None:
    for _ in range(1_000):
        caller.send(b"more")
        time.sleep(0.01)


def test_the_bound_on_bodies_of_all(edge: Edge) -> None:
    """Who sends the byte that is too many is refused; the others are served, and nothing stays counted."""
    edge.app = watched = Watched()
    with edge.caller() as first, edge.caller() as second, edge.caller() as third:
        for caller in (first, second):
            caller.send(post(b"a" * (900 << 10)))
        wait_until(lambda: watched.read == 2)
        assert edge.budget.bytes_held == 1_800 << 10
        third.send(LENGTH % (900 << 10) + b"a" * (300 << 10))
        refused = third.answer()
        assert refused.status == 529 and refused.error["type"] == "overloaded_error"
        assert refused.headers["retry-after"] == "2"
    watched.wait_told()


def test_a_counted_body_is_free_once_its_answer_begins(edge: Edge) -> None:
    done = threading.Event()

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await begin(send)
        await edge.loop.run_in_executor(None, done.wait)
        await chunk(send, b"", more=False)

    edge.app = streams
    with edge.caller() as caller:
        caller.send(post(b"a" * 1_000_000))
        caller.until(b"\r\n\r\n")
        held = edge.budget.bytes_held
        done.set()
    assert held == 0


@pytest.mark.parametrize("bytes_a_second", [0, 50])
def test_who_does_not_read_is_cut_off(edge: Edge, bytes_a_second: int) -> None:
    """The application hears it, and it could write only so much."""
    sent = 0
    told = threading.Event()

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await read_all(receive)
        await begin(send)
        hears = edge.loop.create_task(_hears(receive, told))
        while not told.is_set():
            await chunk(send, b"a" * 8_192)
            sent += 8_192
        await hears

    edge.app = streams
    with edge.caller(receive_buffer=4_096) as caller:
        caller.send(GET)
        started = time.monotonic()
        while not told.wait(0.1):
            assert time.monotonic() - started < 4
            caller.socket.recv(bytes_a_second // 10) if bytes_a_second else None
        assert time.monotonic() - started > SHORT_S * 0.9
        wait_until(edge.at_rest)
        with pytest.raises((ConnectionResetError, EOFError)):
            caller.answer()
    assert sent < 1 << 20
    assert edge.refused == ["ReaderStalled"]


async def _hears(receive: Receive, told: threading.Event) -> None:
    if (await receive())["type"] == "http.disconnect":
        told.set()


def test_who_does_not_take_the_end_of_an_answer_is_cut_off(edge: Edge) -> None:
    """The application has done its part, the connection is closing, and still it does not stay."""

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send, (b"connection", b"close"))
        await chunk(send, b"a" * 400_000, more=False)

    edge.app = large
    calls = edge.calls
    with edge.caller(receive_buffer=4_096) as caller:
        caller.send(GET)
        wait_until(lambda: edge.calls > calls and edge.at_rest(), seconds=4)
        with pytest.raises((ConnectionResetError, EOFError)):
            caller.answer()


def test_who_reads_slowly_but_reads_gets_it_all(edge: Edge) -> None:
    """600 KB/s: far slower than it comes, longer than the limit for one who stands still, and what the kernel keeps for
    him (edge.py) leaves within that limit."""
    whole = b"a" * 800_000

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        for at in range(0, len(whole), 8_000):
            await chunk(send, whole[at : at + 8_000])
        await chunk(send, b"", more=False)

    edge.app = large
    with edge.caller(receive_buffer=16_384) as caller:
        caller.send(GET)
        while len(caller.ahead) < 700_000:
            caller.ahead += caller.socket.recv(12_000)
            time.sleep(0.02)
        assert caller.answer().body == whole
    assert edge.refused == []


def test_read_ahead_is_bounded(edge: Edge) -> None:
    """Who pipelines while an answer is under way fills his own buffers, not ours."""
    gate = threading.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await edge.loop.run_in_executor(None, gate.wait)
        await answer(send, b"ok")

    edge.app = waits
    request, sent = post(b"a" * 100_000), 0
    with edge.caller() as caller:
        caller.socket.setblocking(False)
        while select.select([], [caller.socket], [], 0.3)[1]:
            sent += caller.socket.send(request[sent % len(request) :])
        (connection,) = edge.server.server_state.connections
        assert isinstance(connection, RelayProtocol) and connection.flow.read_paused
        assert len(connection._held) < 512 * 1024 < sent
        gate.set()
        caller.socket.settimeout(WAIT_S)
        for _ in range(3):
            assert caller.answer().body == b"ok"
