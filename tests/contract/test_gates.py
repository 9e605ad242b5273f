"""Gates of partitions on a real Redis, and the fake of their marks."""

import asyncio

import pytest

from libs.common import ids, redisclient, rediskeys
from libs.common.gates import Gates
from tests.contract.fakes import MemoryMarks
from tests.gates import open_all

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
OTHER = "0" * 40


async def test_a_gate_is_open_for_one_server_only(redis_url: str) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    gates = Gates(redis)
    state = await gates.state(9)
    assert state.is_open and await gates.all_open()
    await redis.set(rediskeys.gate(9), OTHER)
    try:
        closed = await gates.state(9)
        assert (closed.is_open, closed.opened_for, closed.run_id) == (False, OTHER, state.run_id)
        assert await gates.all_open()  # believed for a second
        assert not await Gates(redis).all_open()
        assert not await gates.open(9, OTHER)
        assert not (await gates.state(9)).is_open
        await redis.delete(rediskeys.gate(9))
        assert (await gates.state(9)).opened_for == ""
        assert not await Gates(redis).all_open()
    finally:
        await open_all(gates)
        await redis.aclose()


async def test_a_gate_that_vanished_while_its_data_was_checked_stays_closed(redis_url: str) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    gates = Gates(redis)
    await redis.set(rediskeys.gate(11), OTHER)
    seen = await gates.state(11)
    await gates.close(11)
    try:
        assert not await gates.open(11, seen.run_id, opened_for=seen.opened_for)
        assert not (await gates.state(11)).is_open
        assert await gates.open(11, seen.run_id)
        assert await gates.open(11, seen.run_id, opened_for=OTHER)  # another worker was faster: it is open
    finally:
        await open_all(gates)
        await redis.aclose()


async def test_a_claim_is_one_workers_until_it_ends(redis_url: str) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    gates = Gates(redis)
    assert await gates.claim(12, "one", for_ms=100)
    assert not await gates.claim(12, "two", for_ms=10_000)
    assert await gates.claim(12, "one", for_ms=100)
    await asyncio.sleep(0.15)
    assert await gates.claim(12, "two", for_ms=10_000)
    assert not await gates.claim(12, "one", for_ms=0)
    assert await gates.claim(12, "two", for_ms=0)
    assert await gates.claim(12, "one", for_ms=10_000)
    await gates.claim(12, "one", for_ms=0)
    await redis.aclose()


async def test_of_a_closed_partition_nothing_is_marked(redis_url: str) -> None:
    """What is settled while it is closed says nothing of what was forgotten before."""
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    gates = Gates(redis)
    before = await gates.state(13)
    await redis.set(rediskeys.gate(13), OTHER)
    try:
        await gates.mark(13, usage_sequence=before.usage_sequence + 5, control_sequence=before.control_sequence + 5)
        after = await gates.state(13)
        assert (after.usage_sequence, after.control_sequence) == (before.usage_sequence, before.control_sequence)
    finally:
        await open_all(gates)
        await redis.aclose()


async def test_marks_move_forward_only(redis_url: str) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    gates, fake = Gates(redis), MemoryMarks()
    number = ids.partition(ids.new_account_id())
    before = await gates.state(number)
    base = max(before.usage_sequence, before.control_sequence)
    for usage, control in ((7, 0), (5, 3), (0, 9), (8, 2)):
        for marks in (gates, fake):
            await marks.mark(number, usage_sequence=usage and base + usage, control_sequence=control and base + control)
    after = await gates.state(number)
    assert (after.usage_sequence, after.control_sequence) == (base + 8, base + 9) == fake.marks[number]
    await redis.aclose()
