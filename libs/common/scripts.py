"""Runs `lua/*.lua` on Redis. Every decision and every change of state is one script, so it is atomic; each may be repeated.

A script whose first line is `--!include a b` begins with `lua/include/a.lua` and `b.lua`. Only the modules that give scripts a
meaning call this one: balances.py, books.py, leases.py, upstreams.py.
"""

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError, RedisError, ResponseError

from libs.common.redisclient import RedisClient
from libs.common.redislines import Lines
from libs.common.runtime import spawn

_log: Final = logging.getLogger("relay.scripts")
Script = Literal[
    "settle",
    "credit",
    "find_key",
    "put_entity",
    "remember",
    "book_put",
    "book_read",
    "repair",
    "audit",
    "admit",
    "check",
    "usage",
    "renew",
    "finish",
    "reap",
    "throttle",
    "gate_state",
    "gate_open",
    "gate_close",
    "gate_claim",
    "gate_mark",
    "upstream_put",
    "upstream_read",
    "upstream_take",
    "upstream_release",
    "upstream_in_flight",
    "breaker_failed",
    "breaker_succeeded",
    "breaker_probe",
]
_INCLUDE: Final = re.compile(rb"--!include([a-z_ ]+)\n")
_CALLS_MAX: Final = 256
"""In one pipeline: some 5 ms of Redis's time, so that callers in between are served and no reply is late."""
_PIPELINES_MAX: Final = 8
"""Under way at once. While Redis is slow, calls gather for the next one instead of taking every connection of the pool."""

_DRAIN_S: Final = 1.0
_GATHER_S: Final = 0.002
"""How long a call that need not leave at once waits for others to travel with: a pipeline costs more than what it carries."""


class StoreUnavailable(Exception):
    """Redis did not answer. What was asked for may have been done or not: try again later, every script may be repeated."""


class StoreRefused(StoreUnavailable):
    """Redis answered this one call with an error; the calls beside it may well have succeeded. Nothing was changed by it."""


class _Call(NamedTuple):
    future: "asyncio.Future[Any]"
    script: Script
    arguments: tuple[str | bytes, ...]


