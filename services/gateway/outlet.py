"""Where an answer goes. Written without waiting, so that a chunk leaves in the turn of the loop that read it from the upstream.

The gateway's own server offers its cycle (cycle.py) as an extension of the ASGI scope; any other ASGI server is served through
`AsgiOutlet`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Message, Receive, Scope, Send

from libs.common.runtime import spawn
from services.gateway import asgi
from services.gateway.headers import Headers

EXTENSION: Final = "relay.outlet"


class Outlet(Protocol):
    """An answer on its way to the caller. What is written after he has left goes nowhere."""

    @property
    def is_full(self) -> bool:
        """Whether to wait for `drained` before anything more is written; also at the end, before it is let go of."""

    async def drained(self) -> None:
        """Return when there is room again."""

    def begin(self, status: int, headers: Headers) -> None:
        """Status and headers; names in lower case."""

    def write(self, chunk: bytes) -> bool:
        """A piece of the body, not empty. Whether the outlet is full now."""

    def flush(self) -> None:
        """Nothing follows at once: what was written leaves now. Until then a head may wait for what comes after it."""

    def hold(self) -> None:
        """The end follows at once: what is written until then may leave with it."""

    def end(self) -> None:
        """The answer is whole."""

    def watch(self, left: Callable[[], None]) -> None:
        """Call `left`, once, when the caller is gone; at once if he is. Only after the whole request was read."""

    def unwatch(self) -> None:
        """Call it no more."""


class AsgiOutlet:
    """Over ASGI's own `receive` and `send`: full whenever something waits to be sent."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._waiting: deque[Message] = deque()
        self._watching: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """See Outlet."""
        return bool(self._waiting)

    async def drained(self) -> None:
        """See Outlet."""
        while self._waiting:
            await self._send(self._waiting.popleft())

    def begin(self, status: int, headers: Headers) -> None:
        """See Outlet."""
        self._waiting.append({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, chunk: bytes) -> bool:
        """See Outlet."""
        self._waiting.append({"type": "http.response.body", "body": chunk, "more_body": True})
        return True

    def flush(self) -> None:
        """See Outlet."""

    def hold(self) -> None:
        """See Outlet."""

    def end(self) -> None:
        """See Outlet."""
        self._waiting.append({"type": "http.response.body", "body": b"", "more_body": False})

    def watch(self, left: Callable[[], None]) -> None:
        """See Outlet."""
        self._watching = spawn(self._watch(left), name="watch-caller")

    def unwatch(self) -> None:
        """See Outlet."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self, left: Callable[[], None]) -> None:
        await asgi.until_disconnect(self._receive)
        left()


def outlet_of(scope: Scope, receive: Receive, send: Send) -> Outlet:
    """The way to the caller of this request."""
    offered: Outlet | None = scope.get("extensions", {}).get(EXTENSION)
    return offered or AsgiOutlet(receive, send)
