"""One request and its answer: what is written for which messages, what is counted, and what the kernel says of a caller."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from libs.common.errors import Overloaded
from services.gateway.cycle import BodyBudget, CallerSide, caller_side, refusal, reset
from tests.unit.gateway.connections import Connections, FakeTransport, settle

pytestmark = pytest.mark.anyio

HOST = b"host: relay\r\n"
GET = b"GET /a%20b/c?d=%e HTTP/1.1\r\n" + HOST + b"\r\n"
GET_10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n"

Play = Callable[[Scope, Receive, Send], Awaitable[None]]


async def played(play: Play, request: bytes = GET) -> tuple[FakeTransport, Connections]:
    connections = Connections(play)
    protocol, transport = connections.new()
    protocol.data_received(request)
    await settle()
    return transport, connections


def writes(*messages: dict[str, Any]) -> Play:
    """An application that sends just this; the first message is the status."""

    async def play(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return play


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


LENGTH_2 = (b"content-length", b"2")


@pytest.mark.parametrize(
    ("request_bytes", "messages", "output", "stays"),
    [
        (GET, [start(LENGTH_2), body(b"ok")], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", True),
        (
            GET,
            [start(), body(b"a", more=True), body(b"", more=True), body(b"")],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            True,
        ),
        (GET_10, [start(), body(b"ok")], b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok", False),
        (
            GET_10,
            [start(LENGTH_2), body(b"ok")],
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            False,
        ),
        (HEAD, [start(LENGTH_2), body(b"ok")], b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", True),
        (HEAD, [start(), body(b"")], b"HTTP/1.1 200 OK\r\n\r\n", True),
        (GET, [start(status=204), body(b"no")], b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (GET, [start(status=529), body(b"")], b"HTTP/1.1 529 \r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", True),
        (
            GET,
            [start(LENGTH_2, (b"connection", b"Close")), body(b"ok")],
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
            False,
        ),
    ],
)
async def test_what_is_written(
    request_bytes: bytes, messages: list[dict[str, Any]], output: bytes, stays: bool
) -> None:
    transport, _ = await played(writes(*messages), request_bytes)
    assert transport.output == output
    assert transport.closed is not stays
    transport.close()


@pytest.mark.parametrize(
    ("messages", "output"),
    [
        ([start(LENGTH_2), body(b"a")], b"a"),
        ([start(LENGTH_2), body(b"abc")], b""),
        ([start(LENGTH_2), start(LENGTH_2)], b""),
        ([start(), body(b"a", more=True)], b"1\r\na\r\n"),
    ],
)
async def test_half_an_answer(messages: list[dict[str, Any]], output: bytes) -> None:
    transport, _ = await played(writes(*messages))
    assert transport.output.partition(b"\r\n\r\n")[2] == output
    assert transport.closed and not transport.aborted


async def test_half_an_answer_whose_end_would_not_show() -> None:
    transport, _ = await played(writes(start(), body(b"half", more=True)), GET_10)
    assert transport.aborted
    options = transport.get_extra_info("socket").options
    assert (socket.SOL_SOCKET, socket.SO_LINGER) in options


async def test_more_after_the_end_is_an_error_of_the_application_only(caplog: pytest.LogCaptureFixture) -> None:
    transport, _ = await played(writes(start(LENGTH_2), body(b"ok"), body(b"more")))
    assert transport.output.endswith(b"\r\n\r\nok") and not transport.closed
    assert "after the answer was complete" in caplog.text
    transport.close()


async def test_a_failure_is_answered_and_logged_under_one_id(caplog: pytest.LogCaptureFixture) -> None:
    transport, connections = await played(writes(start((b"x-a", b"1\r\n2"))))
    head, _, answered = transport.output.partition(b"\r\n\r\n")
    error = json.loads(answered)
    assert head.startswith(b"HTTP/1.1 500 ") and error["error"]["type"] == "api_error"
    assert error["request_id"].encode() in head and error["request_id"] in caplog.text
    transport.close()
    await settle()
    assert not connections.state.tasks


async def test_the_scope() -> None:
    scopes: list[Scope] = []

    async def play(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    transport, _ = await played(play)
    scope = scopes[0]
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("GET", "/a b/c", b"/a%20b/c")
    assert (scope["query_string"], scope["http_version"], scope["scheme"]) == (b"d=%e", "1.1", "http")
    assert scope["headers"] == [(b"host", b"relay")] and scope["client"] == ("127.0.0.1", 1)
    transport.close()


async def test_a_body_counts_until_its_answer_begins() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    size = 1_000

    async def play(scope: Scope, receive: Receive, send: Send) -> None:
        await gates[0].wait()
        await send(start())
        await gates[1].wait()
        await send(body(b""))

    transport, connections = await played(
        play, b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 2000\r\n\r\n" + b"a" * size
    )
    assert connections.budget.bytes_held == size
    gates[0].set()
    await settle()
    assert connections.budget.bytes_held == 0
    transport.protocol.data_received(b"a" * 500)
    assert connections.budget.bytes_held == 0
    gates[1].set()
    await settle()
    transport.protocol.data_received(b"a" * 500)
    assert connections.budget.bytes_held == 0 and not transport.closed
    transport.close()


def test_the_budget_is_exhausted_when_it_is_full() -> None:
    budget = BodyBudget(10)
    budget.bytes_held = 9
    assert not budget.is_exhausted
    budget.bytes_held = 10
    assert budget.is_exhausted


def test_a_refusal_is_a_whole_answer() -> None:
    head, _, answered = refusal(Overloaded("Full.", retry_after_s=3), [(b"date", b"today")]).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    request_id = json.loads(answered)["request_id"].encode()
    assert lines[:2] == [b"HTTP/1.1 529 ", b"date: today"]
    assert set(lines[2:]) == {
        b"content-type: application/json",
        b"content-length: %d" % len(answered),
        b"request-id: " + request_id,
        b"x-relay-request-id: " + request_id,
        b"retry-after: 3",
        b"connection: close",
    }


async def test_what_the_kernel_knows_of_a_caller() -> None:
    """Without a byte being read from him."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[asyncio.BaseTransport] = asyncio.Queue()

    class Ours(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            accepted.put_nowait(transport)

    server = await loop.create_server(Ours, "127.0.0.1", 0)
    caller = socket.create_connection(server.sockets[0].getsockname())
    transport = await accepted.get()
    assert isinstance(transport, asyncio.Transport)
    caller.send(b"unread")
    assert caller_side(transport) is CallerSide.SENDS
    caller.shutdown(socket.SHUT_WR)
    assert await _becomes(transport, CallerSide.ENDED)
    caller.close()
    transport.write(b"are you there?")
    assert await _becomes(transport, CallerSide.GONE)
    transport.abort()

    other = socket.create_connection(server.sockets[0].getsockname())
    reset(await accepted.get())  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError):
        await loop.run_in_executor(None, other.recv, 1)
    other.close()
    server.close()
    await server.wait_closed()


async def _becomes(transport: asyncio.Transport, side: CallerSide) -> bool:
    async with asyncio.timeout(5):
        while caller_side(transport) is not side:
            await asyncio.sleep(0.01)
    return True
