"""Callers who leave: in every phase, in every manner. The application is told soon, and nothing of them is left."""

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.framing import ServerLimits
from tests.integration.edge_rig import (
    GET,
    HOST,
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

SOON_S = 1.5


@pytest.fixture(scope="module")
def one_edge() -> Iterator[Edge]:
    with running(ServerLimits(keep_alive_seconds=4.0, linger_seconds=1.2, body_bytes_max=1 << 20)) as edge:
        yield edge


@pytest.fixture
def edge(one_edge: Edge) -> Iterator[Edge]:
    one_edge.app = echo
    yield one_edge
    wait_until(one_edge.at_rest, seconds=3)


LEAVING: dict[str, Callable[[Caller], None]] = {
    "closes": lambda caller: caller.leave(),
    "resets": lambda caller: caller.leave(reset=True),
}
PHASES = {
    "before a byte": b"",
    "in the request line": b"POST / HT",
    "in the head": b"POST / HTTP/1.1\r\n" + HOST,
    "before the body": b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 10\r\n\r\n",
    "in the body": post(b"a" * 1_000)[:-500],
    "in a chunk": chunked(b"a" * 1_000)[:-500],
    "before the last chunk": chunked(b"a" * 1_000)[:-5],
}


@pytest.mark.parametrize("manner", LEAVING)
@pytest.mark.parametrize("phase", PHASES)
def test_before_the_request_is_whole(edge: Edge, phase: str, manner: str) -> None:
    edge.app = watched = Watched()
    calls = edge.calls
    caller = edge.caller()
    caller.send(PHASES[phase])
    if "body" in phase or "chunk" in phase:
        wait_until(lambda: edge.calls > calls)
    LEAVING[manner](caller)
    if edge.calls > calls:
        watched.wait_told(seconds=SOON_S)
    assert watched.read == 0


@pytest.mark.parametrize("manner", LEAVING)
@pytest.mark.parametrize(
    "request_bytes", [GET, post(b"hello"), chunked(b"hello"), GET + GET], ids=["get", "length", "chunked", "two"]
)
def test_while_he_waits(edge: Edge, manner: str, request_bytes: bytes) -> None:
    edge.app = watched = Watched()
    caller = edge.caller()
    caller.send(request_bytes)
    wait_until(lambda: watched.read == 1)
    LEAVING[manner](caller)
    watched.wait_told(seconds=SOON_S)


@pytest.mark.parametrize("manner", LEAVING)
def test_while_a_follow_up_is_answered(edge: Edge, manner: str) -> None:
    """The second of two pipelined requests is under way when he leaves."""
    watched = Watched()
    first = True

    async def first_then_watched(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal first
        if first:
            first = False
            await read_all(receive)
            await answer(send, b"first")
        else:
            await watched(scope, receive, send)

    edge.app = first_then_watched
    caller = edge.caller()
    caller.send(GET + GET)
    assert caller.answer().body == b"first"
    wait_until(lambda: watched.read == 1)
    LEAVING[manner](caller)
    watched.wait_told(seconds=SOON_S)


@pytest.mark.parametrize("manner", LEAVING)
def test_while_he_waits_with_more_behind_it_than_is_read(edge: Edge, manner: str) -> None:
    """His end stands behind bytes that stay in the kernel."""
    edge.app = watched = Watched()
    caller = edge.caller()
    caller.send(GET + post(b"a" * 500_000))
    wait_until(lambda: watched.read == 1)
    LEAVING[manner](caller)
    watched.wait_told(seconds=2 * SOON_S)


def test_while_he_reads_with_a_reset(edge: Edge) -> None:
    edge.app = watched = Watched(streams=True)
    caller = edge.caller()
    caller.send(GET)
    caller.until(b"first")
    caller.leave(reset=True)
    watched.wait_told(seconds=SOON_S)


def test_while_he_reads(edge: Edge) -> None:
    """A farewell may be a half-close; the next piece that is written tells."""
    told = threading.Event()
    left = threading.Event()

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await begin(send)
        await chunk(send, b"first")
        await edge.loop.run_in_executor(None, left.wait)
        await chunk(send, b"second")
        assert (await receive())["type"] == "http.disconnect"
        told.set()
        await chunk(send, b"third")  # goes nowhere, and does not fail

    edge.app = streams
    caller = edge.caller()
    caller.send(GET)
    caller.until(b"first")
    caller.leave()
    left.set()
    assert told.wait(SOON_S)


def test_who_only_ends_his_side_is_answered(edge: Edge) -> None:
    """He gets the whole answer; that we ask whether he is still there is all he notices."""
    gate = threading.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(receive)
        await edge.loop.run_in_executor(None, gate.wait)
        await begin(send)
        for _ in range(3):
            await chunk(send, b"piece")
        await chunk(send, b"", more=False)

    edge.app = waits
    with edge.caller() as caller:
        caller.send(GET + post(b"more"))
        caller.end()
        assert caller.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        time.sleep(0.8)  # longer than the sweep waits: he is still there
        gate.set()
        assert caller.answer(interim=True).body == b"piece" * 3
        assert caller.answer(interim=True).body == b"piece" * 3
        assert caller.is_closed()


@pytest.mark.parametrize("phase", [name for name in PHASES if name != "before a byte"])
def test_who_ends_his_side_too_early_is_told(edge: Edge, phase: str) -> None:
    with edge.caller() as caller:
        caller.send(PHASES[phase])
        caller.end()
        refused = caller.answer(interim=True)
        assert refused.status == 400 and refused.error["type"] == "invalid_request_error"
        assert caller.is_closed()


def test_who_ends_his_side_between_requests(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(GET)
        assert caller.answer().status == 200
        caller.end()
        assert caller.is_closed()


def test_many_idle_connections_hinder_nobody(edge: Edge) -> None:
    idle = [edge.caller() for _ in range(400)]
    try:
        for caller in idle[::2]:
            caller.send(GET)
        for caller in idle[::2]:
            assert caller.answer().status == 200
        for caller in idle[1::4]:
            caller.send(b"POST / HTTP/1.1\r\nhost:")
        wait_until(lambda: edge.connections == len(idle))
        with edge.caller() as busy:
            started = time.monotonic()
            for _ in range(100):
                busy.send(GET)
                assert busy.answer().status == 200
            assert time.monotonic() - started < 2
    finally:
        for caller in idle:
            caller.leave()


def test_whatever_they_do_nothing_is_left(edge: Edge) -> None:
    """600 callers at random: whole, cut, garbled and pipelined requests, early answers, crashes, all manners of leaving."""
    chance = random.Random(7)
    edge.app = _moody(random.Random(8))
    callers: list[Caller] = []
    held_max = 0
    for _ in range(600):
        caller = edge.caller()
        data = b"".join(_random_request(chance) for _ in range(chance.randint(1, 3)))
        caller.send(data[: chance.randint(0, len(data))] if chance.random() < 0.5 else data)
        callers.append(caller)
        held_max = max(held_max, edge.budget.bytes_held)
        if len(callers) >= 20:
            leaving = callers.pop(chance.randrange(20))
            LEAVING[chance.choice(["closes", "resets"])](leaving)
    for caller in callers:
        caller.leave(reset=chance.random() < 0.5)
    assert held_max > 0
    wait_until(edge.at_rest)
    edge.app = echo
    with edge.caller() as caller:
        caller.send(post(b"still here"))
        assert caller.answer().seen["body"] == "still here"


def _random_request(chance: random.Random) -> bytes:
    body = b"a" * chance.choice([0, 1, 1_000, 100_000])
    made = chance.choice([post(body), chunked(body or b"b", b"c"), GET, post(body, b"expect: 100-continue\r\n")])
    if chance.random() < 0.2:
        at = chance.randrange(len(made))
        made = made[:at] + bytes([chance.randrange(256)]) + made[at + 1 :]
    return made


def _moody(chance: random.Random) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        mood = chance.randrange(6)
        if mood == 0:
            await answer(send, b"early", status=401)
        elif mood == 1:
            raise ValueError("a crash")
        elif mood == 2:
            await begin(send)
            await chunk(send, b"and then no more")
        elif mood == 3:
            await Watched(streams=True)(scope, receive, send)
        else:
            await echo(scope, receive, send)

    return app
