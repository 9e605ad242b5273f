"""Redis and ClickHouse as accounting sees them, in plain Python. The tests beside this file prove them against the real ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.common import clock, money, pricebook
from libs.common.balances import Balance, CreditResult, Settlement, SettleResult
from libs.common.scripts import StoreRefused
from services.accounting.rows import USAGE_COLUMNS, Row


@dataclass
class MemoryAccount:
    """One account hash."""

    fields: dict[str, str] = field(default_factory=dict)
    version: int = 0
    balance: int = 0
    spent: int = 0
    granted: int = 0


class MemoryBalances:
    """What `Balances` does, said a second time."""

    def __init__(self) -> None:
        self.accounts: dict[str, MemoryAccount] = {}
        self.keys: dict[tuple[str, str], MemoryAccount] = {}
        self.settled: dict[tuple[str, str], tuple[int, int]] = {}
        self.credits: set[tuple[str, str]] = set()

    def put_account(self, account_id: str, version: int, fields: dict[str, str]) -> bool:
        """Write an account's fields unless a newer version stands."""
        return _put(self.accounts.setdefault(account_id, MemoryAccount()), version, fields)

    def put_key(self, account_id: str, key_id: str, version: int, status: str) -> bool:
        """Write a key's status unless a newer version stands."""
        return _put(self.keys.setdefault((account_id, key_id), MemoryAccount()), version, {"status": status})

    async def settle(self, settlement: Settlement) -> SettleResult:
        """Take the difference to what a lower version was settled at."""
        account = self.accounts.get(settlement.account_id)
        if account is None:
            return "MISSING"
        name = (settlement.account_id, settlement.request_id)
        version, cost = self.settled.get(name, (0, 0))
        if version >= settlement.version:
            differs = version == settlement.version and cost != settlement.cost_nanos
            return "DIVERGED" if differs else "DUPLICATE"
        account.balance -= settlement.cost_nanos - cost
        account.spent += settlement.cost_nanos - cost
        self.settled[name] = (settlement.version, settlement.cost_nanos)
        return "APPLIED"

    async def settle_all(self, settlements: Sequence[Settlement]) -> list[SettleResult | StoreRefused]:
        """One after another; who is refused, is refused alone."""
        results: list[SettleResult | StoreRefused] = []
        for settlement in settlements:
            try:
                results.append(await self.settle(settlement))
            except StoreRefused as error:
                results.append(error)
        return results

    async def remember(self, settlement: Settlement) -> None:
        """Note what was settled, unless something is noted."""
        name = (settlement.account_id, settlement.request_id)
        self.settled.setdefault(name, (settlement.version, settlement.cost_nanos))

    async def credit(self, account_id: str, credit_id: str, amount_nanos: int) -> CreditResult:
        """Take a credit once."""
        account = self.accounts.get(account_id)
        if account is None:
            return "MISSING"
        if (account_id, credit_id) in self.credits:
            return "DUPLICATE"
        if abs(account.balance + amount_nanos) > money.AMOUNT_NANOS_MAX:
            return "OVER"
        account.balance += amount_nanos
        account.granted += amount_nanos
        self.credits.add((account_id, credit_id))
        return "APPLIED"

    async def read(self, account_id: str) -> Balance | None:
        """The balance of an account."""
        account = self.accounts.get(account_id)
        if account is None:
            return None
        return Balance(account.balance, 0, account.spent, account.granted)


class MemoryMarks:
    """How far the log is settled, by partition: usage, control."""

    def __init__(self) -> None:
        self.marks: dict[int, tuple[int, int]] = {}

    async def mark(self, partition: int, *, usage_sequence: int = 0, control_sequence: int = 0) -> None:
        """As `Gates.mark`."""
        usage, control = self.marks.get(partition, (0, 0))
        self.marks[partition] = (max(usage, usage_sequence), max(control, control_sequence))


class MemoryHours:
    """Which hours rows have come to."""

    def __init__(self) -> None:
        self.hours: set[tuple[str, int]] = set()

    def touched(self, account_id: str, time_ms: int) -> None:
        """As `Rollups.touched`."""
        self.hours.add((account_id, time_ms // 3_600_000))


class MemoryBooks:
    """What `Books` does for accounting: a version that is not known is looked up, and is known from then on."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts
        self.lookups = 0

    async def learn(self, versions: Iterable[str]) -> None:
        """Make known what is published."""
        if not all(map(pricebook.is_known, set(versions))):
            self.lookups += 1
            for version, text in self.texts.items():
                pricebook.register(version, text)


class MemoryLedger:
    """ReplacingMergeTree(version) read through FINAL: the newest version of a request, and of equal ones the last."""

    def __init__(self) -> None:
        self.usage: dict[str, dict[str, Any]] = {}
        self.control: dict[int, Row] = {}
        self.credits: dict[str, Row] = {}
        self.refusals: dict[Row, tuple[int, str]] = {}
        """Sort key → count and member."""
        self._recorded: list[tuple[int, dict[str, Any]]] = []

    async def append_usage(self, rows: Sequence[Row], now_ms: int | None = None) -> None:
        """Append rows of `usage`."""
        for row in rows:
            named = dict(zip(USAGE_COLUMNS, row, strict=True))
            self._recorded.append((now_ms or clock.unix_ms(), named))
            known = self.usage.get(named["request_id"])
            if known is None or named["version"] >= known["version"]:
                self.usage[named["request_id"]] = named

    async def append_control(self, rows: Sequence[Row]) -> None:
        """Append rows of `control`."""
        self.control |= {row[0]: row for row in rows}

    async def append_credits(self, rows: Sequence[Row]) -> None:
        """Append rows of `credits`."""
        self.credits |= {row[0]: row for row in rows}

    async def append_refusals(self, rows: Sequence[Row]) -> None:
        """Append rows of `refusals`; of those of one sort key the one that counts most."""
        for account_id, minute, key_id, member_id, reason, gateway_id, refused in rows:
            name = (account_id, minute, key_id, reason, gateway_id)
            self.refusals[name] = max(self.refusals.get(name, (0, "")), (refused, member_id))

    async def settled_before(
        self, settlements: Sequence[Settlement], recorded_before_ms: int
    ) -> dict[str, tuple[int, int]]:
        """The newest version archived before that time."""
        wanted = {one.request_id for one in settlements}
        found: dict[str, tuple[int, int]] = {}
        for recorded_ms, row in self._recorded:
            if row["request_id"] in wanted and recorded_ms < recorded_before_ms:
                mine = (row["version"], row["total_nanos"])
                found[row["request_id"]] = max(found.get(row["request_id"], mine), mine)
        return found

    def total(self, account_id: str) -> int:
        """Σ of an account's rows."""
        return sum(row["total_nanos"] for row in self.usage.values() if row["account_id"] == account_id)


def _put(entity: MemoryAccount, version: int, fields: dict[str, str]) -> bool:
    if entity.version >= version:
        return False
    entity.version = version
    entity.fields |= fields
    return True
