"""Each deadline of a connection does what it says, by a clock of our own."""

import math
from typing import Any

import pytest

from services.gateway.connection import RelayProtocol
from services.gateway.framing import ServerLimits
from tests.unit.gateway.connections import Connections, FakeTransport, echo, lost_by, run, settle, waits

HOST = b"host: relay\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


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
        protocol.data_received(CHUNKED)
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
