"""Lines to a server that answers byte by byte, with errors, late, too much, or not at all."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, NoScriptError, ResponseError
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import TimeoutError as Late

from libs.common import redisclient
from libs.common.redislines import Lines

pytestmark = pytest.mark.anyio

OK = b"+OK\r\n"
LARGE = b"x" * 3_000_000


class Server:
    """Plays a script: for each exchange, on whichever connection, the pieces of bytes it answers with; None hangs up."""

    def __init__(self) -> None:
        self.script: list[list[bytes | None]] = []
        self.heard: list[int] = []
        """Bytes of each exchange."""
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await reader.read(65536):
                if b"ECHO" not in data[:60]:  # the library introduces itself
                    writer.write(b"+OK\r\n" * data.count(b"CLIENT\r\n") + b"%0\r\n" * data.count(b"HELLO\r\n"))
                    continue
                self.heard.append(len(data) + await self._rest(reader, data))
                for piece in self.script.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _rest(self, reader: asyncio.StreamReader, data: bytes) -> int:
        if b"$3000000\r\n" not in data:
            return 0
        await asyncio.sleep(0.02)  # it is slow: the writer's buffer is full meanwhile
        return len(await reader.readexactly(len(LARGE) + data.index(b"$3000000\r\n") + 12 - len(data)))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    played = Server()
    listening = await asyncio.start_server(played.serve, "127.0.0.1", 0)
    played.port = listening.sockets[0].getsockname()[1]
    yield played
    listening.close()


@pytest.fixture
async def connect(server: Server) -> AsyncIterator[Callable[[float], Lines]]:
    clients: list[Any] = []

    def connected(try_seconds: float) -> Lines:
        clients.append(redisclient.connect(f"redis://127.0.0.1:{server.port}/0", try_seconds=try_seconds))
        return Lines(clients[-1])

    yield connected
    for client in clients:
        await client.aclose()


Connect = Callable[[float], Lines]


async def echo(lines: Lines, count: int = 1, word: str | bytes = "") -> list[Any]:
    return await lines.exchange([("ECHO", word)] * count)


async def test_replies_in_pieces(server: Server, connect: Connect) -> None:
    whole = b"*2\r\n$3\r\na\r\n\r\n:7\r\n$-1\r\n+OK\r\n"
    lines = connect(2.0)
    for cut in range(1, len(whole)):
        server.script = [[whole[:cut], whole[cut:]]]
        assert await echo(lines, 3) == [[b"a\r\n", 7], None, b"OK"]
    server.script = [[whole[at : at + 1] for at in range(len(whole))]]
    assert await echo(lines, 3) == [[b"a\r\n", 7], None, b"OK"]
    assert server.connections == 1


async def test_errors_are_replies_and_news_are_none(server: Server, connect: Connect) -> None:
    lines = connect(2.0)
    server.script = [[b"-NOSCRIPT No matching script\r\n>2\r\n+news\r\n:1\r\n+OK\r\n-WRONGTYPE no\r\n"]]
    unknown, fine, wrong = await echo(lines, 3)
    assert isinstance(unknown, NoScriptError)
    assert fine == b"OK"
    assert isinstance(wrong, ResponseError)
    server.script = [[OK]]
    assert await echo(lines) == [b"OK"]
    assert server.connections == 1


@pytest.mark.parametrize("pieces", [[None], [OK, None], [b"+O", None]])
async def test_a_server_that_hangs_up_in_the_middle_is_asked_once_more(
    server: Server, connect: Connect, pieces: list[bytes | None]
) -> None:
    lines = connect(2.0)
    server.script = [pieces, [OK, OK], pieces, pieces]
    assert await echo(lines, 2) == [b"OK", b"OK"]
    with pytest.raises(Lost):
        await echo(lines, 2)
    assert server.connections == 3
    assert server.script == []


@pytest.mark.parametrize("reply", [b"-LOADING Redis is loading the dataset in memory\r\n", b"?nonsense\r\n"])
async def test_what_is_no_answer_of_a_server_that_works(server: Server, connect: Connect, reply: bytes) -> None:
    lines = connect(2.0)
    server.script = [[reply], [OK], [reply], [reply]]
    assert await echo(lines) == [b"OK"]
    with pytest.raises(BusyLoadingError if b"LOADING" in reply else Lost):
        await echo(lines)


async def test_a_reply_too_many_reaches_nobody(server: Server, connect: Connect) -> None:
    lines = connect(2.0)
    server.script = [[OK, b"+not yours\r\n"], [OK]]
    assert await echo(lines) == [b"OK"]
    await asyncio.sleep(0.02)
    assert await echo(lines) == [b"OK"]
    assert server.connections == 2


async def test_a_reply_that_is_late_reaches_nobody(server: Server, connect: Connect) -> None:
    lines = connect(0.1)
    server.script = [[], [], [OK]]
    started = time.monotonic()
    with pytest.raises(Late):
        await echo(lines)
    assert 0.2 <= time.monotonic() - started < 1.0
    assert await echo(lines) == [b"OK"]
    assert server.connections == 3


async def test_a_server_that_reads_slowly_gets_all_that_was_written(server: Server, connect: Connect) -> None:
    lines = connect(5.0)
    server.script = [[OK]]
    assert await echo(lines, word=LARGE) == [b"OK"]
    assert server.heard[0] > len(LARGE)
