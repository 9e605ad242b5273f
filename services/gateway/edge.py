"""The HTTP server's edge: uvicorn with our connections (connection.py), and the one timer that looks at their deadlines.

framing.py      which request heads are read, and the limits of a connection
connection.py   cuts the bytes into heads and bodies, refuses, times out, closes
cycle.py        one request and how its answer is written
"""

import asyncio
import functools
import socket
import sys
from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from services.gateway.connection import RelayProtocol
from services.gateway.cycle import BodyBudget
from services.gateway.framing import ServerLimits, connection_listed

__all__ = ["BodyBudget", "RelayServer", "ServerLimits", "connection_listed", "make_server"]


_UNSENT_BYTES_MAX: Final = 128 * 1024
"""What the kernel takes for a caller beyond what is under way to him: more would only hide that he does not read."""
_CUT_SECONDS: Final = 5
"""From the end of the time to finish until whatever is left is forgotten."""


class RelayServer(uvicorn.Server):
    """uvicorn's server with the sweep, and with a shutdown whose last word is the requests' own.

    Where uvicorn cancels what runs too long it closes the lifespan in the same breath; a request that was cancelled could then no
    longer record what it cost. So we cancel before uvicorn's time is up, and it goes on waiting.
    """

    def __init__(self, config: uvicorn.Config, *, sweep_seconds: float, shutdown_seconds: float) -> None:
        super().__init__(config)
        self._sweep_seconds = sweep_seconds
        self._shutdown_seconds = shutdown_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._cut: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in [one for server in self.servers for one in server.sockets]:
            # What is accepted inherits it.
            if sys.platform == "linux" and listening.family in (socket.AF_INET, socket.AF_INET6):
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES_MAX)
        self._sweep()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._cut = asyncio.get_running_loop().call_later(self._shutdown_seconds, self._cut_requests)
        try:
            await super().shutdown(sockets)
        finally:
            for timer in (self._timer, self._cut):
                if timer is not None:
                    timer.cancel()

    def _cut_requests(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()
        self._cut_connections()

    def _cut_connections(self) -> None:
        """Those that wait for nothing of ours; again and again, for a cancelled request leaves one behind."""
        self._cut = asyncio.get_running_loop().call_later(_CUT_SECONDS / 4, self._cut_connections)
        for connection in list(self.server_state.connections):
            if isinstance(connection, RelayProtocol):
                connection.cut()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._sweep_seconds, self._sweep)
        now = loop.time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, RelayProtocol) and (
                now >= connection.deadline
                or now >= connection.stalled_at
                or connection.half_closed
                or connection.flow.read_paused
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
        timeout_graceful_shutdown=shutdown_seconds + _CUT_SECONDS,
    )
    return RelayServer(config, sweep_seconds=limits.sweep_seconds, shutdown_seconds=shutdown_seconds)
