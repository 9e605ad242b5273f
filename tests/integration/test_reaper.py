"""Leases of a gateway that is gone, on real stores: two workers find them at once, and each costs its account once."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from libs.common import events, failpoints, ids, rediskeys
from libs.common.balances import Balance
from libs.common.failpoints import FailpointReached
from libs.common.leases import Granted, Lease, Leases
from libs.common.metrics import Metrics
from libs.localstack.stores import start_nats, start_redis
from services.accounting.reaper import Reaper
from tests.e2e.store import Store
from tests.gates import open_gates
from tests.integration.accounting_rig import Rig
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, admission, api_key, changed, recorded

pytestmark = pytest.mark.anyio
EXPIRED_S: Final = 1.2
"""A lease of a millisecond, and the reaper's grace."""
EACH: Final = 30
ACCOUNTS: Final = 4
GRANTED: Final = 10**12


@pytest.fixture
def redis_store(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_redis, tmp_path / "redis")
    open_gates(f"redis://127.0.0.1:{store.port}/0")
    yield store
    store.close()


@pytest.fixture
def nats_store(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_nats, tmp_path / "nats")
    yield store
    store.close()


@pytest.fixture
async def rig(redis_store: Store, nats_store: Store, clickhouse_url: str) -> AsyncIterator[Rig]:
    addresses = f"nats://127.0.0.1:{nats_store.port}", f"redis://127.0.0.1:{redis_store.port}/0"
    async with Rig.over(*addresses, clickhouse_url) as made:
        yield made


async def left_behind(rig: Rig) -> list[tuple[str, str]]:
    """(account, key) with EACH leases of a gateway that is gone, of which the first's memo cannot be read."""
    made = []
    leases = Leases(rig.redis, lease_ms=1)
    for _ in range(ACCOUNTS):
        account_id = await rig.new_account(GRANTED)
        key = api_key(account_id)
        await rig.change(changed(key))
        await rig.settled(account_id, 0, 0)
        made.append((account_id, key.id))
        while not await rig.redis.exists(rediskeys.api_key(account_id, key.id)):
            await asyncio.sleep(0.01)
        for number in range(EACH):
            request_id = ids.new_request_id()
            event = recorded(account_id, request_id=request_id, key_id=key.id, outcome="expired", status=0, version=1)
            memo = events.encode_event(event) if number else b"nobody can read this"
            granted = await leases.admit(admission(account_id, key.id, request_id=request_id, memo=memo))
            assert isinstance(granted, Granted)
    await asyncio.sleep(EXPIRED_S)
    return made


def reaper(rig: Rig) -> Reaper:
    return Reaper(Leases(rig.redis), rig.jetstream, Metrics(), every_s=1)


async def nothing_is_left(rig: Rig, account_id: str, key_id: str) -> None:
    """Every lease was charged once, and holds nothing any more: neither of the account nor of the key."""
    spent = (EACH - 1) * ONE_TOKEN_NANOS
    await rig.settled(account_id, EACH, spent, GRANTED)
    assert await rig.balance(account_id) == Balance(GRANTED - spent, 0, spent, GRANTED)
    held = await rig.redis.hmget(rediskeys.api_key(account_id, key_id), ["held", "spent"])
    assert [int(amount) for amount in held] == [0, spent]
    names = [rediskeys.leases(account_id), *(rediskeys.slots(account_id, owner) for owner in (account_id, key_id))]
    assert await rig.redis.exists(*names) == 0
    statement = (
        f"SELECT version, outcome, count() FROM usage WHERE account_id = '{account_id}' GROUP BY ALL ORDER BY ALL"
    )
    rows: list[Any] = [[int(version), outcome] for version, outcome, _ in await rig.ledger.query(statement)]
    assert rows == [[1, "expired"], [1, "free"]]


async def test_two_workers_end_every_lease_once(rig: Rig) -> None:
    async with rig.worker():
        accounts = await left_behind(rig)
        taken = await asyncio.gather(*(reaper(rig).round() for _ in range(2)))
        assert sum(taken) == ACCOUNTS * EACH
        for account_id, key_id in accounts:
            await nothing_is_left(rig, account_id, key_id)


async def test_a_lease_from_before_keys_were_noted_is_still_read(rig: Rig) -> None:
    account_id, request_id = ids.new_account_id(), ids.new_request_id()
    lease, leases = Lease(account_id, "key_1", "memb_1", request_id), Leases(rig.redis, lease_ms=1)
    name, index = rediskeys.leases(account_id), rediskeys.lease_index(ids.partition(account_id))
    await rig.redis.hset(name, mapping={request_id: "o 5 1250000 7 memb_1", f"{request_id}:memo": "{}"})
    assert await leases.renew(lease, input_tokens=9) == b"OK"
    assert await leases.finish(lease, input_tokens=9, output_tokens=1, cost_nanos=4) == b"OK"
    await rig.redis.zadd(index, {f"{account_id} {request_id}": 1})
    (found,) = await leases.reap(ids.partition(account_id), grace_ms=0, count=10)
    assert (found.key_id, found.member_id, found.hold_nanos, found.multiplier_ppm) == ("", "memb_1", 4, 1_250_000)


@pytest.mark.parametrize("point", ["lease_taken", "lease_published"])
async def test_what_a_worker_took_when_it_died_is_ended_by_another(
    rig: Rig, point: failpoints.Name, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.common.leases._CLAIM_MS", 200)
    async with rig.worker():
        accounts = await left_behind(rig)

        def die() -> None:
            failpoints.disarm()
            raise FailpointReached(point)

        failpoints.arm(point, die)
        with pytest.raises(FailpointReached):
            await reaper(rig).round()
        await asyncio.sleep(EXPIRED_S + 0.2)
        await reaper(rig).round()
        for account_id, key_id in accounts:
            await nothing_is_left(rig, account_id, key_id)
