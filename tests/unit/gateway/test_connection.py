"""Any cut of the same bytes means the same, any bytes at all leave nothing behind, and each deadline does what it says."""

import asyncio
import itertools
import json
import math
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from services.gateway.connection import RelayProtocol
from services.gateway.framing import ServerLimits
from tests.unit.gateway.connections import Connections, FakeTransport, settle

HOST = b"host: relay\r\n"
GET = b"GET /a?b=c HTTP/1.1\r\n" + HOST + b"\r\n"
WITH_LENGTH = (
    b"POST /p HTTP/1.1\r\n"
    + HOST
    + b"x-empty:\r\nX-Odd:  a b \r\ncontent-length: 26\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"
)
CHUNKED = (
    b"POST /c HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n0a\r\n0\r\n\r\n\r\n012\r\n1\r\n!\r\n0\r\nx-trailer: 1\r\n\r\n"
)
UPGRADE = b"POST /u HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 4\r\n\r\nbody"
GOOD = (
    GET,
    WITH_LENGTH,
    UPGRADE,
    b"\r\n" + GET,
    b"POST /e HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner() as runner:
        runner.run(coroutine)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    seen = json.dumps([scope["method"], scope["path"], headers, body.decode("latin-1")]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(seen))]})
    await send({"type": "http.response.body", "body": seen})


async def feed(connections: Connections, pieces: list[bytes], *, patient: bool) -> FakeTransport:
    """The answer to pieces that come one by one, or all in one turn of the loop."""
    protocol, transport = connections.new()
    for piece in pieces:
        if not transport.closed:
            protocol.data_received(piece)
        if patient:
            await settle()
    for _ in range(10):
        await settle()
    return transport


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(st.sampled_from(GOOD), min_size=1, max_size=5),
    last_chunked=st.booleans(),
    places=st.lists(st.integers(0, 2_000), max_size=30),
    patient=st.booleans(),
)
def test_any_cut_means_the_same(requests: list[bytes], last_chunked: bool, places: list[int], patient: bool) -> None:
    data = b"".join(requests) + (CHUNKED if last_chunked else b"")

    async def check() -> None:
        connections = Connections(echo)
        whole = await feed(connections, [data], patient=True)
        parts = await feed(connections, cut(data, places), patient=patient)
        assert whole.output.replace(CONTINUE, b"") == parts.output.replace(CONTINUE, b"")
        assert whole.output.count(b"HTTP/1.1 200 OK") == len(requests) + last_chunked
        assert not parts.closed and connections.budget.bytes_held == 0

    run(check())


def test_byte_by_byte() -> None:
    async def check() -> None:
        connections = Connections(echo)
        data = b"".join(GOOD) + CHUNKED
        whole = await feed(connections, [data], patient=True)
        parts = await feed(connections, cut(data, list(range(len(data)))), patient=True)
        assert whole.output.replace(CONTINUE, b"") == parts.output.replace(CONTINUE, b"")

    run(check())


GRAMMAR = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from((*GOOD, CHUNKED)),
        st.sampled_from(GOOD).flatmap(lambda whole: st.integers(0, len(whole)).map(lambda end: whole[:end])),
        st.sampled_from(
            (
                b"\r\n",
                b"\r\n\r\n",
                b"\n",
                b"\0",
                b"CONNECT /a HTTP/1.1\r\n",
                b"POST / HTTP/1.1\r\n",
                b"PRI * HTTP/2.0\r\n\r\n",
            )
        ),
        st.sampled_from(
            (
                HOST,
                b"content-length: 3\r\n",
                b"transfer-encoding: chunked\r\n",
                b"upgrade: x\r\nconnection: upgrade\r\n",
            )
        ),
        st.sampled_from((b"0\r\n\r\n", b"3\r\nabc\r\n", b"ffffffffffffffff\r\n", b"1;" + b"x" * 500 + b"\r\n")),
        st.sampled_from((b"\x16\x03\x01", b"x-a: " + b"a" * 2_000)),
    ),
    max_size=12,
)


async def moody(scope: Scope, receive: Receive, send: Send) -> None:
    """Fails, answers early, stops in between, or echoes: by the length of the path and the query."""
    match len(scope["raw_path"]) % 4:
        case 0:
            raise ValueError
        case 1:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["query_string"]:
                await send({"type": "http.response.body", "body": b"part", "more_body": True})
        case _:
            await echo(scope, receive, send)


@settings(max_examples=300, deadline=None)
@given(
    pieces=GRAMMAR,
    ending=st.sampled_from(("eof", "lost", "reset", "stays")),
    budget_bytes=st.sampled_from((10, 1 << 20)),
)
def test_any_bytes_leave_nothing_behind(pieces: list[bytes], ending: str, budget_bytes: int) -> None:
    """No exception out of the protocol, no answer behind an end, nothing counted, no task and no connection left."""

    async def check() -> None:
        connections = Connections(
            moody, ServerLimits(head_bytes_max=4_096, body_bytes_max=1_000), budget_bytes=budget_bytes
        )
        protocol, transport = connections.new()
        for number, piece in enumerate(pieces):
            if not transport.closed:
                protocol.data_received(piece)
            if number % 3 == 0:
                await settle()
        if ending == "eof" and not transport.closed and not protocol.eof_received():
            transport.close()
        elif ending in ("lost", "reset") and not transport.closed:
            protocol.connection_lost(ConnectionResetError() if ending == "reset" else None)
            transport.closed = True
        await settle()
        for _ in range(4):  # more than every deadline there is, one after another
            if protocol in connections.state.connections:
                protocol.expire(protocol.loop.time() + 10_000)
            await settle()
        assert not connections.state.connections and not connections.state.tasks
        assert connections.budget.bytes_held == 0

    run(check())


