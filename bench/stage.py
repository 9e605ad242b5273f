"""The Redis of bench/admission.py: a hundred thousand accounts in it, its CPU time, and the settling of what was admitted."""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from bench.rig import BenchFailed
from libs.common import ids, redisclient, rediskeys
from libs.common.balances import Balances, Settlement
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity, Member
from libs.common.gates import Gates
from libs.common.leases import Lease, Leases
from libs.common.limits import Limits
from libs.common.scripts import Scripts
from libs.common.upstreams import Upstreams

COST_NANOS: Final = 9_600_000
CREDIT_NANOS: Final = 10**15
CAPS: Final = Limits(rpm=10**7, itpm=10**9, otpm=10**9, in_flight=10**5)
"""Those that every account has, wide enough for one account to take it all."""
ALL_CAPS: Final = Limits(
    rpm=10**7,
    itpm=10**9,
    otpm=10**9,
    in_flight=10**5,
    budget_day_nanos=10**15,
    budget_week_nanos=10**15,
    budget_month_nanos=10**15,
    budget_total_nanos=10**15,
)
_RESTORED_AT_ONCE: Final = 1_000
_SETTLED_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Key:
    """An account with a key."""

    account_id: str
    key_id: str
    member_id: str = ""


class Stage:
    """Redis, and the part of the gateway that is measured."""

    def __init__(self, url: str) -> None:
        self.redis = redisclient.connect(url, try_seconds=redisclient.TRY_S_UNHURRIED)
        scripts = Scripts(self.redis)
        self.leases = Leases(self.redis, scripts)
        self.balances = Balances(self.redis, scripts)
        self._directory = Directory(self.redis, self.balances, Upstreams(self.redis, scripts))

    async def open(self) -> None:
        """What accounting does in a new installation: without it nothing is admitted."""
        gates = Gates(self.redis)
        for number, state in enumerate(await gates.states()):
            await gates.open(number, state.run_id, opened_for=state.opened_for)

    async def create(self, limits: Limits, *, member: bool = False) -> Key:
        """One account with a key, and money; the limits stand on the account, and with a member on all three scopes."""
        made = Key(ids.new_account_id(), ids.new_key_id(), ids.new_member_id() if member else "")
        more: dict[str, Any] = {"member_id": made.member_id, "limits": limits} if member else {}
        common: dict[str, Any] = {"name": "bench", "created_at_ms": 0}
        await self._apply(Account(id=made.account_id, limits=limits, time_zone="Europe/Berlin", **common))
        if member:
            await self._apply(Member(id=made.member_id, account_id=made.account_id, limits=limits, **common))
        await self._apply(
            ApiKey(id=made.key_id, account_id=made.account_id, sha256=made.key_id, hint="", **common, **more)
        )
        await self._apply(
            Credit(
                id=ids.new_credit_id(),
                account_id=made.account_id,
                amount_nanos=CREDIT_NANOS,
                reason="bench",
                created_at_ms=0,
            )
        )
        return made

    async def multiply(self, model: Key, count: int) -> list[Key]:
        """So many more like it: copies of what Redis holds of it."""
        keys = [Key(ids.new_account_id(), ids.new_key_id()) for _ in range(count)]
        account = await self.redis.dump(rediskeys.account(model.account_id))
        key = await self.redis.dump(rediskeys.api_key(model.account_id, model.key_id))
        assert account is not None and key is not None
        for at in range(0, count, _RESTORED_AT_ONCE):
            pipeline = self.redis.pipeline(transaction=False)
            for one in keys[at : at + _RESTORED_AT_ONCE]:
                pipeline.restore(rediskeys.account(one.account_id), 0, account)
                pipeline.restore(rediskeys.api_key(one.account_id, one.key_id), 0, key)
            await pipeline.execute()
        return keys

    async def cpu_seconds(self) -> float:
        """Of Redis so far."""
        info = await self.redis.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    async def settle(self, leases: list[Lease]) -> None:
        """What accounting does with them. Raises BenchFailed if a hold or an amount is not right afterwards."""
        for at in range(0, len(leases), _SETTLED_AT_ONCE):
            some = leases[at : at + _SETTLED_AT_ONCE]
            await asyncio.gather(*(self.balances.settle(_settlement(lease)) for lease in some))
        for lease in {lease.account_id: lease for lease in leases[-_SETTLED_AT_ONCE:]}.values():
            balance = await self.balances.read(lease.account_id)
            if balance is None or balance.held or balance.available + balance.spent != CREDIT_NANOS:
                raise BenchFailed(f"{lease.account_id}: {balance}")

    async def _apply(self, entity: Entity) -> None:
        change = ControlChanged(entity=entity, actor="bench", reason="bench", at_ms=0)
        if await self._directory.apply(change, 1) != "APPLIED":
            raise BenchFailed(f"{entity} was not applied")


def _settlement(lease: Lease) -> Settlement:
    return Settlement(lease.account_id, lease.request_id, 3, COST_NANOS, lease.key_id, lease.member_id)
