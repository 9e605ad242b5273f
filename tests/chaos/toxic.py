"""TCP proxies with faults between any two processes of the relay: one thread, one loop, as many links as wanted."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Mode = Literal["pass", "cut", "reset", "delay", "slow", "slice"]
MODES: Final[tuple[Mode, ...]] = ("cut", "reset", "delay", "slow", "slice")
_CHUNK: Final = 65_536
_DELAY_S: Final = 0.15
_SLOW_BYTES_PER_S: Final = 20_000
_SLICE: Final = 7


@dataclass
class Link:
    """One way to a port, which can be disturbed."""

    name: str
    target: int
    port: int = 0
    mode: Mode = "pass"
    pairs: set[asyncio.StreamWriter] = field(default_factory=set)


class Toxics:
    """All links of a stack."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="toxics", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self.links: dict[str, Link] = {}

    def link(self, name: str, target: int) -> int:
        """The port of a new way to `target`, undisturbed."""
        link = self.links[name] = Link(name, target)
        self._wait(self._listen(link))
        return link.port

    def disturb(self, name: str, mode: Mode) -> None:
        """`cut` keeps connections and lets nothing through; `reset` breaks all and refuses new ones; `pass` heals."""
        link = self.links[name]
        link.mode = mode
        if mode == "reset":
            self._loop.call_soon_threadsafe(self._break, link)

    def heal(self) -> None:
        """All of them."""
        for name in self.links:
            self.disturb(name, "pass")

    def close(self) -> None:
        """End the thread."""
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, link: Link) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._pair(link, reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        link.port = server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for link in self.links.values():
            self._break(link)
        await asyncio.sleep(0.05)

    def _break(self, link: Link) -> None:
        for writer in link.pairs:
            writer.transport.abort()

    async def _pair(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if link.mode == "reset":
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", link.target)
        except OSError:
            writer.transport.abort()
            return
        link.pairs |= {writer, far_writer}
        await asyncio.gather(self._pump(link, reader, far_writer), self._pump(link, far_reader, writer))
        link.pairs -= {writer, far_writer}
        for one in (writer, far_writer):
            one.close()

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._pass(link, data, writer)
            with contextlib.suppress(OSError):
                writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()

    async def _pass(self, link: Link, data: bytes, writer: asyncio.StreamWriter) -> None:
        while link.mode == "cut":
            await asyncio.sleep(0.02)
        if link.mode == "delay":
            await asyncio.sleep(_DELAY_S)
        if link.mode == "slow":
            await asyncio.sleep(len(data) / _SLOW_BYTES_PER_S)
        size = _SLICE if link.mode == "slice" else len(data)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            if size == _SLICE:
                await asyncio.sleep(0)
        await writer.drain()