# -- deadlines, with a clock of our own --------------------------------------------------------------------------------


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def test_deadlines() -> None:
    """IDLE, HEAD and BODY have one, ANSWER has none."""

    async def check() -> None:
        connections = Connections(waits, ServerLimits(keep_alive_seconds=70, head_seconds=10, body_seconds=30))
        protocol, transport = connections.new()
        now = protocol.loop.time()
        assert protocol.deadline == pytest.approx(now + 70, abs=1)
        protocol.data_received(b"POST / HTTP/1.1\r\n")
        assert protocol.deadline == pytest.approx(now + 10, abs=1)
        protocol.data_received(HOST + b"content-length: 655360\r\n\r\n")
        assert protocol.deadline == pytest.approx(now + 30 + 10, abs=1)
        protocol.data_received(b"a" * 655_360)
        await settle()
        assert protocol.deadline == math.inf
        protocol.expire(now + 1e9)
        assert not transport.closed and connections.refused == []
        transport.close()
        await settle()

    run(check())


def test_a_chunked_body_has_longer_for_what_has_come() -> None:
    async def check() -> None:
        connections = Connections(waits, ServerLimits(body_seconds=30))
        protocol, transport = connections.new()
        now = protocol.loop.time()
        head, _, _ = CHUNKED.partition(b"\r\n\r\n")
        protocol.data_received(head + b"\r\n\r\n")
        for _ in range(10):
            protocol.data_received(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
            await settle()
        protocol.expire(now + 39)
        assert not transport.output
        protocol.expire(now + 41)
        assert transport.output.startswith(b"HTTP/1.1 408 ") and connections.refused == ["BodyTimedOut"]
        transport.close()
        await settle()

    run(check())


def lost_by(transport: FakeTransport) -> str:
    peer = transport.get_extra_info("socket")
    if not transport.closed:
        return ""
    return (
        "reset" if (socket.SOL_SOCKET, socket.SO_LINGER) in peer.options else "abort" if transport.aborted else "close"
    )


def _stalls(protocol: RelayProtocol, transport: FakeTransport) -> None:
    protocol.pause_writing()


def _takes_again(protocol: RelayProtocol, transport: FakeTransport) -> None:
    protocol.pause_writing()
    protocol.resume_writing()


def _ends(protocol: RelayProtocol, transport: FakeTransport) -> None:
    protocol.eof_received()


def _leaves(protocol: RelayProtocol, transport: FakeTransport) -> None:
    protocol.eof_received()
    transport.get_extra_info("socket").error = 32


def _leaves_unread(protocol: RelayProtocol, transport: FakeTransport) -> None:
    protocol.data_received(GET * 5_000)
    assert not transport.reading
    transport.get_extra_info("socket").state = 7


@pytest.mark.parametrize(
    ("what", "how"),
    [(_stalls, "reset"), (_takes_again, ""), (_ends, ""), (_leaves, "abort"), (_leaves_unread, "abort")],
)
def test_a_caller_who_waits_for_his_answer(what: Any, how: str) -> None:
    async def check() -> None:
        connections = Connections(waits)
        protocol, transport = connections.new()
        protocol.data_received(GET)
        await settle()
        what(protocol, transport)
        assert len(connections.state.tasks) == 1
        protocol.expire(protocol.loop.time() + 61)
        assert lost_by(transport) == how
        await settle()
        assert bool(connections.state.tasks) is not bool(how)
        transport.abort()
        await settle()

    run(check())


def test_an_end_behind_what_is_not_read_is_found() -> None:
    """He is asked whether he is still there, once."""

    async def check() -> None:
        connections = Connections(waits)
        protocol, transport = connections.new()
        protocol.data_received(GET)
        await settle()
        protocol.data_received(GET * 5_000)
        transport.get_extra_info("socket").state = 8
        for _ in range(2):
            protocol.expire(protocol.loop.time())
        assert protocol.half_closed and transport.output == CONTINUE
        transport.abort()
        await settle()

    run(check())


@pytest.mark.parametrize(("untaken_bytes", "how"), [(0, "abort"), (10, "reset")])
def test_who_does_not_take_the_last_bytes(untaken_bytes: int, how: str) -> None:
    async def check() -> None:
        connections = Connections(echo)
        protocol, transport = connections.new()
        protocol.data_received(b"nonsense\r\n\r\n")
        assert transport.eof_written and not transport.closed
        transport.untaken_bytes = untaken_bytes
        protocol.expire(protocol.loop.time() + 9)
        assert not transport.closed
        protocol.expire(protocol.loop.time() + 11)
        assert lost_by(transport) == how
        await settle()

    run(check())


def test_a_refused_caller_may_send_only_so_much_more() -> None:
    async def check() -> None:
        protocol, transport = Connections(echo, ServerLimits(linger_bytes_max=1_000)).new()
        protocol.data_received(b"nonsense\r\n\r\n")
        protocol.data_received(b"a" * 1_000)
        assert not transport.closed
        protocol.data_received(b"a")
        assert transport.aborted
        await settle()

    run(check())


def test_an_idle_connection_holds_nothing() -> None:
    async def check() -> None:
        protocol, transport = Connections(echo).new()
        protocol.data_received(WITH_LENGTH * 3)
        for _ in range(10):
            await settle()
        assert transport.output.count(b"200 OK") == 3
        assert protocol._head == protocol._held == protocol.cycle.body == b""
        assert len(vars(protocol)) <= 30
        transport.close()
        await settle()

    run(check())
