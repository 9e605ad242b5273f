"""Upstream credentials, breakers and slots on a real Redis: shared by all who look, and as `Breaker` tells it."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from libs.common import ids, redisclient
from libs.common.events import UpstreamCredential
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.upstreams import CLOSED, Breaker, Kind, Name, Shared, Stored, Upstreams, rate_ms

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
KINDS: Final = get_args(Kind)
LASTING: Final = ("auth", "hold", "spend")
BREAKERS: Final = "{upstreams}breakers"
numbers: Final = itertools.count(1)


class Gateway:
    """Upstreams with connections of their own, as another process has them; and the power to move a breaker's clock."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.upstreams = Upstreams(redis)

    async def known(self, name: Name) -> Breaker:
        return (await self.upstreams.read_all()).breakers.get(name, CLOSED)

    async def later(self, name: Name, ms: int) -> None:
        """As if so much time had passed for this breaker."""
        now = await self.known(name)
        fields = [
            now.kind,
            now.failures,
            now.opens,
            now.since_ms - ms,
            max(now.until_ms - ms, 1 if now.until_ms else 0),
        ]
        text = " ".join(map(str, [*fields, max(now.probe_ms - ms, 0)]))
        if now.kind:
            await self.redis.hset(BREAKERS, f"{name.id}@{name.generation}", text)

    async def opened(self, kind: Kind) -> Name:
        """A fresh credential's breaker, opened by that kind of failure."""
        name = fresh()
        for _ in range(5 if kind in ("server", "connect") else 1):
            await self.upstreams.failed(name, kind)
        return name


@pytest.fixture
async def gateway(redis_url: str) -> AsyncIterator[Gateway]:
    async with opened(redis_url) as redis:
        yield Gateway(redis)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    redis = redisclient.connect(url, try_seconds=redisclient.TRY_S_UNHURRIED)
    try:
        yield redis
    finally:
        await redis.aclose()


def fresh() -> Name:
    return Name(ids.new_upstream_id(), "1")


def credential(upstream_id: str, **fields: object) -> UpstreamCredential:
    return UpstreamCredential(
        **{  # type: ignore[arg-type]
            "id": upstream_id,
            "name": "main",
            "created_at_ms": 1,
            "base_url": "https://api",
            "sealed": "x",
            "hint": "WXYZ",
            **fields,
        }
    )


def found(shared: Shared, upstream_id: str) -> list[Stored]:
    return [stored for stored in shared.credentials if stored.credential.id == upstream_id]


# -- credentials -----------------------------------------------------------------------------------------------------


