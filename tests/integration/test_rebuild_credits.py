"""Rebuild of what was granted: entries of every kind, and more in a life than an account may hold at once."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.common import clock, ids, money
from libs.common.entities import PriceDraft, RedeemCode
from libs.common.events import Entity
from libs.common.gates import Gates
from libs.localstack.stores import start_nats, start_redis
from services.accounting.operations import rebuild
from services.accounting.stores import open_stores
from tests.e2e.store import Store
from tests.gates import open_all
from tests.integration.accounting_rig import Rig, until
from tests.integration.test_operations import Operator
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, account, changed, credit, recorded

pytestmark = pytest.mark.anyio
MOST = money.AMOUNT_NANOS_MAX


@pytest.fixture
async def rig(tmp_path: Path, clickhouse_url: str) -> AsyncIterator[Rig]:
    redis, nats = Store(start_redis, tmp_path / "redis"), Store(start_nats, tmp_path / "nats")
    urls = f"nats://127.0.0.1:{nats.port}", f"redis://127.0.0.1:{redis.port}/0", clickhouse_url
    async with Rig.over(*urls) as made:
        await open_all(Gates(made.redis))
        yield made
    redis.close()
    nats.close()


@pytest.mark.parametrize("by_itself", [False, True], ids=["rebuild", "a young installation"])
async def test_more_granted_in_a_life_than_may_be_held_at_once(rig: Rig, by_itself: bool) -> None:
    account_id, spent = ids.new_account_id(), 2 * 10**9 * ONE_TOKEN_NANOS * 100
    refused = credit(account_id, 1)

    async def parked() -> bool:
        return refused.id in str(await rig.parked())

    async with rig.worker():
        await rig.change(changed(account(account_id)))
        for number in range(3):
            await rig.change(changed(credit(account_id, spent if number else MOST)))
            if number == 0:
                await rig.change(changed(refused))  # beyond what may be held: it never counts
                await until(parked)
            await rig.publish([recorded(account_id, 10**9, multiplier_ppm=100_000_000)])
            await rig.settled(account_id, number + 1, spent * (number + 1), MOST + number * spent)

        before = await rig.balance(account_id)
    assert before is not None
    await rig.redis.flushall()
    if by_itself:
        async with rig.worker():
            await until(Gates(rig.redis).all_open)
            assert await rig.balance(account_id) == before
        return
    async with open_stores(rig.config, name="test", connect_s=10) as stores:
        code, said = await Operator(stores).run(rebuild)
    assert code == 0, said.lines
    assert await rig.balance(account_id) == before


async def test_credits_of_every_kind_and_entities_redis_never_holds(rig: Rig) -> None:
    account_id = ids.new_account_id()
    promotion = credit(account_id, 5 * 10**9, kind="promotion", expires_at_ms=clock.unix_ms() + 1)
    code = RedeemCode(id=ids.new_id("code"), batch_id=ids.new_id("batch"), hint="A", amount_nanos=1, created_at_ms=0)
    draft = PriceDraft(id=ids.new_id("draft"), text="", base_version="")
    entries: list[Entity] = [
        promotion,
        credit(account_id, 7 * 10**9, kind="redemption", about_id=code.id),
        credit(account_id, -2 * 10**9, kind="adjustment"),
        credit(account_id, -5 * 10**9 + ONE_TOKEN_NANOS, kind="expiry", about_id=promotion.id),
    ]
    granted = 5 * 10**9 + ONE_TOKEN_NANOS
    async with rig.worker():
        for entity in (account(account_id), code, draft, *entries):
            await rig.change(changed(entity))
        await rig.publish([recorded(account_id)])
        await rig.settled(account_id, 1, ONE_TOKEN_NANOS, granted)
    before = await rig.balance(account_id)
    await rig.redis.flushall()
    async with open_stores(rig.config, name="test", connect_s=10) as stores:
        code_, said = await Operator(stores).run(rebuild)
    assert code_ == 0, said.lines
    assert await rig.balance(account_id) == before
    async with rig.worker():  # and all of it once more
        for entity in entries:
            await rig.change(changed(entity))
        await rig.publish([recorded(account_id)])
        await rig.settled(account_id, 2, 2 * ONE_TOKEN_NANOS, granted)
