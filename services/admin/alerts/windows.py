"""What has happened in the windows of alert rules, read from the archive: one query for all rules of a kind.

The archive is summed up by minute, key and member first; the rules, which come along as arrays, are joined to that. A window
begins at a full minute. What a window has nothing of is zero.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from libs.common import clock
from libs.common.entities import AlertRule
from services.admin.ledger import Ledger, Row

_RULES_MAX: Final = 500
"""In one query: what they are asked with stands in its URL."""
_RATE_REASONS: Final = ("requests", "input", "output", "free", "in_flight", "budget_held", "balance_held")
"""Refusals that pass by themselves (leases.Reason); a budget that is spent has a kind of rule of its own."""
_RULES: Final = """
(SELECT r.1 AS id, r.2 AS account, r.3 AS member, r.4 AS key, r.5 AS seconds FROM (SELECT arrayJoin(arrayZip({ids:Array(String)},
  {accounts:Array(String)}, {members:Array(String)}, {keys:Array(String)}, {seconds:Array(Int64)})) AS r)) AS rules
"""
_MATCHES: Final = "(rules.member = '' OR rules.member = member_id) AND (rules.key = '' OR rules.key = key_id)"
_USAGE: Final = """
SELECT rules.id AS id, sum(first) AS a, sum(second) AS b FROM
(SELECT account_id, member_id, key_id, toUnixTimestamp(toStartOfMinute(time)) AS minute, {columns}
  FROM usage FINAL WHERE account_id IN {{accounts:Array(String)}} AND time >= fromUnixTimestamp64Milli({{from_ms:Int64}})
  GROUP BY account_id, member_id, key_id, minute) AS minutes
INNER JOIN {rules} ON minutes.account_id = rules.account
WHERE {matches} AND minute >= {{now:Int64}} - rules.seconds GROUP BY id
"""
_REFUSED: Final = f"""
SELECT rules.id AS id, sum(count) AS a, 0 AS b FROM
(SELECT account_id, member_id, key_id, toUnixTimestamp(minute) AS at, sum(refused) AS count FROM refusals FINAL
  WHERE account_id IN {{accounts:Array(String)}} AND minute >= toDateTime(intDiv({{from_ms:Int64}}, 1000), 'UTC')
    AND reason IN {{reasons:Array(String)}} GROUP BY account_id, member_id, key_id, at) AS minutes
INNER JOIN {_RULES} ON minutes.account_id = rules.account
WHERE {_MATCHES} AND at >= {{now:Int64}} - rules.seconds GROUP BY id
"""  # noqa: S608 - our own words
_DAY_S: Final = 86_400
_DAYS_BEFORE: Final = 7
_READ: Final = "arraySum((c, q) -> if(c = 'cache_read', q, 0), line_classes, line_quantities)"
_WHOLE: Final = (
    "arraySum((c, q) -> if(c IN ('input', 'cache_read', 'cache_write_5m', 'cache_write_1h'), q, 0),"
    " line_classes, line_quantities)"
)
_CACHES: Final = f"""
SELECT rules.id AS id, intDiv(age, {_DAY_S}) > 0 AS is_before, sum(read_) AS read, sum(whole_) AS whole, sum(requests_) AS n
FROM (SELECT account_id, member_id, key_id, greatest({{now:Int64}} - toUnixTimestamp(toStartOfMinute(time)), 0) AS age,
  sum({_READ}) AS read_, sum({_WHOLE}) AS whole_, count() AS requests_
  FROM usage FINAL WHERE account_id IN {{accounts:Array(String)}} AND time >= fromUnixTimestamp64Milli({{from_ms:Int64}})
    AND modulo(age, {_DAY_S}) <= {{longest:Int64}}
  GROUP BY account_id, member_id, key_id, age) AS minutes
