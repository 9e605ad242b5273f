"""The real edge on a free port, its application chosen by each test, and a caller who sees every byte."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.cycle import BodyBudget
from services.gateway.edge import RelayServer, make_server
from services.gateway.framing import ServerLimits

WAIT_S: Final = 10.0
_NO_LINGER: Final = struct.pack("ii", 1, 0)
HOST: Final = b"host: relay\r\n"
GET: Final = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


def post(body: bytes, extra: bytes = b"", path: bytes = b"/") -> bytes:
    """A whole request with its length declared."""
    return b"POST %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n%b" % (path, HOST, extra, len(body), body)


def chunked(*chunks: bytes, extra: bytes = b"") -> bytes:
    """A whole request whose length is not declared."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*chunks, b""))
    return b"POST / HTTP/1.1\r\n" + HOST + extra + b"transfer-encoding: chunked\r\n\r\n" + framed


def wait_until(condition: Callable[[], bool], *, seconds: float = WAIT_S) -> None:
    """Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.005)


# -- applications ------------------------------------------------------------------------------------------------------


async def read_all(receive: Receive) -> bytes:
    """The request's body. Raises ConnectionError where the caller left before its end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it got, as JSON."""
    try:
        body = await read_all(receive)
    except ConnectionError:
        return
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    seen = {"method": scope["method"], "path": scope["path"], "headers": headers, "body": body.decode("latin-1")}
    await answer(send, json.dumps(seen).encode())


async def answer(send: Send, body: bytes, *, status: int = 200) -> None:
    """A whole answer."""
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def begin(send: Send, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    """The head of an answer."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def chunk(send: Send, body: bytes, *, more: bool = True) -> None:
    """A piece of an answer."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


class Watched:
    """Reads the request, begins an answer if told so, and waits for what `receive()` says next."""

    def __init__(self, *, streams: bool = False) -> None:
        self._streams = streams
        self.read = 0
        self.told: list[tuple[str, float]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_all(receive)
            self.read += 1
            if self._streams:
                await begin(send)
                await chunk(send, b"first")
            message: Message = await receive()
            self.told.append((message["type"], time.monotonic()))
        except ConnectionError:
            self.told.append(("http.disconnect", time.monotonic()))

    def wait_told(self, *, seconds: float = WAIT_S) -> None:
        """Until every caller's leaving was heard; anything else fails."""
        wait_until(lambda: bool(self.told), seconds=seconds)
        assert {what for what, _ in self.told} == {"http.disconnect"}


# -- the server --------------------------------------------------------------------------------------------------------


class Edge:
    """A server in a thread. `app` may be exchanged between requests."""

    def __init__(self, limits: ServerLimits, budget_bytes: int, shutdown_seconds: int) -> None:
        self.app: ASGIApp = echo
        self.budget = BodyBudget(budget_bytes)
        self.refused: list[str] = []
        self.calls = 0
        self.server: RelayServer = make_server(
            self._call,
            host="127.0.0.1",
            port=0,
            limits=limits,
            body_budget=self.budget,
            shutdown_seconds=shutdown_seconds,
            on_refused=self.refused.append,
        )
        self.lifespan_ended_at = 0.0
        self.loop: asyncio.AbstractEventLoop
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve()

        uvloop.run(serve())

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.lifespan_ended_at = time.monotonic()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            self.calls += 1
            await self.app(scope, receive, send)

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def caller(self, *, receive_buffer: int = 0) -> "Caller":
        """A new connection; `receive_buffer`: bytes his kernel takes before he reads."""
        return Caller(self.port, receive_buffer)

    def at_rest(self) -> bool:
        """Whether nothing of any request is left."""
        state = self.server.server_state
        return not state.connections and not state.tasks and not self.budget.bytes_held

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True


@contextlib.contextmanager
def running(
    limits: ServerLimits | None = None, *, budget_bytes: int = 1 << 26, shutdown_seconds: int = 5
) -> Iterator[Edge]:
    """A server that leaves nothing behind: at the end no connection, task or counted byte may be left."""
    edge = Edge(limits or ServerLimits(), budget_bytes, shutdown_seconds)
    edge.thread.start()
    try:
        wait_until(lambda: edge.server.started or not edge.thread.is_alive())
        yield edge
    finally:
        edge.stop()
        edge.thread.join(WAIT_S + shutdown_seconds)
    assert not edge.thread.is_alive()
    assert edge.at_rest()


# -- the caller --------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """An answer as it was read; `body` without its framing."""

    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes

    @property
    def error(self) -> dict[str, str]:
        """The error object of an answer in Anthropic's shape, which is checked."""
        value = json.loads(self.body)
        assert value["type"] == "error"
        assert value["request_id"] == self.headers["request-id"] == self.headers["x-relay-request-id"]
        assert set(value["error"]) == {"type", "message"}
        return dict(value["error"])

    @property
    def seen(self) -> dict[str, Any]:
        """What `echo` says it got."""
        return dict(json.loads(self.body))


class Caller:
    """A raw connection. Everything waits, for WAIT_S at most."""

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(("127.0.0.1", port))
        self.ahead = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it."""
        self.socket.sendall(data)

    def end(self) -> None:
        """Send no more, but go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def leave(self, *, reset: bool = False) -> None:
        """Close, with or without a farewell."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.socket.close()

    def until(self, mark: bytes) -> bytes:
        """Read up to and with `mark`. Raises EOFError where the connection ends before it."""
        while mark not in self.ahead:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(self.ahead)
            self.ahead += data
        found, _, self.ahead = self.ahead.partition(mark)
        return found + mark

    def exactly(self, size: int) -> bytes:
        """So many bytes. Raises EOFError."""
        while len(self.ahead) < size:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(self.ahead)
            self.ahead += data
        found, self.ahead = self.ahead[:size], self.ahead[size:]
        return found

    def rest(self) -> bytes:
        """Whatever comes until the connection ends. Raises ConnectionResetError where it is broken."""
        data, self.ahead = self.ahead, b""
        while piece := self.socket.recv(1 << 16):
            data += piece
        return data

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False if anything comes before it."""
        try:
            return self.rest() == b""
        except ConnectionResetError:
            return True

    def answer(self, *, has_body: bool = True, interim: bool = False) -> Answer:
        """The next answer. Interim answers are passed over if they are expected, and fail otherwise."""
        head = self.until(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100 ") and interim:
            head = self.until(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = dict(line.decode().split(": ", 1) for line in lines)
        assert len(headers) == len(lines), head
        body = b""
        if not has_body:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self.exactly(2) == b"\r\n"
        elif "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return Answer(int(first.split(b" ")[1]), headers, body, head)
