"""Connections without a network: a transport that is a list of bytes, and the protocol on it. The real one: tests/integration."""

import asyncio
import functools
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from services.gateway.connection import RelayProtocol
from services.gateway.cycle import BodyBudget
from services.gateway.framing import ServerLimits


class FakeSocket:
    """Its options, and what the kernel would say of the other end."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int]] = []
        self.error = 0
        self.state = 1

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    getsockname = getpeername

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        self.options.append((level, name))

    def getsockopt(self, level: int, name: int, size: int = 0) -> int | bytes:
        return bytes([self.state]) if size else self.error


class FakeTransport(asyncio.Transport):
    """What was written, and how it ended."""

    def __init__(self) -> None:
        super().__init__({"socket": FakeSocket()})
        self.protocol: RelayProtocol
        self.written: list[bytes] = []
        self.reading = True
        self.eof_written = False
        self.closed = False
        self.aborted = False
        self.untaken_bytes = 0

    @property
    def output(self) -> bytes:
        return b"".join(self.written)

    def write(self, data: Any) -> None:
        assert not self.eof_written and not self.closed
        self.written.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.eof_written
        self.eof_written = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.untaken_bytes

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


class Connections:
    """Makes connections to one application, which share a budget."""

    def __init__(self, app: ASGIApp, limits: ServerLimits | None = None, *, budget_bytes: int = 1 << 30) -> None:
        self.budget = BodyBudget(budget_bytes)
        self.refused: list[str] = []
        self.state = ServerState()
        self.config = uvicorn.Config(app, ws="none", interface="asgi3", log_config=None, access_log=False)
        self.config.load()
        self._protocol: Callable[..., RelayProtocol] = functools.partial(
            RelayProtocol, limits=limits or ServerLimits(), budget=self.budget, on_refused=self.refused.append
        )

    def new(self) -> tuple[RelayProtocol, FakeTransport]:
        """Inside a running loop."""
        protocol = self._protocol(config=self.config, server_state=self.state, app_state={})
        transport = FakeTransport()
        transport.protocol = protocol
        protocol.connection_made(transport)
        return protocol, transport

    def give(self, protocol: RelayProtocol, transport: FakeTransport, data: bytes) -> None:
        """As a transport does: nothing once it is closed."""
        if not transport.closed:
            protocol.data_received(data)


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(8):
        await asyncio.sleep(0)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """In a loop of its own."""
    with asyncio.Runner() as runner:
        runner.run(coroutine)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it got, as JSON."""
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


async def waits(scope: Scope, receive: Receive, send: Send) -> None:
    """Never answers; ends when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def lost_by(transport: FakeTransport) -> str:
    """How the connection was ended by us, if it was."""
    peer = transport.get_extra_info("socket")
    if not transport.closed:
        return ""
    return (
        "reset" if (socket.SOL_SOCKET, socket.SO_LINGER) in peer.options else "abort" if transport.aborted else "close"
    )
