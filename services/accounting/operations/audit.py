"""Compares what Redis says of an account, at one instant, with what the archive adds up to."""

from typing import Any, Final

import msgspec

from libs.common import money, rediskeys
from services.accounting.stores import Stores

_SPENT: Final = """
SELECT key_id, member_id, sum(toInt128(total_nanos)) FROM usage FINAL
WHERE account_id = {account:String} GROUP BY key_id, member_id
"""
_GRANTED: Final = "SELECT sum(toInt128(amount_nanos)) FROM credits FINAL WHERE account_id = {account:String}"


class Finding(msgspec.Struct, frozen=True):
    """A number in Redis that is not what it should be. Nano-dollars."""

    account_id: str
    owner: str
    """A key or a member of the account; empty: the account itself."""
    number: str
    """`granted`, `spent`, `balance`, `held`; `account` if Redis does not know it."""
    redis: int
    expected: int

    def __str__(self) -> str:
        where = f"{self.account_id} {self.owner}".strip()
        if self.number == "account":
            return f"{where}: Redis does not know this account; run rebuild"
        usd = money.format_usd(abs(self.redis - self.expected))
        more = "more" if self.redis > self.expected else "less"
        return f"{where}: {self.number} is {self.redis} in Redis, {self.expected} by the archive: {usd} USD {more}"


async def look(stores: Stores, account_id: str) -> list[Finding]:
    """What differs now. Archive first: it is written before Redis is, so that what is on its way shows as too little spent.

    `held` is compared with what the account's leases add up to. Raises StoreUnavailable, LedgerUnavailable.
    """
    rows = await stores.ledger.query(_SPENT, {"account": account_id})
    ((granted,),) = await stores.ledger.query(_GRANTED, {"account": account_id})
    spent: dict[str, int] = {"": 0}
    for key_id, member_id, total in rows:
        for owner in {"", key_id, member_id}:
            spent[owner] = spent.get(owner, 0) + int(total)
    snapshot = await _snapshot(stores, account_id)
    if snapshot is None:
        return [Finding(account_id, "", "account", 0, 0)]
    numbers, held_by = snapshot
    expected = {"granted": int(granted or 0), "spent": spent[""], "balance": int(granted or 0) - spent[""]}
    expected["held"] = numbers.pop("held by leases")
    found = [Finding(account_id, "", name, numbers[name], wanted) for name, wanted in expected.items()]
    for owner in (spent.keys() | held_by.keys()) - {""}:
        told = await _owner(stores, account_id, owner)
        found.append(Finding(account_id, owner, "spent", told["spent"], spent.get(owner, 0)))
        found.append(Finding(account_id, owner, "held", told["held"], held_by.get(owner, 0)))
    return [one for one in found if one.redis != one.expected]


async def _snapshot(stores: Stores, account_id: str) -> tuple[dict[str, int], dict[str, int]] | None:
    keys = rediskeys.account(account_id), rediskeys.leases(account_id), rediskeys.credits_taken(account_id)
    reply: list[Any] = await stores.scripts.call("audit", len(keys), *keys)
    if not reply:
        return None
    names = ("balance", "held", "spent", "granted", "held by leases", "credits")
    numbers = dict(zip(names, map(int, reply[: len(names)]), strict=True))
    del numbers["credits"]
    owners = reply[len(names) :]
    return numbers, {owner.decode(): int(held) for owner, held in zip(owners[::2], owners[1::2], strict=True)}


async def _owner(stores: Stores, account_id: str, owner: str) -> dict[str, int]:
    name = rediskeys.member if owner.startswith("memb_") else rediskeys.api_key
    spent, held = await stores.redis.hmget(name(account_id, owner), ["spent", "held"])
    return {"spent": int(spent or 0), "held": int(held or 0)}