class Scripts:
    """Calls made in one turn of the event loop travel as one pipeline (15 µs a call against 38 µs, measured 2026-11-22,
    see DESIGN.md, performance). While one is under way the next gathers, until that is back or two milliseconds are over: an idle
    Redis is asked at once, a busy one seldom and much."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._sources: dict[Script, tuple[str, bytes]] = {}
        """SHA-1 and text."""
        self._lines = None if isinstance(redis, RedisCluster) else Lines(redis)
        self._waiting: list[_Call] = []
        self._under_way: set[asyncio.Task[None]] = set()
        """A task for each pipeline."""
        self._flush_at: asyncio.Handle | None = None
        self._hurried = False
        """Whether somebody who is not patient is among those waiting."""

    def call(self, script: Script, keys: int, *arguments: str | bytes, patient: bool = False) -> "asyncio.Future[Any]":
        """The reply of a script to `arguments`, the first `keys` of which are KEYS. Raises StoreUnavailable, StoreRefused.

        Not a coroutine: the call goes out in this turn of the loop whether or not anybody waits for it; a `patient` one within
        two milliseconds, with the next that is not. A reply nobody waits for must be looked at all the same (`heed`).
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(future, script, (str(keys), *arguments)))
        if not patient and not self._hurried:
            if self._flush_at is not None:
                self._flush_at.cancel()
            self._flush_at = loop.call_soon(self._flush_soon)
        elif self._flush_at is None:
            self._flush_at = loop.call_later(_GATHER_S, self._flush_soon)
        self._hurried = self._hurried or not patient
        return future

    async def drain(self) -> None:
        """Until every call that was made is answered, or a second has passed: before the connections are closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while self._waiting or self._under_way:
                    self._flush_soon()
                    await asyncio.wait(self._under_way)

    def _flush_soon(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        while self._waiting and len(self._under_way) < _PIPELINES_MAX:
            calls, self._waiting = self._waiting[:_CALLS_MAX], self._waiting[_CALLS_MAX:]
            task = spawn(self._flush(calls), name="scripts-flush")
            self._under_way.add(task)
            task.add_done_callback(self._flushed)
        self._hurried = bool(self._waiting)

    def _flushed(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        if self._hurried:
            self._flush_soon()

    async def _flush(self, calls: list[_Call]) -> None:
        """A task of its own: a caller who leaves takes nobody's call with him. However it ends, every call is answered."""
        try:
            _answer(calls, await self._run(calls))
        except (RedisError, OSError) as error:
            reason = str(error) or type(error).__name__
            self._fail(calls, reason)
            if len(self._under_way) == _PIPELINES_MAX:
                # those who wait for room have waited as long as these: another time-out would be too late
                self._fail(self._waiting, reason)
                self._waiting = []
        finally:
            self._fail(calls, "the call was given up")

    async def _run(self, calls: list[_Call]) -> list[Any]:
        replies = await self._execute(calls)
        unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # Redis was restarted, or failed over in the middle: only what was not done is asked again
            again = await self._execute([calls[number] for number in unknown], with_texts=True)
            for number, reply in zip(unknown, again, strict=True):
                replies[number] = reply
        return replies

    async def _execute(self, calls: list[_Call], *, with_texts: bool = False) -> list[Any]:
        """The replies, in order. On a Cluster each node has its own pipeline, and its failure is its own calls' alone."""
        if not isinstance(self._redis, RedisCluster):
            return await self._pipeline(calls, with_texts)
        await self._redis.initialize()
        by_node: dict[str, list[int]] = {}
        for number, call in enumerate(calls):
            by_node.setdefault(_node(self._redis, call), []).append(number)
        pipelines = [self._pipeline([calls[number] for number in numbers], with_texts) for numbers in by_node.values()]
        replies: list[Any] = [None] * len(calls)
        for numbers, found in zip(
            by_node.values(), await asyncio.gather(*pipelines, return_exceptions=True), strict=True
        ):
            each = [found] * len(numbers) if isinstance(found, BaseException) else found
            for number, reply in zip(numbers, each, strict=True):
                replies[number] = reply
        return replies

    async def _pipeline(self, calls: list[_Call], with_texts: bool) -> list[Any]:
        told: set[Script] = set()
        commands: list[tuple[str | bytes, ...]] = []
        for call in calls:
            sha, text = self._source(call.script)
            if with_texts and call.script not in told:  # whoever has run a text knows it by its hash
                told.add(call.script)
                commands.append(("EVAL", text, *call.arguments))
            else:
                commands.append(("EVALSHA", sha, *call.arguments))
        if self._lines is not None:
            return await self._lines.exchange(commands)
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    def _source(self, script: Script) -> tuple[str, bytes]:
        source = self._sources.get(script)
        if source is None:
            text = _read(script)
            source = self._sources[script] = (hashlib.sha1(text, usedforsecurity=False).hexdigest(), text)
        return source

    def _fail(self, calls: Sequence[_Call], reason: str) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_exception(StoreUnavailable(reason))


def _node(redis: RedisCluster, call: _Call) -> str:
    """Where a call goes; `` if nobody serves its slot, which the pipeline will say."""
    try:
        node = redis.get_node_from_key(str(call.arguments[1]))
    except RedisError:
        return ""
    return node.name if node is not None else ""


def heed(call: "asyncio.Future[Any]") -> None:
    """For a call nobody waits for: what became of it is looked at, so that a failure is no complaint of asyncio's."""
    call.add_done_callback(_look)


def _look(call: "asyncio.Future[Any]") -> None:
    if not call.cancelled() and (error := call.exception()) is not None:
        _log.debug("a call nobody waited for failed: %s", error)


def _answer(calls: Sequence[_Call], replies: Sequence[Any]) -> None:
    for call, reply in zip(calls, replies, strict=True):
        if call.future.done():
            continue
        if isinstance(reply, ResponseError):
            call.future.set_exception(StoreRefused(str(reply)))
        elif isinstance(reply, BaseException):
            call.future.set_exception(StoreUnavailable(str(reply)))
        else:
            call.future.set_result(reply)


def _read(name: str) -> bytes:
    text = (files(__package__) / "lua" / f"{name}.lua").read_bytes()
    if (included := _INCLUDE.match(text)) is None:
        return text
    parts = [
        (files(__package__) / "lua" / "include" / f"{part.decode()}.lua").read_bytes() for part in included[1].split()
    ]
    return b"".join(parts) + text
