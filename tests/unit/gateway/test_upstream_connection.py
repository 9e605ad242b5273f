"""Framing, exchange by exchange: what bytes of an upstream mean, in any cut, and after which of them a connection is clean."""

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.upstream_answer import Answer
from services.gateway.upstream_connection import Connection

HEAD_BYTES_MAX = 4096
HIGH_WATER = 1000


class Socket(asyncio.Transport):
    """What a connection sees of the loop's transport."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.written: list[bytes] = []
        self.unsent = 0
        self.reading = True
        self.closing = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.written += [bytes(data) for data in list_of_data]

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.closing = True


class Rig:
    """A connection, its socket, and an upstream made of bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = Socket(sock)
        self.released: list[Connection] = []
        self.idle_lost: list[Connection] = []
        self.connection = Connection(
            ("http", "upstream", 80),
            high_water=HIGH_WATER,
            head_bytes_max=HEAD_BYTES_MAX,
            on_release=self.released.append,
            on_idle_lost=self.idle_lost.append,
        )
        self.connection.adopt(self.socket, self.socket)

    def begin(self, *, bodyless: bool = False) -> Answer:
        return self.connection.begin(b"POST / HTTP/1.1\r\n\r\n", b"body", bodyless=bodyless)

    def feed(self, *pieces: bytes, end: bool = False) -> None:
        for piece in pieces:
            self.connection.data_received(piece)
        if end:
            self.connection.eof_received()
            self.connection.connection_lost(None)


@pytest.fixture
def rig() -> Iterator[Callable[[], Rig]]:
    """Makes rigs; called inside a loop."""
    sockets: list[socket.socket] = []

    def make() -> Rig:
        sockets.append(socket.socket())
        return Rig(sockets[-1])

    yield make
    for sock in sockets:
        sock.close()


async def body_of(answer: Answer) -> bytes:
    async with asyncio.timeout(2):
        await answer.head()
        return b"".join([chunk async for chunk in answer])


OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = [  # answer, the end of the connection follows, body, reusable
    (OK + b"content-length: 5\r\n\r\nhello", False, b"hello", True),
    (OK + b"content-length: 0\r\n\r\n", False, b"", True),
    (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", False, b"hello", True),
    (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-a: b\r\n\r\n", False, b"hi", True),
    (OK + b"\r\nhello", True, b"hello", False),
    (OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", False, b"hi", False),
    (OK + b"connection: close\r\n\r\nhello", True, b"hello", False),
    (b"HTTP/1.0 200 OK\r\n\r\nhello", True, b"hello", False),
    (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", False, b"hi", False),
    (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", False, b"hi", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", False, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", False, b"", True),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nhi", False, b"hi", True),
    (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3 + OK + b"content-length: 2\r\n\r\nhi", False, b"hi", True),
    (OK + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\0\0", False, b"\x1f\x8b\0\0", True),
]
BROKEN = [
    # what the upstream sends before it closes the connection
    b"",
    b"HTTP/1.1 20",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    OK + b"content-length: 5\r\n\r\nhell",
    OK + b"transfer-encoding: chunked\r\n\r\n",
    OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    OK + b"transfer-encoding: chunked\r\n\r\nx\r\nhello\r\n",
    OK + b"transfer-encoding: gzip\r\n\r\nhello",
    OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    OK + b"content-length: -1\r\n\r\n",
    OK + b"bad header\r\n\r\n",
    OK + b"x-a: \0\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"HTTP/1.1 150 Odd\r\ncontent-length: 3\r\n\r\nabc" + OK + b"content-length: 0\r\n\r\n",
    b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/3.7 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    OK + b"x-large: " + b"a" * HEAD_BYTES_MAX + b"\r\ncontent-length: 0\r\n\r\n",
    OK + b"x-a: b\r\n" * (HEAD_BYTES_MAX // 8) + b"content-length: 2\r\n\r\nhi",
    OK + b"x-large: " + b"a" * HEAD_BYTES_MAX,
    b"HTTP/1.1 100 Continue\r\n\r\n" * 300,
    OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx-trailer: " + b"a" * 2 * HEAD_BYTES_MAX,
    OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"a" * 2 * HEAD_BYTES_MAX,
]
CUTS: list[Callable[[bytes], list[bytes]]] = [
    lambda data: [data] if data else [],
    lambda data: [data[at : at + 1] for at in range(len(data))],
]


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS, ids=["whole", "bytes"])
@pytest.mark.parametrize(("answer", "end", "body", "reusable"), WHOLE)
async def test_whole_answers(
    rig: Callable[[], Rig], answer: bytes, end: bool, body: bytes, reusable: bool, cut: Callable[[bytes], list[bytes]]
) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(*cut(answer), end=end)
    assert await body_of(exchange) == body
    assert it.connection.finish() is reusable


@pytest.mark.anyio
@pytest.mark.parametrize("cut", CUTS, ids=["whole", "bytes"])
@pytest.mark.parametrize("answer", BROKEN)
async def test_broken_answers_are_errors_and_never_a_clean_end(
    rig: Callable[[], Rig], answer: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(*cut(answer), end=True)
    with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
        await body_of(exchange)
    assert not it.connection.finish()


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [case for case in BROKEN if len(case) > HEAD_BYTES_MAX])
async def test_too_much_head_closes_at_once(rig: Callable[[], Rig], answer: bytes) -> None:
    it = rig()
    it.begin()
    it.feed(answer)
    assert it.socket.closing


@pytest.mark.anyio
async def test_a_reset_is_an_error_also_where_an_end_is_none(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(OK + b"\r\nhello")
    it.connection.connection_lost(ConnectionResetError())
    with pytest.raises(httpx2.ReadError):
        await body_of(exchange)


@pytest.mark.anyio
async def test_a_lost_connection_without_an_end_is_an_error(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(OK + b"\r\nhello")
    it.connection.connection_lost(None)
    with pytest.raises(httpx2.RemoteProtocolError):
        await body_of(exchange)


@pytest.mark.anyio
async def test_head_requests_have_no_body(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin(bodyless=True)
    it.feed(OK + b"content-length: 500\r\n\r\n")
    assert await body_of(exchange) == b""
    assert (b"content-length", b"500") in exchange.headers


@pytest.mark.anyio
async def test_headers_are_the_final_answer_s(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nX-One: 1\r\nx-two: a\r\nx-two: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
        b"request-id: of a trailer\r\n\r\n",
    )
    await exchange.head()
    assert exchange.status == 201
    expected = [(b"x-one", b"1"), (b"x-two", b"a"), (b"x-two", b"b"), (b"transfer-encoding", b"chunked")]
    assert exchange.headers == expected


@pytest.mark.anyio
@pytest.mark.parametrize("extra", [b"x", OK + b"content-length: 3\r\n\r\nbad", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
@pytest.mark.parametrize("later", [False, True])
async def test_bytes_after_an_answer_spoil_the_connection_not_the_answer(
    rig: Callable[[], Rig], extra: bytes, later: bool
) -> None:
    it = rig()
    exchange = it.begin()
    answer = OK + b"content-length: 2\r\n\r\nhi"
    it.feed(*([answer, extra] if later else [answer + extra]))
    assert await body_of(exchange) == b"hi"
    assert not it.connection.finish()


@pytest.mark.anyio
async def test_bytes_on_an_idle_connection_close_it(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert it.socket.closing
    it.connection.connection_lost(None)
    assert it.idle_lost == [it.connection]


@pytest.mark.anyio
async def test_an_answer_before_the_request_was_sent_spoils_the_connection(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.socket.unsent = 1
    it.feed(OK + b"content-length: 2\r\n\r\nhi")
    assert await body_of(exchange) == b"hi"
    assert not it.connection.finish()


@pytest.mark.anyio
async def test_what_one_caller_left_unread_is_not_the_next_one_s(rig: Callable[[], Rig]) -> None:
    it = rig()
    first = it.begin()
    it.feed(OK + b"content-length: 6\r\n\r\nsecret")
    assert it.connection.finish()
    second = it.begin()
    it.feed(OK + b"content-length: 2\r\n\r\nhi")
    assert await body_of(second) == b"hi"
    assert [chunk async for chunk in first] == []
    await first.aclose()
    assert it.released == []
    await second.aclose()
    assert it.released == [it.connection]


@pytest.mark.anyio
async def test_a_connection_that_is_gone_is_not_written_to(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.socket.closing = True
    exchange = it.begin()
    assert it.socket.written == []
    with pytest.raises(httpx2.ConnectError):
        await exchange.head()


@pytest.mark.anyio
async def test_a_connection_that_was_gone_before_we_had_it_is_known_to_be_gone(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.socket.closing = True
    late = Connection(
        ("http", "upstream", 80), high_water=1, head_bytes_max=1, on_release=print, on_idle_lost=it.idle_lost.append
    )
    late.adopt(it.socket, it.socket)
    assert late.lost.done()
    assert not late.is_quiet


@pytest.mark.anyio
async def test_reading_stops_at_the_high_water_mark_and_goes_on_when_all_is_taken(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(OK + b"content-length: 5000\r\n\r\n" + b"a" * 900)
    assert it.socket.reading
    it.feed(b"b" * 900)
    assert not it.socket.reading
    assert not exchange.is_silent(1e12, 0, 0)
    exchange.waiting_since = 0.0  # it has been paused for long: the upstream has all its time again
    assert await anext(exchange) == b"a" * 900 + b"b" * 900
    assert it.socket.reading
    assert not exchange.is_silent(asyncio.get_running_loop().time(), 10, 10)
    assert exchange.is_silent(1e12, 0, 0)


@pytest.mark.anyio
async def test_single_bytes_count_for_more_than_a_byte(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.begin()
    it.feed(OK + b"content-length: 5000\r\n\r\n", *[b"a"] * 20)
    assert not it.socket.reading


@pytest.mark.anyio
async def test_a_paused_connection_is_not_used_again(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.begin()
    it.feed(OK + b"content-length: 2002\r\n\r\n", b"a" * 2000, b"bb")
    assert not it.socket.reading
    assert not it.connection.finish()


@pytest.mark.anyio
async def test_a_long_answer_that_came_at_once_leaves_the_connection_clean(rig: Callable[[], Rig]) -> None:
    it = rig()
    it.begin()
    it.feed(OK + b"content-length: 2000\r\n\r\n" + b"a" * 2000)
    assert it.socket.reading
    assert it.connection.finish()


@pytest.mark.anyio
async def test_what_came_before_a_failure_is_handed_over_first(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    it.feed(OK + b"content-length: 9\r\n\r\nhello")
    exchange.fail(httpx2.ReadTimeout("silent"))
    assert it.socket.closing
    assert await anext(exchange) == b"hello"
    with pytest.raises(httpx2.ReadTimeout):
        await anext(exchange)


@pytest.mark.anyio
async def test_who_waits_wakes_when_the_answer_fails(rig: Callable[[], Rig]) -> None:
    it = rig()
    exchange = it.begin()
    waiting = asyncio.get_running_loop().create_task(exchange.head())
    await asyncio.sleep(0)
    exchange.fail(httpx2.ReadTimeout("silent"))
    with pytest.raises(httpx2.ReadTimeout):
        await waiting
    with pytest.raises(httpx2.ReadTimeout):  # and who asks later
        await exchange.head()


ANSWER = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
)


@settings(max_examples=50, deadline=None)
@given(cuts=st.sets(st.integers(1, len(ANSWER) - 1)))
def test_any_cut_gives_the_same_answer(cuts: set[int]) -> None:
    async def check() -> None:
        with socket.socket() as sock:
            it = Rig(sock)
            exchange = it.begin()
            edges = [0, *sorted(cuts), len(ANSWER)]
            it.feed(*[ANSWER[start:end] for start, end in itertools.pairwise(edges)])
            assert await body_of(exchange) == b"hello world"
            assert it.connection.finish()

    asyncio.run(check())


@pytest.mark.anyio
async def test_it_says_what_state_it_is_in(rig: Callable[[], Rig]) -> None:
    it = rig()
    states = [repr(it.connection)]
    it.begin()
    states.append(repr(it.connection))
    it.connection.abort()
    states.append(repr(it.connection))
    assert [state.split()[-1] for state in states] == ["idle>", "busy>", "closed>"]
