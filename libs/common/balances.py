"""Balances and admission in Redis: the only caller of `lua/*.lua`.

Every decision and every change of money is one script, so it is atomic, and repeating it changes nothing.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, Literal, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from libs.common import money, rediskeys
from libs.common.runtime import spawn

_Script = Literal["admit", "settle", "credit", "put_entity", "remember"]
_SCRIPTS: Final[tuple[_Script, ...]] = ("admit", "settle", "credit", "put_entity", "remember")
_CALLS_MAX: Final = 256
"""In one pipeline: some 5 ms of Redis's time, so that callers in between are served and no reply is late."""
_PIPELINES_MAX: Final = 8
"""Under way at once. While Redis is slow, calls gather for the next one instead of taking every connection of the pool."""


class StoreUnavailable(Exception):
    """Redis did not answer. What was asked for may have been done or not: try again later, every script may be repeated."""


class StoreRefused(StoreUnavailable):
    """Redis answered this one call with an error; the calls beside it may well have succeeded. Nothing was changed by it."""


class Granted(msgspec.Struct, frozen=True):
    """A request may go upstream, on these terms."""

    multiplier_ppm: int
    on_disconnect: Literal["drain", "cancel"]


class Refused(msgspec.Struct, frozen=True):
    """A request may not go upstream. Nothing was changed."""

    by: Literal["key", "account", "balance"]
    detail: str
    """The status of key or account, or the available balance in nano-dollars."""


class Balance(msgspec.Struct, frozen=True):
    """Nano-dollars. granted = available + held + spent."""

    available: int
    held: int
    spent: int
    granted: int


class Settlement(msgspec.Struct, frozen=True):
    """One event to settle: `cost_nanos` is the total of its version, not a difference."""

    account_id: str
    request_id: str
    version: int
    cost_nanos: int


SettleResult = Literal["APPLIED", "DUPLICATE", "DIVERGED", "MISSING"]
CreditResult = Literal["APPLIED", "DUPLICATE", "MISSING", "OVER"]


class _Call(NamedTuple):
    future: "asyncio.Future[Any]"
    script: _Script
    arguments: tuple[str, ...]


class Balances:
    """Runs the scripts. Calls made in one turn of the event loop travel as one pipeline (15 µs a call against 38 µs,
    measured 2026-11-22, see DESIGN.md, performance)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._texts: dict[_Script, bytes] = {name: _read(name) for name in _SCRIPTS}
        self._shas = {name: hashlib.sha1(text, usedforsecurity=False).hexdigest() for name, text in self._texts.items()}
        self._waiting: list[_Call] = []
        self._pipelines = 0

    async def admit(self, account_id: str, key_id: str) -> Granted | Refused:
        """Whether a message request of that key may go upstream now. Raises StoreUnavailable."""
        reply = await self._call("admit", 2, rediskeys.account(account_id), rediskeys.api_key(account_id, key_id))
        if reply[0] == b"OK":
            return Granted(int(reply[1]), reply[2].decode())
        return Refused(reply[1].decode(), reply[2].decode())

    async def settle(self, settlement: Settlement) -> SettleResult:
        """Debit one event. Only APPLIED changes anything. Raises StoreUnavailable.

        DUPLICATE: this version or a newer one was settled. DIVERGED: this version was, at another cost.
        """
        reply = await self._call(
            "settle",
            2,
            rediskeys.account(settlement.account_id),
            rediskeys.settled(settlement.account_id, settlement.request_id),
            settlement.request_id,
            str(settlement.version),
            str(settlement.cost_nanos),
            str(rediskeys.SETTLED_KEPT_S),
        )
        result: SettleResult = reply[0].decode()
        noted = f"{settlement.version}:"
        if result == "DUPLICATE" and reply[1].decode().startswith(noted):
            return result if reply[1].decode() == f"{noted}{settlement.cost_nanos}" else "DIVERGED"
        return result

    async def remember(self, settlement: Settlement) -> None:
        """Take note that an event was settled so, unless something is noted. Changes no balance. Raises StoreUnavailable."""
        await self._call(
            "remember",
            1,
            rediskeys.settled(settlement.account_id, settlement.request_id),
            settlement.request_id,
            str(settlement.version),
            str(settlement.cost_nanos),
            str(rediskeys.SETTLED_KEPT_S),
        )

    async def credit(self, account_id: str, credit_id: str, amount_nanos: int) -> CreditResult:
        """Apply one credit entry. Only APPLIED changes anything. Raises StoreUnavailable."""
        reply = await self._call(
            "credit",
            2,
            rediskeys.account(account_id),
            rediskeys.credits_taken(account_id),
            credit_id,
            str(amount_nanos),
            str(money.AMOUNT_NANOS_MAX),
        )
        result: CreditResult = reply[0].decode()
        return result

    async def put_entity(self, key: str, version: int, fields: Sequence[str]) -> bool:
        """Write `fields` (name, value, …; `?name` only where absent) unless a newer version stands. False if one does."""
        reply = await self._call("put_entity", 1, key, str(version), *fields)
        return bool(reply[0] == b"APPLIED")

    async def read(self, account_id: str) -> Balance | None:
        """The balance of an account, None if Redis knows no such account. Raises StoreUnavailable."""
        try:
            values = await self._redis.hmget(rediskeys.account(account_id), ["balance", "held", "spent", "granted"])
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        if values[0] is None:
            return None
        balance, held, spent, granted = (int(value or 0) for value in values)
        return Balance(balance - held, held, spent, granted)

    def _call(self, script: _Script, keys: int, *arguments: str) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush_soon)
        self._waiting.append(_Call(future, script, (str(keys), *arguments)))
        return future

    def _flush_soon(self) -> None:
        while self._waiting and self._pipelines < _PIPELINES_MAX:
            calls, self._waiting = self._waiting[:_CALLS_MAX], self._waiting[_CALLS_MAX:]
            self._pipelines += 1
            spawn(self._flush(calls), name="balances-flush")

    async def _flush(self, calls: list[_Call]) -> None:
        """A task of its own: a caller who leaves takes nobody's call with him. However it ends, every call is answered."""
        try:
            _answer(calls, await self._run(calls))
        except (RedisError, OSError) as error:
            # those who wait for this pipeline to end have waited as long as these: another time-out would be too late
            self._fail([*calls, *self._waiting], str(error) or type(error).__name__)
            self._waiting = []
        finally:
            self._fail(calls, "the call was given up")
            self._pipelines -= 1
            self._flush_soon()

    async def _run(self, calls: list[_Call]) -> list[Any]:
        replies = await self._execute(calls)
        unknown = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # Redis was restarted, or failed over in the middle: only what was not done is asked again
            for text in self._texts.values():
                await self._redis.script_load(text)
            again = await self._execute([calls[number] for number in unknown])
            for number, reply in zip(unknown, again, strict=True):
                replies[number] = reply
        return replies

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command("EVALSHA", self._shas[call.script], *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))

    def _fail(self, calls: Sequence[_Call], reason: str) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_exception(StoreUnavailable(reason))


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


def _read(script: _Script) -> bytes:
    return (files(__package__) / "lua" / f"{script}.lua").read_bytes()
