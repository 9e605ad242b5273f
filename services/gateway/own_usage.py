"""`GET /v1/usage`: what a caller may know of its own key, member and account, as JSON. Pure."""

from typing import Any, Final

import msgspec

from libs.common import clock, money
from libs.common.standing import Budget, ScopeStanding, Standing

_RATES: Final = ("rpm", "itpm", "otpm", "free_rpm", "in_flight")
_encode: Final = msgspec.json.Encoder().encode


def body(account_id: str, key_id: str, standing: Standing) -> bytes:
    """Money as decimal strings of USD, times as RFC 3339 in UTC; null where there is no limit, end or member."""
    account = {
        "id": account_id,
        "available_usd": money.format_usd(standing.available_nanos),
        "granted_usd": money.format_usd(standing.granted_nanos),
        **_scope(standing.account),
    }
    member = None
    if standing.member is not None:
        member = {"id": standing.member_id, **_scope(standing.member)}
    key = {
        "id": key_id,
        **_scope(standing.key),
        "models": list(standing.models) or None,
        "expires_at": None if standing.expires_at_ms is None else clock.iso_utc(standing.expires_at_ms),
    }
    return _encode({"account": account, "member": member, "key": key})


def _scope(one: ScopeStanding) -> dict[str, Any]:
    return {
        "status": one.status,
        "held_usd": money.format_usd(one.held_nanos),
        "spent_usd": money.format_usd(one.spent_nanos),
        "in_flight": one.in_flight,
        "limits": {name: getattr(one.limits, name) for name in _RATES},
        "budgets": [_budget(budget) for budget in one.budgets],
    }


def _budget(one: Budget) -> dict[str, Any]:
    return {
        "period": one.period,
        "limit_usd": money.format_usd(one.limit_nanos),
        "spent_usd": money.format_usd(one.spent_nanos),
        "resets_at": clock.iso_utc(one.reset_s * 1000) if one.reset_s else None,
    }