INNER JOIN {_RULES} ON minutes.account_id = rules.account
WHERE {_MATCHES} AND modulo(age, {_DAY_S}) <= rules.seconds GROUP BY id, is_before
"""  # noqa: S608 - our own words
_REPAIRS: Final = """
SELECT r.1 AS id, countIf(time >= fromUnixTimestamp64Milli(({now:Int64} - r.2) * 1000)) AS a, 0 AS b FROM
(SELECT DISTINCT entity_id, time FROM control FINAL
  WHERE kind = 'repair' AND time >= fromUnixTimestamp64Milli({from_ms:Int64})) AS repairs
CROSS JOIN (SELECT arrayJoin(arrayZip({ids:Array(String)}, {seconds:Array(Int64)})) AS r) AS rules GROUP BY id
"""


class CacheUse(msgspec.Struct, frozen=True):
    """Input tokens, those among them that came from a cache, and of how many requests."""

    read: int = 0
    whole: int = 0
    requests: int = 0


class Windows:
    """Each question raises Unavailable. The answers are by id of the rule."""

    def __init__(self, ledger: Ledger, now_ms: Callable[[], int] = clock.unix_ms) -> None:
        self._ledger = ledger
        self._now_ms = now_ms

    async def rate_limited(self, rules: Sequence[AlertRule]) -> dict[str, int]:
        """Refused by our own limits or the upstream's."""
        ours = await self._pairs(_REFUSED, rules, reasons=list(_RATE_REASONS))
        theirs = await self._pairs(_usage("countIf(status = 429) AS first, 0 AS second"), rules)
        return {rule.id: ours[rule.id][0] + theirs[rule.id][0] for rule in rules}

    async def errors(self, rules: Sequence[AlertRule]) -> dict[str, tuple[int, int]]:
        """Requests that failed, and all."""
        failed = "countIf(status >= 500 OR status = 0 OR outcome = 'partial') AS first, count() AS second"
        return await self._pairs(_usage(failed), rules)

    async def spent(self, rules: Sequence[AlertRule]) -> dict[str, int]:
        """Nano-dollars."""
        pairs = await self._pairs(_usage("sum(toInt128(total_nanos)) AS first, 0 AS second"), rules)
        return {name: spent for name, (spent, _) in pairs.items()}

    async def repairs(self, rules: Sequence[AlertRule]) -> dict[str, int]:
        """Entries that have brought a number in Redis back to what the archive says; `reconcile` makes them."""
        return {name: count for name, (count, _) in (await self._pairs(_REPAIRS, rules)).items()}

    async def caches(self, rules: Sequence[AlertRule]) -> dict[str, tuple[CacheUse, CacheUse]]:
        """In the window, and in the windows that ended at this time of day on the 7 days before, together."""
        found = {rule.id: [CacheUse(), CacheUse()] for rule in rules}
        for row in await self._rows(_CACHES, rules, days=_DAYS_BEFORE):
            found[row["id"]][int(row["is_before"])] = CacheUse(int(row["read"]), int(row["whole"]), int(row["n"]))
        return {name: (now, before) for name, (now, before) in found.items()}

    async def _pairs(self, sql: str, rules: Sequence[AlertRule], **more: Any) -> dict[str, tuple[int, int]]:
        found = {rule.id: (0, 0) for rule in rules}
        return found | {row["id"]: (int(row["a"]), int(row["b"])) for row in await self._rows(sql, rules, **more)}

    async def _rows(self, sql: str, rules: Sequence[AlertRule], *, days: int = 0, **more: Any) -> list[Row]:
        now, rows = self._now_ms() // 1000, []
        for start in range(0, len(rules), _RULES_MAX):
            some = rules[start : start + _RULES_MAX]
            seconds = [rule.window_minutes * 60 for rule in some]
            parameters = {
                "ids": [rule.id for rule in some],
                "accounts": [rule.account_id for rule in some],
                "members": [rule.member_id for rule in some],
                "keys": [rule.key_id for rule in some],
                "seconds": seconds,
                "now": now,
                "longest": max(seconds),
                "from_ms": (now - max(seconds) - days * _DAY_S) // 60 * 60_000,
            }
            rows += await self._ledger.query(sql, {**parameters, **more})
        return rows


def _usage(columns: str) -> str:
    return _USAGE.format(columns=columns, rules=_RULES, matches=_MATCHES)
