"""The scripts on a real Redis and their second telling in Python: the same answers, the same balances, for any calls."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common import clock, ids, money, redisclient, rediskeys
from libs.common.balances import Balance, Balances, Settlement
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity
from libs.common.scripts import StoreRefused
from libs.common.upstreams import Upstreams
from tests.contract.fakes import MemoryBalances
from tests.unit.accounting.samples import request_id_at

MAX: Final = money.AMOUNT_NANOS_MAX
amounts = st.sampled_from([1, 7, 10**9, -(10**9), MAX, -MAX, MAX - 1]) | st.integers(-(10**12), 10**12)
costs = st.sampled_from([0, 0, 1, 10**15 - 1, 10**15 - 1]) | st.integers(0, 10**10)
two = st.integers(0, 1)
versions = st.sampled_from([1, 2, 3, 4, 10, 99, 255])
operations = st.one_of(
    st.tuples(st.just("account"), two, st.integers(1, 6), st.sampled_from(["active", "disabled"]), st.integers(0, 9)),
    st.tuples(st.just("key"), two, st.integers(1, 6), st.sampled_from(["active", "disabled", "deleted"])),
    st.tuples(st.just("credit"), two, st.integers(0, 3), amounts),
    st.tuples(st.just("settle"), two, two, versions, costs),
    st.tuples(st.just("settle"), st.just(0), st.just(0), versions, costs),
    st.tuples(st.just("remember"), two, two, versions, costs),
    st.tuples(st.just("forget scripts")),
)


class Both:
    """Real and told, side by side, with names of their own."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self.real = Balances(redis)
        self._directory = Directory(redis, self.real, Upstreams(redis))
        self.told = MemoryBalances()
        self.accounts = [ids.new_account_id() for _ in range(2)]
        self._keys = [ids.new_key_id() for _ in range(2)]
        self._requests = [[ids.new_request_id() for _ in range(2)] for _ in range(2)]
        self._credits = [ids.new_credit_id() for _ in range(4)]

    async def do(self, operation: tuple[Any, ...]) -> None:
        """One operation on both; they answer alike."""
        match operation:
            case ("account", number, version, status, multiplier):
                await self._account(self.accounts[number], version, status, multiplier)
            case ("key", number, version, status):
                await self._key(number, version, status)
            case ("credit", number, entry, amount):
                asked = (self.accounts[number], self._credits[entry], amount)
                assert await self.real.credit(*asked) == await self.told.credit(*asked)
            case ("settle", number, request, version, cost):
                settlement = Settlement(self.accounts[number], self._requests[number][request], version, cost)
                assert await self.real.settle(settlement) == await self.told.settle(settlement)
            case ("remember", number, request, version, cost):
                settlement = Settlement(self.accounts[number], self._requests[number][request], version, cost)
                await self.real.remember(settlement)
                await self.told.remember(settlement)
            case _:
                await self._redis.script_flush()

    async def agree(self) -> None:
        """Balances are equal, and add up."""
        for account_id in self.accounts:
            balance = await self.real.read(account_id)
            assert balance == await self.told.read(account_id)
            if balance is not None:
                assert balance.granted == balance.available + balance.held + balance.spent

    async def _account(self, account_id: str, version: int, status: Any, multiplier: int) -> None:
        entity = Account(id=account_id, name="", created_at_ms=1, status=status, multiplier_ppm=multiplier)
        fields = {"status": status, "multiplier_ppm": str(multiplier), "on_disconnect": "drain"}
        applied = self.told.put_account(account_id, version, fields)
        assert await self._apply(entity, version) == ("APPLIED" if applied else "DUPLICATE")

    async def _key(self, number: int, version: int, status: Any) -> None:
        account_id, key_id = self.accounts[number], self._keys[number]
        entity = ApiKey(
            id=key_id, account_id=account_id, name="", created_at_ms=1, sha256=key_id, hint="", status=status
        )
        applied = self.told.put_key(account_id, key_id, version, status)
        assert await self._apply(entity, version) == ("APPLIED" if applied else "DUPLICATE")
        assert await self._directory.find_key(entity.sha256) == (account_id, key_id)

    async def _apply(self, entity: Entity, version: int) -> str:
        return await self._directory.apply(ControlChanged(entity=entity, actor="", reason="", at_ms=1), version)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.lists(operations, min_size=10, max_size=50))
def test_any_calls_have_the_same_outcome(redis_url: str, known: bool, drawn: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
        both = Both(redis)
        if known:
            await both.do(("account", 0, 1, "active", 1))
            await both.do(("key", 0, 1, "active"))
        for operation in drawn:
            await both.do(operation)
            await both.agree()
        await redis.aclose()

    asyncio.run(run())


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Any]:
    client = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    yield client
    await client.aclose()


