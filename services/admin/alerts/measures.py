"""Measures what alert rules are about, many rules in one question. What a store does not tell, its rules are left alone for."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from libs.common import money
from libs.common.balances import Balances
from libs.common.entities import AlertRule, RuleKind
from libs.common.events import ApiKey
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.standing import Budget, ScopeStanding, Standings
from libs.common.upstreams import Upstreams
from services.admin.alerts import conditions
from services.admin.alerts.backlog import Backlog
from services.admin.alerts.windows import Windows
from services.admin.mirror import Mirror
from services.admin.problems import Unavailable

_log: Final = logging.getLogger("relay.alerts")
_AT_ONCE: Final = 100
_PERIODS: Final = {"day": "daily", "week": "weekly", "month": "monthly", "total": "total"}


class Measured(msgspec.Struct, frozen=True):
    """What a rule looks at, as it is now."""

    value: int
    facts: str = ""
    """In sentences."""


_Item = TypeVar("_Item")
Found = dict[str, Measured]
"""By id of the rule; one that is absent could not be measured."""
Reading = Callable[[Sequence[AlertRule]], Awaitable[Found]]


class Measures:
    """`others`: readings of kinds that nobody measures here, such as unknown_model: a chore that knows hangs in its own."""

    def __init__(
        self,
        redis: RedisClient,
        balances: Balances,
        mirror: Mirror,
        windows: Windows,
        pool: Upstreams,
        backlog: Backlog,
        others: Mapping[RuleKind, Reading] | None = None,
    ) -> None:
        self._scripts = Scripts(redis)
        self._balances = balances
        self._mirror = mirror
        self._pool = pool
        self._backlog = backlog
        self._windows = windows
        self._readings: dict[RuleKind, Reading] = {
            "balance_below": self._balance,
            "budget_used": self._budget,
            "rate_limited": self._rate_limited,
            "error_share": self._error_share,
            "cache_hit_drop": self._cache_hit_drop,
            "spend_velocity": self._spend,
            "breaker_open": self._breaker,
            "drift": self._drift,
            "parked_events": self._parked,
            "settlement_lag": self._lag,
            **(others or {}),
        }

    async def read(self, rules: Iterable[AlertRule]) -> Found:
        """All that can be measured now."""
        by_kind: dict[RuleKind, list[AlertRule]] = defaultdict(list)
        for rule in rules:
            by_kind[rule.kind].append(rule)
        found: Found = {}
        for kind, some in by_kind.items():
            if (reading := self._readings.get(kind)) is None:
                continue
            try:
                found |= await reading(some)
            except (Unavailable, StoreUnavailable) as error:
                _log.warning("rules of kind %s are measured later: %s", kind, error)
        return found

    async def _balance(self, rules: Sequence[AlertRule]) -> Found:
        accounts = sorted({rule.account_id for rule in rules})
        available: dict[str, int] = {}
        for some in _chunks(accounts):
            balances = await asyncio.gather(*(self._balances.read(name) for name in some))
            available |= {name: one.available for name, one in zip(some, balances, strict=True) if one is not None}
        return {rule.id: Measured(available[rule.account_id]) for rule in rules if rule.account_id in available}

    async def _budget(self, rules: Sequence[AlertRule]) -> Found:
        owners = sorted({(rule.account_id, rule.member_id, rule.key_id) for rule in rules})
        standing: dict[tuple[str, str, str], ScopeStanding | None] = {}
        for some in _chunks(owners):
            standing |= dict(zip(some, await asyncio.gather(*(self._standing(*one) for one in some)), strict=True))
        found = {}
        for rule in rules:
            if (one := standing[rule.account_id, rule.member_id, rule.key_id]) is not None:
                found[rule.id] = _budgets(one.budgets)
        return found

    async def _standing(self, account_id: str, member_id: str, key_id: str) -> ScopeStanding | None:
        key = self._mirror.get(ApiKey, key_id)
        member_id = key.member_id if key else member_id
        found = await Standings(self._scripts, lambda _: member_id).read(account_id, key_id)
        if found is None:
            return None
        if key_id:
            return found.key
        return found.member if member_id else found.account

    async def _rate_limited(self, rules: Sequence[AlertRule]) -> Found:
        counted = await self._windows.rate_limited(rules)
        return {name: Measured(count) for name, count in counted.items()}

    async def _error_share(self, rules: Sequence[AlertRule]) -> Found:
        return {
            name: Measured(
                conditions.percent(errors, requests) if requests >= conditions.REQUESTS_MIN else 0,
                f"{errors} of {requests} requests failed.",
            )
            for name, (errors, requests) in (await self._windows.errors(rules)).items()
        }

    async def _cache_hit_drop(self, rules: Sequence[AlertRule]) -> Found:
        found = {}
        for name, (now, before) in (await self._windows.caches(rules)).items():
            drop, facts = 0, ""
            if min(now.requests, before.requests) >= conditions.CACHE_REQUESTS_MIN:
                drop = conditions.share_drop(now.read, now.whole, before.read, before.whole)
                shares = (conditions.percent(one.read, one.whole) if one.whole else 0 for one in (now, before))
                facts = "{} % of the input came from caches, {} % at this time of day in the 7 days before.".format(
                    *shares
                )
            found[name] = Measured(drop, facts)
        return found

    async def _spend(self, rules: Sequence[AlertRule]) -> Found:
        return {name: Measured(nanos) for name, nanos in (await self._windows.spent(rules)).items()}

    async def _breaker(self, rules: Sequence[AlertRule]) -> Found:
        shared = await self._pool.read_all()
        seconds, names = 0, []
        for one in shared.credentials:
            breaker = shared.breakers.get(one.name)
            if breaker is None or one.credential.status != "active" or breaker.state(shared.now_ms) == "closed":
                continue
            seconds = max(seconds, (shared.now_ms - breaker.since_ms) // 1000)
            names.append(f"{conditions.plain(one.credential.name)} ({breaker.kind})")
        facts = f"Not usable: {', '.join(names[:10])}." if names else ""
        return _same(rules, Measured(seconds, facts))

    async def _drift(self, rules: Sequence[AlertRule]) -> Found:
        return {name: Measured(count) for name, count in (await self._windows.repairs(rules)).items()}

    async def _parked(self, rules: Sequence[AlertRule]) -> Found:
        return _same(rules, Measured(await self._backlog.parked()))

    async def _lag(self, rules: Sequence[AlertRule]) -> Found:
        return _same(rules, Measured(await self._backlog.lag_s()))


def _same(rules: Sequence[AlertRule], measured: Measured) -> Found:
    return {rule.id: measured for rule in rules}


def _budgets(budgets: Sequence[Budget]) -> Measured:
    """The one that is used most; none: nothing of it is used."""
    used = [(conditions.percent(one.spent_nanos, one.limit_nanos), one) for one in budgets]
    if not used:
        return Measured(0)
    percent, most = max(used, key=lambda one: one[0])
    spent, limit = money.format_usd(most.spent_nanos), money.format_usd(most.limit_nanos)
    return Measured(percent, f"Of the {_PERIODS[most.period]} budget of {limit} USD, {spent} USD are spent.")


def _chunks(items: Sequence[_Item]) -> Iterable[Sequence[_Item]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
