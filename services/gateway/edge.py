"""The HTTP server's edge: uvicorn with our connections (connection.py), and the one timer that looks at their deadlines.

framing.py      which request heads are read, and the limits of a connection
connection.py   cuts the bytes into heads and bodies, refuses, times out, closes
cycle.py        one request and how its answer is written
"""

import asyncio
import functools
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from services.gateway.connection import RelayProtocol
from services.gateway.cycle import BodyBudget
from services.gateway.framing import ServerLimits, connection_listed

__all__ = ["BodyBudget", "RelayServer", "ServerLimits", "connection_listed", "make_server"]


class RelayServer(uvicorn.Server):
    """uvicorn's server with the sweep."""

    def __init__(self, config: uvicorn.Config, *, sweep_seconds: float) -> None:
        super().__init__(config)
        self._sweep_seconds = sweep_seconds
        self._timer: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._sweep()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._sweep_seconds, self._sweep)
        now = loop.time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, RelayProtocol) and (
                now >= connection.deadline or now >= connection.stalled_at or connection.half_closed
            ):
                connection.expire(now)


def make_server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    limits: ServerLimits,
    body_budget: BodyBudget,
    shutdown_seconds: int,
    on_refused: Callable[[str], None] = lambda reason: None,
) -> RelayServer:
    """A server that is ready to `serve()` or `serve(sockets=[…])`. Signals are uvicorn's: SIGTERM and SIGINT end it gracefully.

    `on_refused` hears the name of each refusal the server makes itself: an error class, or `ReaderStalled`.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=functools.partial(  # type: ignore[arg-type]
            RelayProtocol, limits=limits, budget=body_budget, on_refused=on_refused
        ),
        ws="none",
        interface="asgi3",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=True,
        backlog=4096,
        timeout_graceful_shutdown=shutdown_seconds,
    )
    return RelayServer(config, sweep_seconds=limits.sweep_seconds)