@contextlib.asynccontextmanager
async def funded(redis: Any, amount: int = 10**9) -> AsyncIterator[tuple[Balances, str]]:
    balances, account_id = Balances(redis), ids.new_account_id()
    account = Account(id=account_id, name="", created_at_ms=1)
    event = ControlChanged(entity=account, actor="", reason="", at_ms=1)
    await Directory(redis, balances, Upstreams(redis)).apply(event, 1)
    assert await balances.credit(account_id, ids.new_credit_id(), amount) == "APPLIED"
    yield balances, account_id


@pytest.mark.anyio
async def test_many_at_once_settle_each_event_once(redis: Any) -> None:
    """Eight workers bring the same thousand events in orders of their own; scripts get lost in between."""
    async with funded(redis) as (balances, account_id):
        events = [Settlement(account_id, ids.new_request_id(), 1 + n % 3, n) for n in range(1000)]
        workers = [Balances(redis) for _ in range(8)]
        await redis.script_flush()
        results = await asyncio.gather(
            *(
                worker.settle(event)
                for number, worker in enumerate(workers)
                for event in itertools.chain(events[number * 100 :], events[: number * 100])
            )
        )
        assert results.count("APPLIED") == 1000
        assert results.count("DUPLICATE") == 7000
        spent = sum(range(1000))
        assert await balances.read(account_id) == Balance(10**9 - spent, 0, spent, 10**9)


@pytest.mark.anyio
async def test_versions_of_one_request_at_once_end_at_the_highest(redis: Any) -> None:
    async with funded(redis) as (balances, account_id):
        request_id = ids.new_request_id()
        versions = [Settlement(account_id, request_id, version, version * 100) for version in range(1, 40)]
        workers = [Balances(redis) for _ in range(len(versions))]
        await asyncio.gather(*(worker.settle(one) for worker, one in zip(workers, versions, strict=True)))
        balance = await balances.read(account_id)
        assert balance is not None and balance.spent == 3900


