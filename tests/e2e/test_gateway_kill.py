"""Gateways that die or stand still with two hundred streams open, and callers who leave: no slot, no hold, no row is lost."""

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Literal

import pytest

from libs.common import ids, redisclient, rediskeys
from tests.e2e.bodies import MODEL
from tests.e2e.herd import Herd, HoldingUpstream, Line, Size, request, until
from tests.e2e.leaving import USAGE_FINAL, USAGE_START
from tests.e2e.relay import Gateway, Relay
from tests.e2e.store import Store
from tests.invoice_fold import cost_nanos

pytestmark = [pytest.mark.alone, pytest.mark.anyio, pytest.mark.redis_suite]
STREAMS: Final = 200
LEASE_S: Final = 6
SHORT_LEASE_S: Final = 2
SHUTDOWN_S: Final = 2
PATIENCE_S: Final = 15
"""Of the reaper, after Redis was away: gateways that live renew their leases first."""
WRITTEN_S: Final = 1.5
"""Redis writes to disk every second."""
MULTIPLIER_PPM: Final = 1_250_000
LIMITS: Final = {"rpm": 10**6, "itpm": 10**9, "otpm": 10**9, "in_flight": STREAMS}
NOTHING: Final = {"held": 0, "leases": 0, "slots": 0}


def gateway_of(relay: Relay, port: int, **settings: str) -> contextlib.AbstractContextManager[Gateway]:
    return relay.second_gateway(f"http://127.0.0.1:{port}", **settings)


@contextlib.asynccontextmanager
async def redis_of(relay: Relay) -> AsyncIterator[Any]:
    redis = redisclient.connect(relay.stores["RELAY_REDIS_URL"], try_seconds=redisclient.TRY_S_UNHURRIED)
    try:
        yield redis
    finally:
        await redis.aclose()


async def new_account(relay: Relay, **settings: str) -> tuple[str, str]:
    return await asyncio.to_thread(
        relay.new_account, credit_usd="1000.00", limits=LIMITS, multiplier="1.25", **settings
    )


async def kept(redis: Any, account: str) -> dict[str, int]:
    """What Redis still keeps for requests of an account; those that were given up before they were used do not count."""
    held = await redis.hget(rediskeys.account(account), "held")
    leases: dict[Any, Any] = await redis.hgetall(rediskeys.leases(account))
    counted = [text for name, text in leases.items() if not name.endswith(b":memo") and not text.startswith(b"v")]
    slots = await redis.zcard(rediskeys.slots(account, account))
    return {"held": int(held or 0), "leases": len(counted), "slots": int(slots)}


async def nothing_left(redis: Any, account: str, seconds: float) -> None:
    """Within so many seconds."""
    found: dict[str, int] = {}
    deadline = asyncio.get_running_loop().time() + seconds
    while (found := await kept(redis, account)) != NOTHING:
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.05)


async def checked_rows(
    relay: Relay, account: str, settled: Callable[[list[dict[str, Any]]], bool], count: int
) -> Counter[tuple[str, int]]:
    """Outcome and version of all rows, once they are as wanted: each at the right cost, and the balance has lost their sum."""
    rows: list[dict[str, Any]] = []

    def ready() -> bool:
        rows[:] = relay.rows(account, count)
        return settled(rows)

    deadline = asyncio.get_running_loop().time() + 30
    while not await asyncio.to_thread(ready):
        assert asyncio.get_running_loop().time() < deadline, Counter(row["outcome"] for row in rows)
        await asyncio.sleep(0.1)
    assert len({row["request_id"] for row in rows}) == count
    for row in rows:
        cost = cost_nanos(row["usage"], model_asked=MODEL, model_answered=MODEL, multiplier_ppm=MULTIPLIER_PPM)
        assert (row["total_nanos"], row["multiplier_ppm"]) == (cost, MULTIPLIER_PPM)
    return Counter((row["outcome"], row["version"]) for row in rows)


def usages(rows: list[dict[str, Any]], outcome: str) -> list[dict[str, int]]:
    """The usages that stand in rows of an outcome, each once."""
    found: list[dict[str, int]] = []
    for row in rows:
        if row["outcome"] == outcome and row["usage"] not in found:
            found.append(row["usage"])
    return found


async def open_streams(herd: Herd, upstream: HoldingUpstream, key: str) -> None:
    """All of the herd's; their first event has come."""
    upstream.hold()
    herd.ask(request(key, stream=True))
    await until(lambda: upstream.open == len(herd.lines), lambda: f"{upstream.open} open, {herd.statuses()}")