async def test_credentials_are_kept_and_older_versions_are_ignored(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    second = credential(upstream_id, weight=2, status="disabled")
    assert await upstreams.put(second, 7)
    for version in (6, 7):
        assert not await upstreams.put(credential(upstream_id, weight=9), version)
    assert found(await upstreams.read_all(), upstream_id) == [Stored(second, 7)]


async def test_a_deleted_credential_is_gone_and_no_late_change_brings_it_back(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    await upstreams.put(credential(upstream_id), 1)
    assert await upstreams.put(credential(upstream_id, status="deleted"), 3)
    assert not await upstreams.put(credential(upstream_id), 2)
    assert found(await upstreams.read_all(), upstream_id) == []


async def test_what_failed_before_a_change_does_not_keep_the_changed_credential_out(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    await upstreams.put(credential(upstream_id), 1)
    old, new = Name(upstream_id, "1"), Name(upstream_id, "2")
    assert (await upstreams.failed(old, "auth")).breaker is not None
    await upstreams.put(credential(upstream_id, sealed="new key"), 2)
    assert (await upstreams.failed(old, "auth")).breaker is None  # an answer that was still on its way
    shared = await upstreams.read_all()
    assert old not in shared.breakers and new not in shared.breakers
    assert shared.breaker(upstream_id) is CLOSED and shared.breaker(fresh().id) is None
    seen = await upstreams.failed(new, "auth")
    assert seen.breaker is not None and seen.breaker == (await upstreams.read_all()).breaker(upstream_id)


# -- breakers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_gateway_finds_all_know(gateway: Gateway, redis_url: str, kind: Kind) -> None:
    name = fresh()
    async with opened(redis_url) as redis:
        other = Gateway(redis)
        for number in range(5):
            one = (gateway, other)[number % 2]
            seen = await one.upstreams.failed(name, kind)
            assert seen.breaker == await gateway.known(name) == await other.known(name)
            if kind in (*LASTING, "rate"):
                break
        assert seen.breaker is not None
        assert (seen.breaker.state(seen.now_ms), seen.breaker.kind) == ("open", kind)


@pytest.mark.parametrize(
    ("kind", "first_ms", "last_ms"),
    [("auth", 30_000, 600_000), ("hold", 30_000, 600_000), ("spend", 30_000, 600_000), ("server", 5_000, 60_000),
     ("connect", 5_000, 60_000)],
)  # fmt: skip
async def test_each_try_that_fails_doubles_the_time_up_to_a_bound(
    gateway: Gateway, kind: Kind, first_ms: int, last_ms: int
) -> None:
    name = await gateway.opened(kind)
    expected = first_ms
    for _ in range(12):
        shared = await gateway.upstreams.read_all()
        left = shared.breakers[name].until_ms - shared.now_ms
        assert expected - 2_000 < left <= expected
        await gateway.later(name, expected)
        seen = await gateway.upstreams.failed(name, kind)
        assert seen.breaker is not None
        expected = min(2 * expected, last_ms)
    assert expected == last_ms


@pytest.mark.parametrize(("said", "ms"), [(None, 5_000), (0, 1_000), (0.2, 1_000), (7, 7_000), (86_400, 300_000)])
async def test_a_rate_limit_is_respected_for_as_long_as_it_says_within_bounds(
    gateway: Gateway, said: float | None, ms: int
) -> None:
    assert rate_ms(said) == ms
    seen = await gateway.upstreams.failed(fresh(), "rate", retry_after_s=said)
    assert seen.breaker is not None and seen.breaker.until_ms - seen.now_ms == ms


async def test_a_success_resets_the_count(gateway: Gateway) -> None:
    name, upstreams = fresh(), gateway.upstreams
    for _ in range(4):
        await upstreams.failed(name, "server")
    await upstreams.succeeded(name)
    for _ in range(4):
        seen = await upstreams.failed(name, "connect")
    assert seen.breaker is not None and seen.breaker.state(seen.now_ms) == "closed"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_success_closes_a_half_open_breaker_and_ends_a_row_of_failures(gateway: Gateway, kind: Kind) -> None:
    name = await gateway.opened(kind)
    before = await gateway.known(name)
    expected = CLOSED if kind in ("server", "connect") else before
    assert (await gateway.upstreams.succeeded(name)).breaker == expected
    await gateway.later(name, 30_000)
    assert (await gateway.upstreams.succeeded(name)).breaker == CLOSED
    assert await gateway.known(name) == CLOSED


@pytest.mark.parametrize("kind", KINDS)
async def test_one_at_a_time_may_try(gateway: Gateway, redis_url: str, kind: Kind) -> None:
    name = await gateway.opened(kind)
    async with opened(redis_url) as redis:
        stores = [gateway.upstreams, Upstreams(redis)]
        assert [await one.take_probe(name) for one in stores if (await one.take_probe(name))[0]] == []
        await gateway.later(name, 30_000)
        taken = await asyncio.gather(*(stores[number % 2].take_probe(name) for number in range(40)))
        assert sum(may for may, _ in taken) == 1
        await gateway.later(name, 30_000)  # who had it is dead
        assert [(await one.take_probe(name))[0] for one in stores] == [True, False]


async def test_a_try_that_failed_lets_nobody_in_until_its_time_is_up(gateway: Gateway) -> None:
    name = await gateway.opened("auth")
    await gateway.later(name, 30_000)
    assert (await gateway.upstreams.take_probe(name))[0]
    await gateway.upstreams.failed(name, "auth")
    assert not (await gateway.upstreams.take_probe(name))[0]
    await gateway.later(name, 60_000)
    assert (await gateway.upstreams.take_probe(name))[0]


async def test_a_closed_one_needs_no_leave(gateway: Gateway) -> None:
    name = fresh()
    assert (await gateway.upstreams.take_probe(name))[0]
    await gateway.upstreams.failed(name, "server")
    assert (await gateway.upstreams.take_probe(name))[0]


async def test_breakers_of_credentials_that_are_no_more_are_forgotten(gateway: Gateway) -> None:
    gone = await gateway.opened("auth")
    await gateway.later(gone, 3 * 86_400_000)
    await gateway.upstreams.failed(fresh(), "server")
    assert gone not in (await gateway.upstreams.read_all()).breakers


steps = st.lists(
    st.one_of(
        st.tuples(st.just("failed"), st.sampled_from(KINDS), st.sampled_from([None, 1, 30, 400])),
        st.tuples(st.just("succeeded")),
        st.tuples(st.just("probe")),
        st.tuples(st.just("later"), st.sampled_from([1, 4_000, 30_000, 700_000])),
    ),
    max_size=25,
)


@given(steps)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_scripts_and_the_told_breaker_agree(gateway: Gateway, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    name, told = fresh(), CLOSED
    for step in steps:
        match step:
            case ("failed", kind, seconds):
                seen = await gateway.upstreams.failed(name, kind, retry_after_s=seconds)
                told = told.failed(kind, seen.now_ms, rate_ms=rate_ms(seconds))
            case ("succeeded",):
                seen = await gateway.upstreams.succeeded(name)
                told = told.succeeded(seen.now_ms)
            case ("probe",):
                may, seen = await gateway.upstreams.take_probe(name)
                assert may == told.may_probe(seen.now_ms)
                if may and told.state(seen.now_ms) == "half_open":
                    told = told.probed(seen.now_ms)
            case ("later", ms):
                await gateway.later(name, ms)
                told = await gateway.known(name)
                continue
        assert seen.breaker == told == await gateway.known(name)


# -- slots -----------------------------------------------------------------------------------------------------------


async def test_a_cap_is_exact_over_all_gateways(gateway: Gateway, redis_url: str) -> None:
    upstream_id = ids.new_upstream_id()
    async with opened(redis_url) as redis:
        stores = [gateway.upstreams, Upstreams(redis)]
        for round_number in range(10):
            asked = [f"req_{round_number}_{number}" for number in range(60)]
            got = await asyncio.gather(
                *(stores[n % 2].take(upstream_id, one, in_flight_max=7, lease_s=60) for n, one in enumerate(asked))
            )
            assert sum(got) == 7
            assert await stores[1].in_flight([upstream_id, ids.new_upstream_id()]) == [7, 0]
            for one, has_it in zip(asked, got, strict=True):
                if has_it:
                    assert await stores[0].release(upstream_id, one) == 1
            assert await stores[0].in_flight([upstream_id]) == [0]


async def test_taking_twice_takes_one_and_giving_back_twice_gives_one(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    for _ in range(2):
        assert await upstreams.take(upstream_id, "req_1", in_flight_max=1, lease_s=60)
    assert not await upstreams.take(upstream_id, "req_2", in_flight_max=1, lease_s=60)
    assert [await upstreams.release(upstream_id, "req_1") for _ in range(2)] == [1, 0]
    assert await upstreams.take(upstream_id, "req_2", in_flight_max=1, lease_s=60)


async def test_a_slot_nobody_renews_is_free_and_one_that_is_renewed_is_not(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    for request_id in ("req_dead", "req_alive"):
        assert await upstreams.take(upstream_id, request_id, in_flight_max=2, lease_s=0.3)
    await upstreams.renew(upstream_id, "req_alive", lease_s=30)
    await asyncio.sleep(0.35)
    assert await upstreams.in_flight([upstream_id]) == [1]
    assert await upstreams.take(upstream_id, "req_2", in_flight_max=2, lease_s=30)
    assert not await upstreams.take(upstream_id, "req_3", in_flight_max=2, lease_s=30)


async def test_a_slot_that_redis_lost_is_there_again_when_it_is_renewed(gateway: Gateway) -> None:
    upstreams, upstream_id = gateway.upstreams, ids.new_upstream_id()
    await upstreams.take(upstream_id, "req_1", in_flight_max=1, lease_s=30)
    await gateway.redis.delete(f"{{upstreams}}slots:{upstream_id}")
    await upstreams.renew(upstream_id, "req_1", lease_s=30)
    assert not await upstreams.take(upstream_id, "req_2", in_flight_max=1, lease_s=30)


async def test_a_redis_that_is_away_is_said_so() -> None:
    async with opened("redis://127.0.0.1:1/0") as redis:
        upstreams = Upstreams(redis, Scripts(redis))
        with pytest.raises(StoreUnavailable):
            await upstreams.read_all()