class Twins:
    """Two accounts with equal histories, until each settles the same events in a way of its own.

    In partitions of their own: what is remembered goes by the ids of requests, and these are the same.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._balances = Balances(redis)
        by_partition = {ids.partition(one): one for one in (ids.new_account_id() for _ in range(20))}
        owners = (ids.new_key_id(), ids.new_key_id(), ids.new_member_id())
        self._names = [(one, *owners) for one in list(by_partition.values())[:2]]
        day_ms = 24 * 3_600_000
        self._requests = [request_id_at(clock.unix_ms() + (number % 4 - 2) * day_ms) for number in range(16)]

    async def prepare(self, zone: str, leased: list[int]) -> None:
        """Both have the same leases."""
        for account_id, *owners in self._names:
            await self._redis.hset(rediskeys.account(account_id), mapping={"balance": "5", "zone": zone})
            for number in leased:
                request = self._requests[number]
                lease = {request: f"f {10**15 - 1 - number} 1000000 5 - key_1", f"{request}:memo": "{}"}
                await self._redis.hset(rediskeys.leases(account_id), mapping=lease)
                await self._redis.zadd(self._index(account_id), {f"{account_id} {request}": 10**15})
                for owner in (account_id, *owners):
                    await self._redis.zadd(rediskeys.slots(account_id, owner), {request: 10**15})

    def events(self, number: int, drawn: list[tuple[int, int, int, int, bool]]) -> list[Settlement]:
        """The same ones, for one of the two."""
        account_id, *keys, member_id = self._names[number]
        return [
            Settlement(
                account_id, self._requests[request], version, cost, ["", *keys][key], member_id if by_member else ""
            )
            for request, version, cost, key, by_member in drawn
        ]

    async def look(self, number: int) -> dict[str, Any]:
        """All that Redis knows of one of the two; a number that is 0 may as well be missing."""
        account_id, *owners = self._names[number]
        hashes = [rediskeys.account(account_id), rediskeys.leases(account_id)]
        hashes += [rediskeys.api_key(account_id, owner) for owner in owners[:2]]
        hashes += [rediskeys.member(account_id, owners[2])]
        found: dict[str, Any] = {}
        for at, name in enumerate(hashes):
            fields = await self._redis.hgetall(name)
            found[str(at)] = {field: value for field, value in fields.items() if value != b"0"}
        slots = [rediskeys.slots(account_id, owner) for owner in (account_id, *owners)]
        found["slots"] = [await self._redis.zrange(name, 0, -1) for name in slots]
        entries = await self._redis.zrange(self._index(account_id), 0, -1)
        found["index"] = sorted(one.split()[1] for one in entries if one.startswith(account_id.encode()))
        for request in self._requests:
            settled = rediskeys.settled(account_id, request)
            remembered = await self._redis.hget(settled, request)
            found[request] = remembered, remembered is None or await self._redis.ttl(settled) > 0
        return found

    def _index(self, account_id: str) -> str:
        return rediskeys.lease_index(ids.partition(account_id))


settled_at_once = st.lists(
    st.tuples(st.integers(0, 15), versions, costs, st.integers(0, 2), st.booleans()), min_size=1, max_size=70
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(settled_at_once, min_size=1, max_size=3),
    st.lists(st.integers(0, 15), unique=True),
    st.sampled_from(["", "0000000000+00000", "0000000000-36000"]),
)
def test_settled_together_is_settled_one_after_another(
    redis_url: str, batches: list[list[tuple[int, int, int, int, bool]]], leased: list[int], zone: str
) -> None:
    """In balances, spent by period, holds, leases, slots, what is remembered, and in the answers."""

    async def run() -> None:
        redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
        balances, twins = Balances(redis), Twins(redis)
        await twins.prepare(zone, leased)
        for drawn in batches:
            together = await balances.settle_all(twins.events(0, drawn))
            assert together == [await balances.settle(one) for one in twins.events(1, drawn)]
            assert await twins.look(0) == await twins.look(1)
        await redis.aclose()

    asyncio.run(run())


@pytest.mark.anyio
async def test_who_is_refused_among_others_is_refused_alone(redis: Any) -> None:
    """By his own figures, or because something of his is of another kind."""
    async with funded(redis) as (balances, account_id):
        events = [Settlement(account_id, ids.new_request_id(), 3, 5, f"key_{number}") for number in range(3)]
        await redis.set(rediskeys.api_key(account_id, "key_1"), "not a hash")
        events += [Settlement(account_id, ids.new_request_id(), 1000, 5)]
        results = await balances.settle_all(events)
        assert results[0] == results[2] == "APPLIED"
        assert "WRONGTYPE" in str(results[1]) and "version out of range" in str(results[3])
        assert await balances.read(account_id) == Balance(10**9 - 10, 0, 10, 10**9)


@pytest.mark.anyio
@pytest.mark.parametrize("field", ["held", "spent"])
async def test_an_amount_that_is_none_is_refused_before_anything_is_changed(redis: Any, field: str) -> None:
    """Else each new try would debit the account again, and with it all who travel together."""
    async with funded(redis) as (balances, account_id):
        good, bad = (Settlement(account_id, ids.new_request_id(), 3, 5, f"key_{number}") for number in range(2))
        await redis.hset(rediskeys.api_key(account_id, "key_1"), field, "1.5")
        for again in ("APPLIED", "DUPLICATE"):
            results = await balances.settle_all([good, bad])
            assert results[0] == again
            assert "no whole number" in str(results[1])
            assert await balances.read(account_id) == Balance(10**9 - 5, 0, 5, 10**9)


@pytest.mark.anyio
async def test_a_settled_event_is_remembered_for_three_days_from_its_last_coming(redis: Any) -> None:
    async with funded(redis) as (balances, account_id):
        event = Settlement(account_id, ids.new_request_id(), 3, 5)
        name = rediskeys.settled(account_id, event.request_id)
        await balances.settle(event)
        for come_again in (balances.settle, balances.remember):
            await redis.expire(name, 60)
            await come_again(event)
            assert await redis.ttl(name) > rediskeys.SETTLED_KEPT_S - 60


@pytest.mark.anyio
@pytest.mark.parametrize(("version", "cost"), [(1000, 1), (-1, 1), (1, -1), (1, 10**15)])
async def test_what_a_script_cannot_hold_is_refused_and_changes_nothing(redis: Any, version: int, cost: int) -> None:
    async with funded(redis) as (balances, account_id):
        good = Settlement(account_id, ids.new_request_id(), 3, 5)
        bad = Settlement(account_id, ids.new_request_id(), version, cost)
        results = await asyncio.gather(balances.settle(bad), balances.settle(good), return_exceptions=True)
        assert isinstance(results[0], StoreRefused)
        assert results[1] == "APPLIED"
        assert await balances.read(account_id) == Balance(10**9 - 5, 0, 5, 10**9)


@pytest.mark.anyio
async def test_a_key_of_another_kind_is_an_error_of_its_own(redis: Any) -> None:
    async with funded(redis) as (balances, account_id):
        other = ids.new_account_id()
        await redis.set(rediskeys.account(other), "not a hash")
        entry = ids.new_credit_id()
        results = await asyncio.gather(
            balances.credit(other, entry, 5), balances.credit(account_id, entry, 5), return_exceptions=True
        )
        assert isinstance(results[0], StoreRefused)
        assert results[1] == "APPLIED"


@pytest.mark.anyio
async def test_a_credit_entity_is_applied_once_whoever_brings_it(redis: Any) -> None:
    async with funded(redis, 5) as (balances, account_id):
        entry = Credit(id=ids.new_credit_id(), account_id=account_id, amount_nanos=7, reason="", created_at_ms=1)
        event = ControlChanged(entity=entry, actor="", reason="", at_ms=1)
        results = await asyncio.gather(
            *(Directory(redis, Balances(redis), Upstreams(redis)).apply(event, n) for n in range(20))
        )
        assert sorted(results) == ["APPLIED", *["DUPLICATE"] * 19]
        assert await balances.read(account_id) == Balance(12, 0, 0, 12)
