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
from services.gateway.outlet import AsgiOutlet, Outlet, outlet_of
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


def outlet_app(play: Callable[[Outlet], Awaitable[None]]) -> Play:
    """An application that writes as the relay does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        outlet = outlet_of(scope, receive, send)
        assert not isinstance(outlet, AsgiOutlet)
        await play(outlet)

    return app


async def test_a_head_leaves_with_what_follows_it_in_the_same_turn() -> None:
    async def play(outlet: Outlet) -> None:
        outlet.begin(200, [LENGTH_2])
        outlet.write(b"ok")
        outlet.end()

    transport, _ = await played(outlet_app(play))
    assert transport.written == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]


async def test_a_head_that_nothing_follows_leaves_when_it_is_told_to() -> None:
    seen: list[list[bytes]] = []

    async def play(outlet: Outlet) -> None:
        outlet.begin(200, [])
        outlet.flush()
        outlet.flush()
        seen.append(list(transport.written))
        outlet.write(b"a")
        seen.append(list(transport.written))

    connections = Connections(outlet_app(play))
    protocol, transport = connections.new()
    protocol.data_received(GET)
    await settle()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert seen == [[head], [head, b"1\r\na\r\n"]]


@pytest.mark.parametrize("ends", [True, False])
async def test_what_is_held_leaves_with_the_end_and_also_if_that_does_not_come(ends: bool) -> None:
    async def play(outlet: Outlet) -> None:
        outlet.begin(200, [])
        outlet.write(b"a")
        outlet.hold()
        outlet.write(b"b")
        outlet.write(b"c")
        if ends:
            outlet.end()

    transport, _ = await played(outlet_app(play))
    first = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
    held = b"1\r\nb\r\n1\r\nc\r\n"
    assert transport.written == [first, held + b"0\r\n\r\n" if ends else held]
    assert transport.closed is not ends


async def test_who_watches_hears_once_that_the_caller_has_left() -> None:
    told: list[str] = []

    async def play(outlet: Outlet) -> None:
        outlet.watch(lambda: told.append("left"))
        outlet.begin(200, [])
        outlet.flush()
        await gone.wait()
        outlet.write(b"into the void")
        outlet.end()
        outlet.watch(lambda: told.append("at once"))

    gone = asyncio.Event()
    connections = Connections(outlet_app(play))
    protocol, transport = connections.new()
    protocol.data_received(GET)
    await settle()
    protocol.connection_lost(None)
    protocol.connection_lost(None)
    assert told == ["left"]
    gone.set()
    await settle()
    assert told == ["left", "at once"]
    assert len(transport.written) == 1


@pytest.mark.parametrize("how", ["after the end", "unwatched"])
async def test_nobody_hears_of_what_is_over(how: str) -> None:
    told: list[str] = []

    async def play(outlet: Outlet) -> None:
        outlet.watch(lambda: told.append("left"))
        if how == "unwatched":
            outlet.unwatch()
            await gone.wait()
        outlet.begin(200, [LENGTH_2])
        outlet.write(b"ok")
        outlet.end()
        await gone.wait()

    gone = asyncio.Event()
    connections = Connections(outlet_app(play))
    protocol, _ = connections.new()
    protocol.data_received(GET)
    await settle()
    protocol.connection_lost(None)
    gone.set()
    await settle()
    assert told == []


@pytest.mark.parametrize("wrong", ["begin twice", "write before", "end before", "write after", "end after"])
async def test_an_answer_out_of_order_is_the_application_s_error(wrong: str) -> None:
    errors: list[str] = []

    async def play(outlet: Outlet) -> None:
        try:
            if wrong != "write before" and wrong != "end before":
                outlet.begin(200, [LENGTH_2])
                if wrong == "begin twice":
                    outlet.begin(200, [])
                outlet.write(b"ok")
                outlet.end()
            if wrong.startswith("write"):
                outlet.write(b"more")
            outlet.end()
        except RuntimeError as error:
            errors.append(str(error))

    await played(outlet_app(play))
    assert len(errors) == 1


async def test_a_cycle_is_not_kept_by_what_it_was_offered_in() -> None:
    async def play(outlet: Outlet) -> None:
        outlet.begin(200, [LENGTH_2])
        outlet.write(b"ok")
        outlet.end()

    connections = Connections(outlet_app(play))
    protocol, _ = connections.new()
    protocol.data_received(GET)
    await settle()
    assert "extensions" not in protocol.cycle.scope


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


@pytest.mark.parametrize("first", [1, 70_000])
async def test_a_caller_is_read_from_while_he_waits_so_that_his_leaving_shows(first: int) -> None:
    size = 200_000

    async def play(scope: Scope, receive: Receive, send: Send) -> None:
        got = 0
        while got < size:
            got += len((await receive())["body"])
        await asyncio.Event().wait()

    protocol, transport = Connections(play).new()
    protocol.data_received(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % size)
    await settle()
    protocol.data_received(b"a" * first)
    await settle()
    protocol.data_received(b"a" * (size - first))
    assert not transport.reading
    await settle()
    assert transport.reading


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
