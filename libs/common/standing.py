"""How a caller stands: what account, member and key have spent, hold and may use, as admission sees it (lua/usage).

Read at one instant and changed by nothing here.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from libs.common import ids, limits, rediskeys
from libs.common.limits import Limits
from libs.common.scripts import Scripts, StoreUnavailable

Period = Literal["day", "week", "month", "total"]
_MEMBER_TRIES: Final = 3


class Budget(msgspec.Struct, frozen=True):
    """A cap on money, and how much of it is used. Nano-dollars."""

    period: Period
    limit_nanos: int
    spent_nanos: int
    """In the period that is now, in the account's time zone. What is held comes on top."""
    reset_s: int
    """Unix second at which the period ends; 0: never."""


class ScopeStanding(msgspec.Struct, frozen=True, kw_only=True):
    """Of an account, a member or a key."""

    status: str
    limits: Limits
    """In force, an account's defaults included."""
    held_nanos: int
    spent_nanos: int
    in_flight: int
    """Requests that have a slot now."""
    budgets: tuple[Budget, ...]
    """Those there are, from the shortest period on."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """granted = available + held + spent, of the account."""

    account: ScopeStanding
    available_nanos: int
    granted_nanos: int
    member_id: str
    """Empty if the key is the account's own."""
    member: ScopeStanding | None
    key: ScopeStanding
    expires_at_ms: int | None
    """Of the key."""
    models: tuple[str, ...]
    """Ids of the price book the key may use; empty: all."""


class Standings:
    """See the module's docstring. `member_of`: the member a key is taken to belong to, which the script checks."""

    def __init__(self, scripts: Scripts, member_of: Callable[[str], str]) -> None:
        self._scripts = scripts
        self._member_of = member_of

    async def read(self, account_id: str, key_id: str) -> Standing | None:
        """None while Redis holds numbers that nobody has checked (gates.py). Raises StoreUnavailable."""
        member_id = self._member_of(key_id)
        for _ in range(_MEMBER_TRIES):
            keys = _keys(account_id, key_id, member_id)
            reply = await self._scripts.call("usage", len(keys), *keys, member_id)
            match reply[0]:
                case b"OK":
                    return _standing(member_id, reply)
                case b"CLOSED":
                    return None
                case _:
                    member_id = reply[1].decode()
        raise StoreUnavailable("the key is being moved from member to member")


def _keys(account_id: str, key_id: str, member_id: str) -> tuple[str, ...]:
    return (
        rediskeys.account(account_id),
        rediskeys.api_key(account_id, key_id),
        rediskeys.member(account_id, member_id),
        *(rediskeys.slots(account_id, owner_id) for owner_id in (account_id, key_id, member_id)),
        rediskeys.gate(ids.partition(account_id)),
    )


def _standing(member_id: str, reply: Sequence[Any]) -> Standing:
    _, expires_at, models, balance, granted, of_account, of_key, of_member = reply
    account = _scope(of_account)
    return Standing(
        account=account,
        available_nanos=int(balance) - account.held_nanos,
        granted_nanos=int(granted),
        member_id=member_id,
        member=_scope(of_member) if of_member else None,
        key=_scope(of_key),
        expires_at_ms=int(expires_at) if expires_at else None,
        models=tuple(filter(None, models.decode().split(","))),
    )


def _scope(reply: Sequence[Any]) -> ScopeStanding:
    status, packed, held, spent, in_flight, *used = reply
    caps = limits.unpacked(packed.decode())
    found: list[tuple[Period, int | None, int, int]] = [
        ("day", caps.budget_day_nanos, int(used[0]), used[1]),
        ("week", caps.budget_week_nanos, int(used[2]), used[3]),
        ("month", caps.budget_month_nanos, int(used[4]), used[5]),
        ("total", caps.budget_total_nanos, int(spent), 0),
    ]
    return ScopeStanding(
        status=status.decode(),
        limits=caps,
        held_nanos=int(held),
        spent_nanos=int(spent),
        in_flight=in_flight,
        budgets=tuple(Budget(period, cap, used, reset_s) for period, cap, used, reset_s in found if cap is not None),
    )
