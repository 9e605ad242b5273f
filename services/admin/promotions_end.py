"""Takes back what is left of a promotion at its end, by an entry of its own, once.

It looks a while after the end, and when every request that began before it is settled: its lease is there until then, and its row
is archived before that. So however long one takes, or is on its way, it is paid for by the promotion.
"""

from typing import Any, Final

from libs.common import clock, ids
from libs.common.events import Credit
from services.admin import promotions
from services.admin.control import By
from services.admin.problems import Conflict
from services.admin.promotions import Promotion, Spend
from services.admin.resource import Context

_SETTLED_AFTER_MS: Final = 15 * 60_000
_LOOK_AGAIN_MS: Final = 86_400_000
"""At a promotion of which nothing was left: a correction may have given something back."""
_DUE: Final = """
SELECT account_id, credit_id FROM credits FINAL
WHERE kind = 'promotion' AND expires_at > toDateTime64(0, 3) AND expires_at <= {until:DateTime64(3)}
  AND credit_id NOT IN (SELECT about_id FROM credits WHERE kind = 'expiry')
"""
_PROMOTIONS: Final = """
SELECT credit_id, amount_nanos, time, expires_at FROM credits FINAL
WHERE account_id = {account_id:String} AND kind = 'promotion' AND expires_at > toDateTime64(0, 3)
"""
_SPENT: Final = """
SELECT arrayCount(edge -> edge <= toUnixTimestamp64Milli(time), {edges:Array(Int64)}) AS at,
  sum(toInt128(total_nanos)) AS nanos
FROM usage FINAL WHERE account_id = {account_id:String} AND time >= fromUnixTimestamp64Milli({first:Int64}) GROUP BY at
"""
_BY: Final = By(actor="relay", address="", reason="the promotion has ended")


class PromotionsEnd:
    """See the module's docstring."""

    def __init__(self, context: Context, *, settled_after_ms: int = _SETTLED_AFTER_MS) -> None:
        self._context = context
        self._settled_after_ms = settled_after_ms
        self._spent: dict[str, int] = {}
        """Promotions of which nothing was left when it was looked, Unix milliseconds: they have no entry that says so."""

    async def run(self) -> None:
        """End what is due. Raises Unavailable."""
        until_ms = clock.unix_ms() - self._settled_after_ms
        due = await self._context.ledger.query(_DUE, {"until": clock.from_unix_ms(until_ms)})
        recently_ms = clock.unix_ms() - _LOOK_AGAIN_MS
        self._spent = {name: at for name, at in self._spent.items() if at > recently_ms}
        for account_id in sorted({row["account_id"] for row in due if row["credit_id"] not in self._spent}):
            await self._end(account_id, until_ms)

    async def _end(self, account_id: str, until_ms: int) -> None:
        balances = self._context.balances
        if await balances.read(account_id) is None:
            return  # Redis has lost it, and what was under way with it
        unsettled_ms = await balances.unsettled_since_ms(account_id)  # first: what is settled later is waited for
        if unsettled_ms is not None:
            until_ms = min(until_ms, unsettled_ms)
        rows = await self._context.ledger.query(_PROMOTIONS, {"account_id": account_id})
        found = [_promotion(row) for row in rows]
        spends = await self._spends(account_id, promotions.edges(found))
        left = promotions.unspent(found, spends)
        for one in found:
            if one.ends_at_ms > until_ms:
                continue
            if not left[one.credit_id]:
                self._spent[one.credit_id] = clock.unix_ms()
                continue
            entry = Credit(
                id=ids.derived_id("cred", "expiry", one.credit_id),
                account_id=account_id,
                amount_nanos=-left[one.credit_id],
                reason="what was left of a promotion at its end",
                created_at_ms=clock.unix_ms(),
                kind="expiry",
                about_id=one.credit_id,
            )
            if await self._context.control.find(Credit, entry.id) is not None:
                continue
            try:
                await self._context.control.put(entry, over=None, by=_BY)
            except Conflict:
                continue  # another process was faster

    async def _spends(self, account_id: str, edges: list[int]) -> list[Spend]:
        parameters: dict[str, Any] = {"account_id": account_id, "edges": edges, "first": edges[0]}
        rows = await self._context.ledger.query(_SPENT, parameters)
        nanos = {int(row["at"]) - 1: int(row["nanos"]) for row in rows}
        return [Spend(edge, nanos.get(number, 0)) for number, edge in enumerate(edges)]


def _promotion(row: dict[str, Any]) -> Promotion:
    return Promotion(
        row["credit_id"],
        int(row["amount_nanos"]),
        clock.to_unix_ms(row["time"]),
        clock.to_unix_ms(row["expires_at"]),
    )
