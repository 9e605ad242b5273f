"""Connections that carry script calls to one server: one write, one time limit, and then the replies.

The library's pipeline makes a task to write, a timer for each reply, and asks its pool and its metrics twice: of what admission
costs a gateway, half (seen with `make bench-admission`, paired runs: 158 to 161 µs with it, 76 to 86 µs without).
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as Late


class Lines:
    """See the module's docstring. Lines that are idle are kept; one that fails is closed with all that were idle.

    They are made as the client's pool makes its connections, and closed with them. As many as there are exchanges at once.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._try_s: float | None = self._pool.connection_kwargs.get("socket_timeout")
        self._idle: list[Any] = []

    async def exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies, errors among them. Raises redis.ConnectionError, redis.TimeoutError after two tries."""
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        try:
            return await self._try(packed, len(commands))
        except (Lost, Late, OSError):
            return await self._try(packed, len(commands))

    async def _try(self, packed: bytes, count: int) -> list[Any]:
        line = self._idle.pop() if self._idle else self._new()
        try:
            if not line.is_connected:
                async with asyncio.timeout(self._try_s):
                    await line.connect()
            async with asyncio.timeout(self._try_s):
                await line.send_packed_command(packed, check_health=False)
                replies = [await _reply(line) for _ in range(count)]
        except BaseException as error:
            await self._drop(line, *self._idle)  # a server that is gone is gone for the idle ones too
            if isinstance(error, TimeoutError):
                raise Late("Redis did not answer in time") from None
            raise
        self._idle.append(line)
        return replies

    def _new(self) -> Any:
        settings = self._pool.connection_kwargs | {"socket_timeout": None}  # ours is the one time limit
        line = self._pool.connection_class(**settings)
        self._pool._in_use_connections.add(line)
        return line

    async def _drop(self, *lines: Any) -> None:
        self._idle = [line for line in self._idle if line not in lines]
        for line in lines:
            self._pool._in_use_connections.discard(line)
            await line.disconnect(nowait=True)


async def _reply(line: Any) -> Any:
    try:
        return await line.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
