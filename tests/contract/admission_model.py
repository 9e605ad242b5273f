"""Admission said a second time, in plain Python: what the scripts decide and what they leave behind, at any moment.

Written from ADR 10 and the docstrings, not from the scripts: periods come from `zoneinfo`, buckets from whole-number arithmetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from libs.common import ids
from libs.common.leases import Admission, Checked, Figures, Granted, Lease, Refused, Window
from libs.common.limits import ACCOUNT_DEFAULTS, Limits

MINUTE_US: Final = 60_000_000
RATES: Final = ("rpm", "itpm", "otpm", "free_rpm")
PERIODS: Final = ("day", "week", "month", "total")
EPOCH: Final = date(1970, 1, 1)


@dataclass
class Scope:
    """An account, a member or a key."""

    name: Any
    id: str
    status: str = "active"
    limits: Limits = field(default_factory=Limits)
    held: int = 0
    spent: int = 0
    used: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0], [0, 0]])
    full: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    slots: dict[str, int] = field(default_factory=dict)
    known: bool = False

    def cap(self, number: int) -> int | None:
        """A minute's worth of requests, input, output, free requests."""
        own: int | None = getattr(self.limits, RATES[number])
        return getattr(ACCOUNT_DEFAULTS, RATES[number]) if own is None and self.name == "account" else own

    @property
    def in_flight_max(self) -> int | None:
        own = self.limits.in_flight
        return ACCOUNT_DEFAULTS.in_flight if own is None and self.name == "account" else own

    def wait_us(self, number: int, amount: int, now: int) -> int:
        """Until `amount` may be taken; 0 or less: now."""
        cap = self.cap(number)
        if cap is None:
            return 0
        return max(self.full[number], now) + _time_for(min(amount, cap), cap) - now - MINUTE_US

    def move(self, number: int, amount: int, now: int) -> None:
        cap = self.cap(number)
        if cap is None or amount == 0:
            return
        if amount > 0:
            self.full[number] = max(self.full[number], now) + _time_for(amount, cap)
        else:
            self.full[number] = max(self.full[number] - -amount * MINUTE_US // cap, 0)

    def left(self, number: int, now: int) -> int:
        cap = self.cap(number)
        assert cap is not None
        return min(cap, max(0, (MINUTE_US - (self.full[number] - now)) * cap // MINUTE_US))

    def budget(self, period: str) -> int | None:
        return getattr(self.limits, f"budget_{period}_nanos")  # type: ignore[no-any-return]


@dataclass
class Key(Scope):
    """A key, with what it alone has."""

    member: Scope | None = None
    models: tuple[str, ...] = ()
    expires_at_ms: int | None = None
    addresses: tuple[tuple[str, str], ...] = ()


@dataclass
class Held:
    """A lease."""

    state: str
    hold: int
    multiplier: int
    input: int
    member: str
    key: str
    scopes: list[Scope]

    def text(self) -> str:
        """As Redis keeps it."""
        return " ".join(
            str(part) for part in (self.state, self.hold, self.multiplier, self.input, self.member, self.key)
        ).strip()


@dataclass
class Account(Scope):
    """An account and everything of it."""

    multiplier: int = 1_000_000
    zone: str = "UTC"
    balance: int = 0
    granted: int = 0
    leases: dict[str, Held] = field(default_factory=dict)
    index: dict[str, int] = field(default_factory=dict)
    settled: dict[str, tuple[int, int]] = field(default_factory=dict)
    credits: set[str] = field(default_factory=set)


class Model:
    """Everything at one moment; `now_us` is moved by the test."""

    def __init__(self, now_us: int, lease_ms: int) -> None:
        self.now_us = now_us
        self.lease_us = lease_ms * 1000
        self.closed: set[int] = set()
        """Partitions."""

    def admit(self, account: Account, key: Key, asked: Admission) -> Granted | Refused | None:
        """None: it was given up before."""
        if ids.partition(account.id) in self.closed:
            return Refused(reason="closed", scope="account", value=int(asked.request_id in account.leases))
        if refused := self._caller(account, key, asked.address, asked.models):
            return refused
        scopes = [account, *([key.member] if key.member else []), key]
        lease = Lease(account.id, key.id, key.member.id if key.member else "", asked.request_id)
        kept = account.leases.get(asked.request_id)
        if kept is not None and kept.state == "v":
            return None
        hold = -(-asked.hold_nanos * account.multiplier // 10**6)
        if kept is None:
            if refused := self._no(account, scopes, asked, hold):
                return refused
            self._take(account, scopes, lease, asked, hold)
        return Granted(
            lease=lease,
            multiplier_ppm=account.multiplier,
            on_disconnect="drain",
            hold_nanos=account.leases[asked.request_id].hold,
            figures=self._figures(scopes),
        )

    def check(self, account: Account, key: Key, address: str, models: tuple[str, ...]) -> Checked | Refused:
        if refused := self._caller(account, key, address, models, figures=False):
            return refused
        scopes = [account, *([key.member] if key.member else []), key]
        waits = [(one.wait_us(3, 1, self.now_us), -place, one) for place, one in enumerate(scopes) if one.cap(3)]
        wait, _, slowest = max(waits, key=lambda found: found[:2], default=(0, 0, account))
        if wait > 0:
            return Refused(
                reason="free", scope=slowest.name, limit=slowest.cap(3) or 0, value=slowest.left(3, self.now_us),
                needed=1, wait_ms=-(-wait // 1000), reset_s=-(-slowest.full[3] // 10**6),
                figures=Figures(self._window(scopes, 3), None, None),
            )  # fmt: skip
        for one in scopes:
            one.move(3, 1, self.now_us)
        return Checked(frozenset(key.models), Figures(self._window(scopes, 3), None, None))

    def renew(self, account: Account, request_id: str, *, input_tokens: int | None, in_flight: bool) -> bool:
        kept = account.leases.get(request_id)
        if kept is None or kept.state != "o":
            return False
        if input_tokens is not None:
            for one in kept.scopes:
                one.move(1, input_tokens - kept.input, self.now_us)
            kept.input = input_tokens
        account.index[request_id] = self.now_us + self.lease_us
        for one in kept.scopes:
            if in_flight:
                one.slots[request_id] = self.now_us + self.lease_us
            else:
                one.slots.pop(request_id, None)
        return True

    def finish(self, account: Account, request_id: str, used: tuple[int, int], cost: int | None) -> bool:
        kept = account.leases.get(request_id)
        if kept is None or kept.state != "o":
            return False
        change = 0 if cost is None else cost - kept.hold
        for one in kept.scopes:
            one.move(1, used[0] - kept.input, self.now_us)
            one.move(2, used[1], self.now_us)
            one.held += change
            one.slots.pop(request_id, None)
        kept.state, kept.hold, kept.input = "f", kept.hold + change, used[0]
        account.index[request_id] = self.now_us + self.lease_us
        return True

    def void(self, account: Account, request_id: str) -> bool:
        kept = account.leases.get(request_id)
        was_open = kept is not None and kept.state == "o"
        if kept is not None and not was_open:
            return False
        if kept is not None:
            for one in kept.scopes:
                one.move(0, -1, self.now_us)
                one.move(1, -kept.input, self.now_us)
                one.held -= kept.hold
                one.slots.pop(request_id, None)
        account.leases[request_id] = Held("v", 0, 0, 0, "-", "", [])
        account.index[request_id] = self.now_us + self.lease_us
        return was_open

    def reap(self, account: Account, grace_us: int) -> set[str]:
        """Whose leases are taken."""
        found = {name for name, ends in account.index.items() if ends <= self.now_us - grace_us}
        for name in found:
            account.index[name] = self.now_us + 30_000_000
        stale = {name for name in found if name not in account.leases or account.leases[name].state == "v"}
        for name in stale:
            del account.index[name]
            account.leases.pop(name, None)
        return found - stale

    def settle(self, account: Account, scopes: list[Scope], request_id: str, version: int, cost: int) -> str:
        if not account.known:
            return "MISSING"
        if (kept := account.leases.pop(request_id, None)) is not None:
            account.index.pop(request_id, None)
            for one in scopes:
                one.held -= kept.hold
                one.slots.pop(request_id, None)
        before, paid = account.settled.get(request_id, (0, 0))
        if before >= version:
            return "DIVERGED" if before == version and paid != cost else "DUPLICATE"
        account.settled[request_id] = (version, cost)
        change = cost - paid
        account.balance -= change
        second = int(request_id[4:16], 16) // 1000
        if change:
            then, today = self._periods(account.zone, second), self._periods(account.zone, self.now_us // 10**6)
            for one in scopes:
                one.spent += change
                for kind in range(3):
                    if then[kind] > one.used[kind][0]:
                        one.used[kind] = [then[kind], change]
                    elif then[kind] == one.used[kind][0] or one.used[kind][0] > today[kind]:
                        one.used[kind][1] += change
        return "APPLIED"

    # -- within ------------------------------------------------------------------------------------------------------

    def _caller(
        self, account: Account, key: Key, address: str, models: tuple[str, ...], *, figures: bool = True
    ) -> Refused | None:
        if not key.known or key.status != "active":
            return Refused(reason="key", scope="key", detail=key.status if key.known else "unknown")
        if key.expires_at_ms is not None and key.expires_at_ms * 1000 <= self.now_us:
            return Refused(reason="expired", scope="key", detail=str(key.expires_at_ms))
        if key.member is not None and key.member.status != "active":
            return Refused(reason="member", scope="member", detail=key.member.status)
        if account.status != "active":
            return Refused(reason="account", scope="account", detail=account.status)
        if key.addresses and not any(low <= address <= high for low, high in key.addresses):
            return Refused(reason="address", scope="key", detail=address)
        wrong = next((model for model in models if key.models and model not in key.models), None)
        if wrong is None:
            return None
        scopes = [account, *([key.member] if key.member else []), key]
        return Refused(
            reason="model",
            scope="key",
            detail=wrong,
            multiplier_ppm=account.multiplier if figures else 0,
            figures=self._figures(scopes) if figures else None,
        )

    def _no(self, account: Account, scopes: list[Any], asked: Admission, hold: int) -> Refused | None:
        known: dict[str, Any] = {"multiplier_ppm": account.multiplier, "figures": self._figures(scopes)}
        budgets = list(self._budgets(account, scopes, hold, known))
        if gone := next((one for one in budgets if one.reason == "budget"), None):
            return gone
        money: dict[str, Any] = {
            "scope": "account",
            "limit": account.balance - account.held,
            "value": account.held,
            "needed": hold,
        }
        if account.balance < hold:
            return Refused(reason="balance", **money, **known)
        if slow := self._slowest(scopes, asked, known):
            return slow
        for one in scopes:
            open_slots = sum(ends > self.now_us for ends in one.slots.values())
            if one.in_flight_max is not None and open_slots >= one.in_flight_max:
                cap = one.in_flight_max
                return Refused(reason="in_flight", scope=one.name, limit=cap, value=open_slots, needed=1, **known)
        if budgets:
            return budgets[0]
        if account.balance - account.held < hold:
            return Refused(reason="balance_held", **money, **known)
        return None

    def _budgets(self, account: Account, scopes: list[Any], hold: int, known: dict[str, Any]) -> Iterator[Refused]:
        """Those that are spent, and those that would do if others did not hold a part of them."""
        for one in scopes:
            for kind, period in enumerate(PERIODS):
                budget = one.budget(period)
                if budget is None:
                    continue
                spent, reset = self._spent(account, one, kind)
                told: dict[str, Any] = {
                    "scope": one.name,
                    "detail": period,
                    "limit": budget,
                    "value": spent,
                    "needed": hold,
                }
                if spent + hold > budget:
                    yield Refused(reason="budget", reset_s=reset, **told, **known)
                elif spent + one.held + hold > budget:
                    yield Refused(reason="budget_held", reset_s=reset, **told, **known)

    def _slowest(self, scopes: list[Any], asked: Admission, known: dict[str, Any]) -> Refused | None:
        worst: Refused | None = None
        worst_us = 0
        for one in scopes:
            needs: list[tuple[Any, int]] = [("requests", 1), ("input", asked.input_tokens), ("output", 1)]
            for number, (reason, amount) in enumerate(needs):
                wait = one.wait_us(number, amount, self.now_us)
                if wait > worst_us:
                    worst_us = wait
                    worst = Refused(
                        reason=reason, scope=one.name, limit=one.cap(number), value=one.left(number, self.now_us),
                        needed=amount, wait_ms=-(-wait // 1000), reset_s=-(-one.full[number] // 10**6), **known,
                    )  # fmt: skip
        return worst

    def _take(self, account: Account, scopes: list[Any], lease: Lease, asked: Admission, hold: int) -> None:
        ends = self.now_us + self.lease_us
        for one in scopes:
            one.move(0, 1, self.now_us)
            one.move(1, asked.input_tokens, self.now_us)
            one.held += hold
            one.slots[lease.request_id] = ends
        account.leases[lease.request_id] = Held(
            "o", hold, account.multiplier, asked.input_tokens, lease.member_id or "-", lease.key_id, list(scopes)
        )
        account.index[lease.request_id] = ends

    def _spent(self, account: Account, one: Scope, kind: int) -> tuple[int, int]:
        """In the period that is now, and the second at which it ends."""
        if kind == 3:
            return one.spent, 0
        index, spent = one.used[kind]
        today = self._periods(account.zone, self.now_us // 10**6)[kind]
        return (spent if index >= today else 0), _end(account.zone, kind, max(index, today))

    def _periods(self, zone: str, second: int) -> tuple[int, int, int]:
        local = datetime.fromtimestamp(second, ZoneInfo(zone)).date()
        monday = local - timedelta(days=local.weekday())
        return (local - EPOCH).days, (monday - EPOCH).days // 7 + 1, local.year * 12 + local.month - 1

    def _figures(self, scopes: list[Any]) -> Figures:
        return Figures(*(self._window(scopes, number) for number in range(3)))

    def _window(self, scopes: list[Any], number: int) -> Window | None:
        found = [
            Window(one.cap(number), one.left(number, self.now_us), -(-max(one.full[number], self.now_us) // 10**6))
            for one in scopes
            if one.cap(number) is not None
        ]
        return min(found, key=lambda window: window.remaining, default=None)


def _time_for(amount: int, cap: int) -> int:
    return -(-amount * MINUTE_US // cap)


def _end(zone: str, kind: int, index: int) -> int:
    if kind == 0:
        after = EPOCH + timedelta(days=index + 1)
    elif kind == 1:
        after = EPOCH + timedelta(days=index * 7 + 4)
    else:
        after = date((index + 1) // 12, (index + 1) % 12 + 1, 1)
    midnight = datetime(after.year, after.month, after.day, tzinfo=ZoneInfo(zone))
    return int(midnight.astimezone(UTC).timestamp())
