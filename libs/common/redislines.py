"""Connections that carry script calls to one server: one write, one time limit, and then the replies.

The library makes a connection, with all that belongs to it (TLS, password, database, Sentinel's word for the master), and then
a `_Line` takes its transport over. Reading a reply the library's way is a chain of coroutines and a timer.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import hiredis
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as Late

_INCOMPLETE: Final = object()


class Lines:
    """See the module's docstring. Lines that are idle are kept; one that fails is closed with all that were idle.

    They are made as the client's pool makes its connections, and closed with them. As many as there are exchanges at once.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._try_s: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._behind_sentinel = isinstance(self._pool, SentinelConnectionPool)
        self._idle: list[_Line] = []

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies, errors among them. Raises redis.ConnectionError, redis.TimeoutError after two tries."""
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        try:
            return await self._try(packed, len(commands))
        except (Lost, Late, OSError):
            return await self._try(packed, len(commands))

    async def _try(self, packed: bytes, count: int) -> list[Any]:
        line = self._idle.pop() if self._idle else await self._new()
        try:
            replies = await line.exchange(packed, count, self._try_s)
            if self._behind_sentinel and any(isinstance(reply, ReadOnlyError) for reply in replies):
                raise Lost("the master is one no more")
        except BaseException:
            await self._drop(line, *self._idle)  # a server that is gone is gone for the idle ones too
            raise
        self._idle.append(line)
        return replies

    async def _new(self) -> "_Line":
        settings = self._pool.connection_kwargs | {"socket_timeout": None}  # ours is the one time limit
        connection: Any = self._pool.connection_class(**settings)
        self._pool._in_use_connections.add(connection)
        try:
            async with asyncio.timeout(self._try_s):
                await connection.connect()
        except BaseException as error:
            self._pool._in_use_connections.discard(connection)
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise Late("Redis could not be reached in time") from None
            raise
        return _Line(connection)

    async def _drop(self, *lines: "_Line") -> None:
        self._idle = [line for line in self._idle if line not in lines]
        for line in lines:
            self._pool._in_use_connections.discard(line.connection)
            await line.drop()


class _Line(asyncio.Protocol):
    """A connection with at most one exchange on it, so that no reply can be taken for another's.

    What is written at once is bounded by what the caller puts into an exchange, so a full buffer is no reason to pause.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._transport: asyncio.Transport = connection._writer.transport
        self._library = self._transport.get_protocol()
        """It learns when the connection is closed: the pool waits for that."""
        self._reader = hiredis.Reader(
            protocolError=Lost, replyError=connection._parser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[list[Any]] | None = None
        self._count = 0
        self._replies: list[Any] = []
        self._lost: Exception | None = None
        self._transport.set_protocol(self)

    async def exchange(self, packed: bytes, count: int, within_s: float | None) -> list[Any]:
        """`count` replies. Raises redis.ConnectionError, redis.TimeoutError; the line is of no use after it."""
        if self._lost is not None:
            raise self._lost
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        self._answer, self._count, self._replies = answer, count, []
        timer = None if within_s is None else self._loop.call_later(within_s, self._late)
        self._transport.write(packed)
        try:
            return await answer
        finally:
            self._answer = None
            if timer is not None:
                timer.cancel()

    async def drop(self) -> None:
        """Close it without waiting for anything."""
        self._transport.abort()
        await self.connection.disconnect(nowait=True)

    def data_received(self, data: bytes) -> None:
        """Take replies until all are here."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if isinstance(reply, Lost):  # it is loading its data, or takes no more clients
                    raise reply
                self._replies.append(reply)
        except RedisError as error:
            self._fail(error)
            return
        if len(self._replies) == self._count and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._replies)
        elif len(self._replies) > self._count:
            self._fail(Lost("a reply nobody asked for"))

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever waits is told."""
        self._library.connection_lost(error)
        self._fail(Lost(f"Redis closed the connection: {error}" if error else "Redis closed the connection"))

    def _late(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._fail(Late("Redis did not answer in time"))

    def _fail(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = error
            self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
