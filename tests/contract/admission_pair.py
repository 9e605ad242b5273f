"""Admission on a real Redis and in the model, side by side: every operation is done on both, and they answer alike.

The scripts are the real ones, but for the time: `TIME` answers what the test says.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from libs.common import addresses, ids, rediskeys
from libs.common.balances import Balances, Settlement
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity, Member
from libs.common.gates import Gates
from libs.common.leases import Admission, Granted, Lease, Leases
from libs.common.limits import Limits
from libs.common.scripts import Script, Scripts, StoreUnavailable
from libs.common.upstreams import Upstreams
from tests.contract import admission_model as told

START_US: Final = 1_774_728_000_000_000  # 2026-03-28 20:00 UTC: the night before Berlin loses an hour
LEASE_MS: Final = 60_000
OTHER_SERVER: Final = "0" * 40
CLOCK: Final = b"""
local real = redis
local redis = {error_reply = real.error_reply, call = function(name, ...)
  if name ~= 'TIME' then return real.call(name, ...) end
  local now = real.call('GET', string.match(KEYS[1], '^{[^}]+}') .. 'clock')
  return {string.sub(now, 1, -7), string.sub(now, -6)}
end}
"""
HERE, ELSEWHERE = addresses.hex_address("192.0.2.1"), addresses.hex_address("198.51.100.1")
MODELS = ("claude-sonnet-4-6", "claude-opus-4-7")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
LIMITS = (
    Limits(),
    Limits(rpm=2),
    Limits(rpm=7, itpm=100, otpm=50),
    Limits(itpm=1_000_003, otpm=3, in_flight=1, free_rpm=2),
    Limits(in_flight=2, budget_day_nanos=5_000),
    Limits(budget_week_nanos=9_000, budget_month_nanos=12_000, budget_total_nanos=30_000),
    Limits(budget_day_nanos=0),
)


class ClockedScripts(Scripts):
    """The real scripts with a clock that the test sets."""

    def _source(self, script: Script) -> tuple[str, bytes]:
        source = self._sources.get(script)
        if source is None:
            _, text = super()._source(script)
            text = CLOCK + text
            source = self._sources[script] = (hashlib.sha1(text, usedforsecurity=False).hexdigest(), text)
        return source


class Both:
    """Two accounts, each with a member and two keys; six requests of each."""

    def __init__(self, redis: Any) -> None:
        self.redis = redis
        scripts = ClockedScripts(redis)
        self.leases = Leases(redis, scripts, lease_ms=LEASE_MS)
        self.balances = Balances(redis, scripts)
        self.gates = Gates(redis, scripts)
        self.directory = Directory(redis, self.balances, Upstreams(redis, scripts), scripts)
        self.model = told.Model(START_US, LEASE_MS)
        self.version = 0
        self.accounts = [told.Account("account", ids.new_account_id()) for _ in range(2)]
        self.members = [told.Scope("member", ids.new_member_id()) for _ in range(2)]
        self.keys = [[told.Key("key", ids.new_key_id()) for _ in range(2)] for _ in range(2)]
        self.requests: dict[tuple[int, int], tuple[str, list[told.Scope]]] = {}

    async def do(self, operation: tuple[Any, ...]) -> None:
        """One operation on both."""
        name, *arguments = operation
        step: Callable[..., Awaitable[None]] = getattr(self, f"_{name}")
        await step(*arguments)

    async def clear(self) -> None:
        """Leases that nobody would ever settle are not left for a reaper to find."""
        for account in self.accounts:
            index = rediskeys.lease_index(ids.partition(account.id))
            for name in account.index:
                await self.redis.zrem(index, f"{account.id} {name}")

    async def agree(self) -> None:
        """Equal state; and the promises that hold at any moment."""
        found = await self._everything()
        for number, account in enumerate(self.accounts):
            if account.known:
                _same_account(found, account)
            for one in (self.members[number], *self.keys[number]):
                if one.known:
                    _same_scope(found, account, one)
            open_holds = sum(lease.hold for lease in account.leases.values())
            assert account.held == open_holds
            assert account.granted == account.balance + account.spent

    async def _everything(self) -> dict[str, dict[str, Any]]:
        """All there is of both accounts, by the names of the keys, in one round trip: after every step it is asked for."""
        hashes, sets = [], []
        for number, account in enumerate(self.accounts):
            owners = [account, self.members[number], *self.keys[number]]
            hashes += [_name_of(account, owner) for owner in owners] + [rediskeys.leases(account.id)]
            sets += [rediskeys.lease_index(ids.partition(account.id))]
            sets += [rediskeys.slots(account.id, owner.id) for owner in owners]
        reads = self.redis.pipeline(transaction=False)
        for name in hashes:
            reads.hgetall(name)
        for name in sets:
            reads.zrange(name, 0, -1, withscores=True)
        answers = await reads.execute()
        found = {
            name: {field.decode(): text.decode() for field, text in answer.items()}
            for name, answer in zip(hashes, answers[: len(hashes)], strict=True)
        }
        for name, answer in zip(sets, answers[len(hashes) :], strict=True):
            found[name] = {entry.decode(): score for entry, score in answer}
        return found

    # -- control -----------------------------------------------------------------------------------------------------

    async def _account(self, number: int, status: Any, ppm: int, zone: str, limits: Limits) -> None:
        account = self.accounts[number]
        account.status, account.multiplier, account.zone, account.limits = status, ppm, zone, limits
        account.known = True
        entity = Account(
            id=account.id, name="", created_at_ms=1, status=status, multiplier_ppm=ppm, time_zone=zone, limits=limits
        )
        await self._apply(entity)

    async def _member(self, number: int, status: Any, limits: Limits) -> None:
        member = self.members[number]
        member.status, member.limits, member.known = status, limits, True
        account_id = self.accounts[number].id
        await self._apply(
            Member(id=member.id, account_id=account_id, name="", created_at_ms=1, status=status, limits=limits)
        )

    async def _key(self, number: int, which: int, status: Any, of_member: bool, limits: Limits, more: int) -> None:
        key = self.keys[number][which]
        of_member = of_member and self.members[number].known
        key.status, key.limits, key.known = status, limits, True
        key.member = self.members[number] if of_member else None
        key.models = MODELS[:1] if more == 1 else ()
        key.expires_at_ms = START_US // 1000 + 100_000 if more == 2 else None
        key.addresses = ((HERE, HERE),) if more == 3 else ()
        await self._apply(
            ApiKey(
                id=key.id,
                account_id=self.accounts[number].id,
                name="",
                created_at_ms=1,
                sha256=key.id,
                hint="",
                status=status,
                member_id=self.members[number].id if of_member else "",
                limits=limits,
                models=key.models,
                ip_allowlist=("192.0.2.1",) if key.addresses else (),
                expires_at_ms=key.expires_at_ms,
            )
        )

    async def _credit(self, number: int, amount: int) -> None:
        account = self.accounts[number]
        entry = Credit(id=ids.new_credit_id(), account_id=account.id, amount_nanos=amount, reason="", created_at_ms=1)
        await self._apply(entry)
        if account.known:
            account.balance += amount
            account.granted += amount

    async def _apply(self, entity: Entity) -> None:
        self.version += 1
        await self.directory.apply(ControlChanged(entity=entity, actor="", reason="", at_ms=1), self.version)

    async def _restarted(self, operation: tuple[Any, ...]) -> None:
        """Anything may be asked of a server that was not checked yet."""
        partitions = {ids.partition(account.id) for account in self.accounts}
        self.model.closed = partitions
        try:
            for partition in partitions:
                await self.redis.set(rediskeys.gate(partition), OTHER_SERVER)
            await self.do(operation)
        finally:
            self.model.closed = set()
            for partition in partitions:
                run_id = (await self.gates.state(partition)).run_id
                assert await self.gates.open(partition, run_id, opened_for=OTHER_SERVER)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _sleep(self, microseconds: int) -> None:
        self.model.now_us += microseconds
        for account in self.accounts:
            await self.redis.set(f"{{p{ids.partition(account.id):02d}}}clock", str(self.model.now_us))

    async def _admit(
        self, number: int, which: int, request: int, tokens: int, hold: int, model: int, address: str
    ) -> None:
        account, key = self.accounts[number], self.keys[number][which]
        request_id, scopes = self.requests.get((number, request), ("", []))
        if not request_id:
            request_id = f"req_{self.model.now_us // 1000:012x}{ids.uuid7_hex()[12:]}"
            scopes = [account, *([key.member] if key.member else []), key]
        elif key is not scopes[-1] or key.member not in (None, *scopes) or (key.member is None and len(scopes) == 3):
            return  # a request has one key, and its key is not moved while it is under way
        asked = Admission(
            request_id=request_id,
            account_id=account.id,
            key_id=key.id,
            address=address,
            models=MODELS[: model + 1] if model < 2 else (),
            input_tokens=tokens,
            hold_nanos=hold,
            memo=b'{"a": 1}',
        )
        expected = self.model.admit(account, key, asked) if account.known or not key.known else None
        if not account.known and key.known:
            return  # a key of no account is none of ours
        before = await self._everything()
        try:
            decision: Any = await self.leases.admit(asked)
        except StoreUnavailable:
            decision = None
        assert decision == expected
        if isinstance(expected, Granted):
            self.requests[number, request] = (request_id, scopes)
            assert (
                account.balance >= account.held or account.leases[request_id].state == "f" or replayed(before, account)
            )
        else:
            assert await self._everything() == before

    async def _check(self, number: int, which: int, model: int, address: str) -> None:
        account, key = self.accounts[number], self.keys[number][which]
        if key.known and not account.known:
            return
        models = MODELS[: model + 1] if model < 2 else ()
        expected = self.model.check(account, key, address, models)
        assert await self.leases.check(account.id, key.id, address=address, models=models) == expected

    async def _renew(self, number: int, request: int, tokens: int | None, in_flight: bool) -> None:
        if known := self.requests.get((number, request)):
            expected = self.model.renew(self.accounts[number], known[0], input_tokens=tokens, in_flight=in_flight)
            answer = await self.leases.renew(self._lease(number, request), input_tokens=tokens, in_flight=in_flight)
            assert answer == (b"OK" if expected else b"LOST")

    async def _finish(self, number: int, request: int, tokens: tuple[int, int], cost: int | None) -> None:
        if known := self.requests.get((number, request)):
            expected = self.model.finish(self.accounts[number], known[0], tokens, cost)
            answer = await self.leases.finish(
                self._lease(number, request), input_tokens=tokens[0], output_tokens=tokens[1], cost_nanos=cost
            )
            assert answer == (b"OK" if expected else b"LOST")

    async def _void(self, number: int, request: int) -> None:
        if known := self.requests.get((number, request)):
            expected = self.model.void(self.accounts[number], known[0])
            assert await self.leases.void(self._lease(number, request)) == (b"OK" if expected else b"LOST")

    async def _reap(self, number: int) -> None:
        account = self.accounts[number]
        others = [one for one in self.accounts if ids.partition(one.id) == ids.partition(account.id)]
        expected = {(one.id, name) for one in others for name in self.model.reap(one, 1_000_000)}
        taken = await self.leases.reap(ids.partition(account.id), grace_ms=1_000, count=10_000)
        ours = {one.id: one for one in others}
        mine = [one for one in taken if one.account_id in ours]
        assert {(one.account_id, one.request_id) for one in mine} == expected
        for one in mine:
            kept = ours[one.account_id].leases[one.request_id]
            assert (one.memo, one.hold_nanos, one.key_id) == (b'{"a": 1}', kept.hold, kept.key)
            assert (one.member_id or "-", one.multiplier_ppm) == (kept.member, kept.multiplier)

    async def _settle(self, number: int, request: int, version: int, cost: int) -> None:
        if known := self.requests.get((number, request)):
            account = self.accounts[number]
            expected = self.model.settle(account, known[1], known[0], version, cost)
            member = known[1][1].id if len(known[1]) == 3 else ""
            settlement = Settlement(account.id, known[0], version, cost, known[1][-1].id, member)
            assert await self.balances.settle(settlement) == expected

    def _lease(self, number: int, request: int) -> Lease:
        request_id, scopes = self.requests[number, request]
        member = scopes[1].id if len(scopes) == 3 else ""
        return Lease(self.accounts[number].id, scopes[-1].id, member, request_id)


def _name_of(account: told.Account, one: told.Scope) -> str:
    """The key of a hash."""
    match one.name:
        case "account":
            return rediskeys.account(account.id)
        case "key":
            return rediskeys.api_key(account.id, one.id)
    return rediskeys.member(account.id, one.id)


def _same_account(found: dict[str, dict[str, Any]], account: told.Account) -> None:
    _same_scope(found, account, account)
    fields = found[rediskeys.account(account.id)]
    assert (int(fields["balance"]), int(fields["granted"])) == (account.balance, account.granted)
    leases = found[rediskeys.leases(account.id)]
    expected = {name: one.text() for name, one in account.leases.items()}
    assert {name: text for name, text in leases.items() if ":" not in name} == expected
    memos = {f"{name}:memo" for name, one in account.leases.items() if one.state != "v"}
    assert {name for name in leases if ":" in name} == memos
    index = found[rediskeys.lease_index(ids.partition(account.id))]
    mine = {entry.split(" ")[1]: int(ends) for entry, ends in index.items() if entry.startswith(account.id)}
    assert mine == account.index


def _same_scope(found: dict[str, dict[str, Any]], account: told.Account, one: told.Scope) -> None:
    fields = found[_name_of(account, one)]
    assert (int(fields.get("held", 0)), int(fields.get("spent", 0))) == (one.held, one.spent), one.name
    assert [int(text) for text in fields.get("buckets", "0 0 0 0").split()] == one.full, one.name
    used = [int(text) for text in fields.get("used", "0 0 0 0 0 0").split()]
    assert used == [number for pair in one.used for number in pair], one.name
    slots = found[rediskeys.slots(account.id, one.id)]
    assert {slot: int(ends) for slot, ends in slots.items()} == one.slots, one.name


def replayed(before: dict[str, dict[str, Any]], account: told.Account) -> bool:
    """A replay takes nothing, and since the first time the balance may have fallen."""
    return bool(before) and account.balance < account.held
