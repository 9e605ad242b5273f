"""Balances in Redis: what is credited and what is settled. Each change is one script; repeating it changes nothing."""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal, cast

import msgspec
from redis.exceptions import RedisError

from libs.common import ids, money, rediskeys
from libs.common.events import Credit, Repair
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreRefused, StoreUnavailable

_SETTLED_AT_ONCE: Final = 64
"""Events in one script: a millisecond of Redis's time, in which nobody else is served."""
_SETTLED_UNDER_WAY_MAX: Final = 1024
"""Events: some 20 ms of Redis's time, so that no reply is late even where it gets little of a CPU."""
_SETTLED_KEPT_S: Final = str(rediskeys.SETTLED_KEPT_S)
_NO_LIMIT_NANOS: Final = 10**18
"""A billion dollars: Redis adds exactly far beyond it."""


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
    key_id: str = ""
    member_id: str = ""
    """Whose budgets it counts for, beside the account's."""


SettleResult = Literal["APPLIED", "DUPLICATE", "DIVERGED", "MISSING"]
CreditResult = Literal["APPLIED", "DUPLICATE", "MISSING", "OVER"]


class Balances:
    """See the module's docstring."""

    def __init__(self, redis: RedisClient, scripts: Scripts | None = None) -> None:
        self._redis = redis
        self._scripts = scripts or Scripts(redis)

    async def settle(self, settlement: Settlement) -> SettleResult:
        """`settle_all` of one. Raises StoreUnavailable; StoreRefused if Redis refuses it."""
        (result,) = await self.settle_all([settlement])
        if isinstance(result, StoreRefused):
            raise result
        return result

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[SettleResult | StoreRefused]:
        """Debit events and free their leases. Only APPLIED changes a balance. Raises StoreUnavailable: some may be settled.

        DUPLICATE: this version or a newer one was settled. DIVERGED: this version was, at another cost. Events of one account
        travel in one script, a third of Redis's time for each; what is refused so is tried again one by one.
        """
        results: dict[int, SettleResult | StoreRefused] = {}
        parts = _by_account(settlements)
        while parts:
            now, parts = _some_of(parts)
            calls = [self._settle_some([settlements[position] for position in part]) for part in now]
            for part, reply in zip(now, await asyncio.gather(*calls, return_exceptions=True), strict=True):
                if not isinstance(reply, BaseException):
                    results |= {at: _result(settlements[at], told) for at, told in zip(part, reply, strict=True)}
                elif not isinstance(reply, StoreRefused):
                    raise reply
                elif len(part) > 1:
                    parts += [[position] for position in part]
                else:
                    results[part[0]] = reply
        return [results[position] for position in range(len(settlements))]

    def _settle_some(self, settlements: Sequence[Settlement]) -> "asyncio.Future[list[bytes]]":
        """All of one account."""
        account_id = settlements[0].account_id
        scopes = [rediskeys.account(account_id), rediskeys.slots(account_id, account_id)]
        numbers = {"": "0"}
        """Of keys and members among the scopes."""
        settled, told = [], [account_id, _SETTLED_KEPT_S, ""]
        for one in settlements:
            if one.key_id not in numbers:
                numbers[one.key_id] = str(len(scopes) // 2 + 1)
                scopes += [rediskeys.api_key(account_id, one.key_id), rediskeys.slots(account_id, one.key_id)]
            if one.member_id not in numbers:
                numbers[one.member_id] = str(len(scopes) // 2 + 1)
                scopes += [rediskeys.member(account_id, one.member_id), rediskeys.slots(account_id, one.member_id)]
            settled.append(rediskeys.settled(account_id, one.request_id))
            second = ids.id_time_ms(one.request_id) // 1000
            told += (one.request_id, str(one.version), str(one.cost_nanos), str(second))
            told += (numbers[one.key_id], numbers[one.member_id])
        told[2] = str(len(scopes) // 2)
        keys = [rediskeys.leases(account_id), rediskeys.lease_index(ids.partition(account_id)), *scopes, *settled]
        return self._scripts.call("settle", len(keys), *keys, *told)

    async def remember(self, settlement: Settlement) -> None:
        """Take note that an event was settled so, unless something is noted. Changes no balance. Raises StoreUnavailable."""
        await self._scripts.call(
            "remember",
            1,
            rediskeys.settled(settlement.account_id, settlement.request_id),
            settlement.request_id,
            str(settlement.version),
            str(settlement.cost_nanos),
            _SETTLED_KEPT_S,
        )

    async def credit(self, account_id: str, credit_id: str, amount_nanos: int) -> CreditResult:
        """Apply one credit entry. Only APPLIED changes anything. Raises StoreUnavailable."""
        return await self._credit(account_id, credit_id, amount_nanos, money.AMOUNT_NANOS_MAX)

    async def take_again(self, credit: Credit) -> CreditResult:
        """Apply an entry that was taken before Redis was lost, before what was spent meanwhile is debited again: the balance
        may for a while be beyond what an account may hold. Raises StoreUnavailable."""
        return await self._credit(credit.account_id, credit.id, credit.amount_nanos, _NO_LIMIT_NANOS)

    async def _credit(self, account_id: str, credit_id: str, amount_nanos: int, limit_nanos: int) -> CreditResult:
        reply = await self._scripts.call(
            "credit",
            2,
            rediskeys.account(account_id),
            rediskeys.credits_taken(account_id),
            credit_id,
            str(amount_nanos),
            str(limit_nanos),
        )
        result: CreditResult = reply[0].decode()
        return result

    async def repair(self, repair: Repair) -> CreditResult:
        """Apply one repair entry, once. Only APPLIED changes anything. Raises StoreUnavailable."""
        account_id, account = repair.account_id, rediskeys.account(repair.account_id)
        about = account
        if repair.key_id:
            about = rediskeys.api_key(account_id, repair.key_id)
        elif repair.member_id:
            about = rediskeys.member(account_id, repair.member_id)
        reply = await self._scripts.call(
            "repair",
            3,
            account,
            rediskeys.credits_taken(account_id),
            about,
            repair.id,
            str(repair.balance_nanos),
            str(repair.granted_nanos),
            str(repair.spent_nanos),
            str(repair.held_nanos),
        )
        result: CreditResult = reply.decode()
        return result

    async def put_entity(self, key: str, version: int, fields: Sequence[str]) -> bool:
        """Write `fields` (name, value, …; `?name` only where absent) unless a newer version stands. False if one does."""
        reply = await self._scripts.call("put_entity", 1, key, str(version), *fields)
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

    async def unsettled_since_ms(self, account_id: str) -> int | None:
        """When the oldest request that is not settled yet began, Unix milliseconds; None: all are. Raises StoreUnavailable."""
        try:
            names: Sequence[bytes] = await self._redis.hkeys(rediskeys.leases(account_id))  # type: ignore[assignment]
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return min((ids.id_time_ms(name.decode()) for name in names if not name.endswith(b":memo")), default=None)

    async def key_last_used_ms(self, account_id: str, key_id: str) -> int:
        """When the key's last settled request began, Unix milliseconds; 0: never, or not known here. Raises StoreUnavailable."""
        try:
            value = await self._redis.hget(rediskeys.api_key(account_id, key_id), "last_used")
        except (RedisError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        return int(value or 0) * 1000


def _by_account(settlements: Sequence[Settlement]) -> list[list[int]]:
    """Positions that travel together: of one account, no more than a script may take."""
    of_account: dict[str, list[int]] = {}
    for position, one in enumerate(settlements):
        of_account.setdefault(one.account_id, []).append(position)
    return [
        positions[start : start + _SETTLED_AT_ONCE]
        for positions in of_account.values()
        for start in range(0, len(positions), _SETTLED_AT_ONCE)
    ]


def _some_of(parts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """What may be under way at once, and the rest."""
    events, count = 0, 0
    while count < len(parts) and events < _SETTLED_UNDER_WAY_MAX:
        events += len(parts[count])
        count += 1
    return parts[:count], parts[count:]


def _result(settlement: Settlement, reply: bytes) -> SettleResult:
    result, _, noted = reply.decode().partition(" ")
    version = f"{settlement.version}:"
    if noted.startswith(version) and noted != f"{version}{settlement.cost_nanos}":
        return "DIVERGED"
    return cast("SettleResult", result)