async def test_a_killed_gateway_leaves_nothing_behind(
    relay: Relay, holding: HoldingUpstream, holding_port: int, size: Size
) -> None:
    """Its slots are free after a lease, its holds within two, and each request has its row: the estimated input."""
    loop = asyncio.get_running_loop()
    short = {"RELAY_LEASE_SECONDS": str(LEASE_S)}
    account, key = await new_account(relay)
    hold = -(-size.hold_nanos * MULTIPLIER_PPM // 10**6)
    async with redis_of(relay) as redis:
        with gateway_of(relay, holding_port, **short) as killed, gateway_of(relay, holding_port, **short) as living:
            async with Herd.of(STREAMS, [killed]) as herd, Herd.of(STREAMS, [living]) as others:
                await open_streams(herd, holding, key)
                assert await kept(redis, account) == {"held": STREAMS * hold, "leases": STREAMS, "slots": STREAMS}
                others.ask(request(key, stream=True))
                await others.all_answered()
                assert others.statuses() == {429: STREAMS}
                killed.service.kill()
                died = loop.time()
                await until(lambda: holding.open == 0, lambda: f"{holding.open} open")
                await asyncio.sleep(died + LEASE_S - loop.time())
                await open_streams(others, holding, key)
                holding.let_go()
                await others.all_answered()
                assert others.statuses() == {200: STREAMS}
                await nothing_left(redis, account, died + 2 * LEASE_S - loop.time())

    def settled(rows: list[dict[str, Any]]) -> bool:
        return usages(rows, "expired") == [{"input_tokens": size.input_tokens}]

    found = await checked_rows(relay, account, settled, 2 * STREAMS)
    assert found == {("expired", 1): STREAMS, ("measured", 3): STREAMS}


async def test_sigterm_leaves_nothing_behind(relay: Relay, holding: HoldingUpstream, holding_port: int) -> None:
    """Streams that end in time are whole, the others are cut; nobody has to wait for a lease to end."""
    account, key = await new_account(relay)
    async with redis_of(relay) as redis:
        with gateway_of(relay, holding_port, RELAY_SHUTDOWN_SECONDS=str(SHUTDOWN_S)) as gateway:
            async with Herd.of(STREAMS, [gateway]) as herd:
                await open_streams(herd, holding, key)
                gateway.service.ask_to_stop()
                holding.let_go(STREAMS // 2)
                await asyncio.gather(*herd.answers, return_exceptions=True)
                await until(lambda: gateway.service.process.poll() is not None, lambda: "the gateway ends")
        await nothing_left(redis, account, LEASE_S)

    def settled(rows: list[dict[str, Any]]) -> bool:
        return (usages(rows, "measured"), usages(rows, "partial")) == ([USAGE_FINAL], [USAGE_START])

    found = await checked_rows(relay, account, settled, STREAMS)
    assert found == {("measured", 3): STREAMS // 2, ("partial", 3): STREAMS // 2}


async def test_a_gateway_held_for_dead_has_the_last_word(
    relay: Relay, holding: HoldingUpstream, holding_port: int
) -> None:
    """It stands still for longer than its leases last: its requests expire. Then it goes on, and what it knows replaces that."""
    account, key = await new_account(relay)
    async with redis_of(relay) as redis:
        with gateway_of(relay, holding_port, RELAY_LEASE_SECONDS=str(SHORT_LEASE_S)) as gateway:
            async with Herd.of(STREAMS, [gateway]) as herd:
                await open_streams(herd, holding, key)
                gateway.service.signal(signal.SIGSTOP)
                try:
                    await nothing_left(redis, account, 5 * SHORT_LEASE_S)
                    found = await checked_rows(relay, account, bool, STREAMS)
                    assert found == {("expired", 1): STREAMS}
                finally:
                    gateway.service.signal(signal.SIGCONT)
                await asyncio.sleep(SHORT_LEASE_S)  # it asks for its leases, and is told that they are lost
                assert gateway.metric("relay_leases_lost_total") == STREAMS
                holding.let_go()
                await herd.all_answered()
                assert herd.statuses() == {200: STREAMS}
        await nothing_left(redis, account, LEASE_S)

    def settled(rows: list[dict[str, Any]]) -> bool:
        return {row["version"] for row in rows} == {3}

    assert await checked_rows(relay, account, settled, STREAMS) == {("measured", 3): STREAMS}


async def test_a_redis_that_was_restarted_forgets_no_lease(
    own_relay: Relay, own_redis: Store, holding: HoldingUpstream, holding_port: int
) -> None:
    """Half of the streams end after it, the other half is killed with their gateway."""
    account, key = await new_account(own_relay)
    async with redis_of(own_relay) as redis:
        with gateway_of(own_relay, holding_port, RELAY_LEASE_SECONDS=str(LEASE_S)) as gateway:
            async with Herd.of(STREAMS, [gateway]) as herd:
                await open_streams(herd, holding, key)
                await asyncio.sleep(WRITTEN_S)
                own_redis.kill()
                await asyncio.sleep(0.5)
                own_redis.give_back()  # not in a thread: a store dies with the thread that has started it
                holding.let_go(STREAMS // 2)
                await until(
                    lambda: herd.statuses() == {200: STREAMS // 2} and holding.open == STREAMS // 2,
                    lambda: f"{herd.statuses()}, {holding.open} open",
                )
                await asyncio.sleep(WRITTEN_S)
                gateway.service.kill()
        await nothing_left(redis, account, PATIENCE_S + 2 * LEASE_S)
    found = await checked_rows(own_relay, account, bool, STREAMS)
    assert found == {("measured", 3): STREAMS // 2, ("expired", 1): STREAMS // 2}


async def test_what_redis_takes_too_late_is_given_back(
    own_relay: Relay, own_redis: Store, holding: HoldingUpstream, holding_port: int
) -> None:
    """It stands still while two hundred ask: they are refused, and then it does what it was asked. No lease has to end for it."""
    account, key = await new_account(own_relay)
    holding.let_go()
    async with redis_of(own_relay) as redis:
        with gateway_of(own_relay, holding_port) as gateway:
            async with Herd.of(STREAMS, [gateway]) as herd:
                herd.ask(request(key))
                await herd.all_answered()
                assert herd.statuses() == {200: STREAMS}
                await nothing_left(redis, account, LEASE_S)
                own_redis.freeze()
                try:
                    herd.ask(request(key))
                    await herd.all_answered()
                finally:
                    own_redis.give_back()
                assert herd.statuses() == {529: STREAMS}
                await nothing_left(redis, account, 2 * LEASE_S)
                await asyncio.sleep(LEASE_S / 2)  # a lease that came after its undoing would stay
                assert await kept(redis, account) == NOTHING
                await checked_rows(own_relay, account, bool, STREAMS)


@pytest.mark.parametrize("on_disconnect", ["drain", "cancel"])
async def test_callers_who_leave_leave_nothing_behind(
    relay: Relay, holding: HoldingUpstream, holding_port: int, on_disconnect: Literal["drain", "cancel"]
) -> None:
    """At any moment: before they are admitted, while they are, while the upstream thinks, inside a stream."""
    chance = random.Random(3)
    account, key = await new_account(relay, on_disconnect=on_disconnect)

    async def come_and_go(gateway: Gateway) -> None:
        line = await Line.to(gateway)
        line.send(request(key, stream=chance.random() < 0.5))
        await asyncio.sleep(chance.random() ** 3 * 0.3)
        line.abort()

    holding.hold()
    async with redis_of(relay) as redis:
        with gateway_of(relay, holding_port, RELAY_LEASE_SECONDS=str(LEASE_S)) as gateway:
            await asyncio.gather(*(come_and_go(gateway) for _ in range(STREAMS)))
            await asyncio.sleep(0.2)
            holding.let_go()
            await asyncio.to_thread(gateway.wait_at_rest)
            await nothing_left(redis, account, LEASE_S / 2)
            assert gateway.gauge("relay_leases_open") == gateway.metric("relay_leases_lost_total") == 0
        rows = len(list(await asyncio.to_thread(relay.all_rows, account)))
        assert holding.received <= rows <= STREAMS and holding.received > STREAMS // 4
        await checked_rows(relay, account, bool, rows)
        deadline = asyncio.get_running_loop().time() + 2 * LEASE_S
        while await redis.exists(rediskeys.leases(account)):
            assert asyncio.get_running_loop().time() < deadline, await redis.hgetall(rediskeys.leases(account))
            await asyncio.sleep(0.1)
        index: list[Any] = await redis.zrange(rediskeys.lease_index(ids.partition(account)), 0, -1)
        assert not [entry for entry in index if entry.startswith(account.encode())]
