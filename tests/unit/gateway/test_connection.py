"""Any cut of the same bytes means the same; any bytes at all leave nothing behind. Deadlines: test_connection_deadlines.py."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from services.gateway.framing import ServerLimits
from tests.unit.gateway.connections import Connections, FakeTransport, echo, lost_by, run, settle, waits

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


# -- bodies that go wrong ----------------------------------------------------------------------------------------------

BROKEN_BODY = b"transfer-encoding: chunked\r\n\r\n5\r\nhello", b"\r\n???\r\n"


def test_the_application_hears_at_once_that_a_body_will_not_be_whole() -> None:
    """The caller, who may be there for long, has his answer from us."""

    async def check() -> None:
        connections = Connections(waits)
        protocol, transport = connections.new()
        protocol.data_received(b"POST / HTTP/1.1\r\n" + HOST + BROKEN_BODY[0])
        await settle()
        assert len(connections.state.tasks) == 1
        protocol.data_received(BROKEN_BODY[1])
        await settle()
        assert transport.output.startswith(b"HTTP/1.1 400 ") and not transport.closed
        assert not connections.state.tasks and connections.budget.bytes_held == 0
        transport.close()
        await settle()

    run(check())


@pytest.mark.parametrize(("version", "how"), [(b"1.1", ""), (b"1.0", "reset")])
def test_a_body_goes_wrong_while_it_is_answered(version: bytes, how: str) -> None:
    """Nothing is written into the answer, and it does not look whole."""

    async def check() -> None:
        protocol, transport = Connections(answers_early).new()
        protocol.data_received(b"POST / HTTP/%b\r\n" % version + HOST + b"content-length: 9\r\n\r\nhel")
        await settle()
        started = transport.output
        assert started
        protocol.expire(protocol.loop.time() + 100)
        assert transport.output == started and lost_by(transport) == how
        transport.close()
        await settle()

    run(check())


async def answers_early(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await waits(scope, receive, send)


def test_an_idle_connection_holds_nothing() -> None:
    async def check() -> None:
        protocol, transport = Connections(echo).new()
        protocol.data_received(WITH_LENGTH * 3)
        for _ in range(10):
            await settle()
        assert transport.output.count(b"200 OK") == 3
        assert protocol._head == protocol._held == b"" and protocol.cycle._pieces == []
        assert len(vars(protocol)) <= 30
        transport.close()
        await settle()

    run(check())


def test_an_unread_body_is_forgotten_with_its_request() -> None:
    async def check() -> None:
        protocol, transport = Connections(moody).new()
        protocol.data_received(b"POST /abc HTTP/1.1\r\n" + HOST + b"content-length: 9\r\n\r\nhel")
        await settle()
        assert transport.output.startswith(b"HTTP/1.1 500 ") and protocol.cycle._pieces == []
        transport.close()
        await settle()

    run(check())


def test_who_has_ended_his_side_is_left_with_the_last_answer() -> None:
    async def check() -> None:
        protocol, transport = Connections(echo).new()
        protocol.data_received(GET + GET)
        assert protocol.eof_received()
        for _ in range(4):
            await settle()
        assert transport.output.count(b"200 OK") == 2 and transport.closed

    run(check())
