"""Admission on a real Redis and its second telling in Python: the same decisions and the same state, after every step.

Minutes, months and days of 23 or 25 hours pass in no time (admission_pair.py).
"""

import asyncio
import random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.common import redisclient
from libs.common.limits import Limits
from tests.contract.admission_pair import ELSEWHERE, HERE, LIMITS, ZONES, Both

pytestmark = pytest.mark.redis_suite

two, six = st.sampled_from([0, 0, 0, 1]), st.integers(0, 5)
statuses = st.sampled_from(["active"] * 6 + ["disabled"])
limits = st.sampled_from(LIMITS)
tokens = st.sampled_from([1, 3, 40, 99, 100, 101, 5_000])
holds = st.sampled_from([0, 1, 700, 1_000, 2_500, 2_999, 10_000])
costs = st.sampled_from([0, 1, 500, 1_000, 2_500, 7_000])
places = st.sampled_from([HERE] * 3 + [ELSEWHERE])
admits = st.tuples(st.just("admit"), two, two, six, tokens, holds, st.integers(0, 2), places)
HOUR_US: Final = 3_600 * 10**6
spans = st.sampled_from(
    [1, 999, 10**6, 20 * 10**6, 60 * 10**6, 61 * 10**6, HOUR_US, 4 * HOUR_US, 24 * HOUR_US, 31 * 24 * HOUR_US]
)
operations = st.one_of(
    admits,
    admits,
    admits,
    st.tuples(
        st.just("account"),
        two,
        statuses,
        st.sampled_from([0, 900_001, 10**6, 1_250_000]),
        st.sampled_from(ZONES),
        limits,
    ),
    st.tuples(st.just("member"), two, statuses, limits),
    st.tuples(st.just("key"), two, two, statuses, st.booleans(), limits, st.integers(0, 5)),
    st.tuples(st.just("credit"), two, st.sampled_from([1, 1_000, 2_500, 10_000, 10**6, -1_500])),
    st.tuples(st.just("check"), two, two, st.integers(0, 2), places),
    st.tuples(st.just("renew"), two, six, st.none() | tokens, st.booleans()),
    st.tuples(st.just("finish"), two, six, st.tuples(tokens, tokens), st.none() | costs),
    st.tuples(st.just("finish"), two, six, st.tuples(tokens, tokens), st.none() | costs),
    st.tuples(st.just("void"), two, six),
    st.tuples(st.just("reap"), two),
    st.tuples(st.just("settle"), two, six, st.sampled_from([1, 3, 4]), costs),
    st.tuples(st.just("settle"), two, six, st.sampled_from([1, 3, 4]), costs),
    st.tuples(st.just("sleep"), spans),
)
operations |= st.tuples(st.just("restarted"), admits | operations)
CROWDED: Final = (
    Limits(in_flight=2),
    Limits(in_flight=3),
    Limits(budget_day_nanos=4_000),
    Limits(budget_total_nanos=30_000),
    Limits(rpm=3),
    Limits(),
)
limited = limits | st.builds(
    Limits,
    in_flight=st.sampled_from([2, 3, 50]),
    budget_day_nanos=st.none() | st.sampled_from([1_000, 3_500]),
    budget_month_nanos=st.none() | st.sampled_from([2_500, 4_001]),
)


def funded(
    ppm: int = 10**6, zone: str = "Europe/Berlin", of_account: Limits = LIMITS[0], of_key: Limits = LIMITS[0]
) -> list[tuple[Any, ...]]:
    """How an account with some money begins."""
    return [
        ("account", 0, "active", ppm, zone, of_account),
        ("member", 0, "active", Limits()),
        ("key", 0, 0, "active", True, of_key, 0),
        ("key", 0, 1, "active", False, Limits(), 0),
        ("credit", 0, 10_000),
    ]


async def play(redis_url: str, drawn: list[tuple[Any, ...]]) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    both = Both(redis)
    try:
        await both.do(("sleep", 0))
        for operation in drawn:
            await both.do(operation)
            await both.agree()
    finally:
        await both.clear()
        await redis.aclose()


beginnings = st.builds(
    funded,
    ppm=st.sampled_from([900_001, 10**6, 1_250_000]),
    zone=st.sampled_from(ZONES),
    of_account=limited,
    of_key=limited,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(beginnings | st.just([]), st.lists(operations, min_size=20, max_size=60))
def test_any_story_has_the_same_decisions_and_the_same_state(
    redis_url: str, beginning: list[tuple[Any, ...]], drawn: list[tuple[Any, ...]]
) -> None:
    asyncio.run(play(redis_url, beginning + drawn))


@pytest.mark.parametrize("seed", range(3))
def test_long_stories(redis_url: str, seed: int) -> None:
    """Of one account with room for everything, so that most requests get far: limits on, limits off, days and months."""
    chance = random.Random(seed)
    drawn: list[tuple[Any, ...]] = [*funded(), ("credit", 0, 10**7)]
    for number in range(400):
        request = number % 6
        admit = ("admit", 0, chance.randrange(2), request, chance.choice([1, 40, 5_000]), 1_000, 0, HERE)
        drawn.append(admit)
        drawn.append(chance.choice([("renew", 0, request, 77, True), ("renew", 0, request, None, False), ("reap", 0)]))
        drawn.append(
            ("finish", 0, request, (chance.randrange(9_000), chance.randrange(900)), chance.choice([None, 0, 900]))
        )
        drawn.append(("settle", 0, request, chance.choice([1, 3]), chance.randrange(2_000)))
        if number % 7 == 0:
            drawn.append(("sleep", chance.choice([10**6, 90 * 10**6, 3_600 * 10**6, 86_400 * 10**6])))
        if number % 20 == 0:
            drawn.append(("account", 0, "active", 10**6, chance.choice(ZONES), chance.choice(LIMITS)))
            drawn.append(("key", 0, chance.randrange(2), "active", False, chance.choice(LIMITS), 0))
    asyncio.run(forgetful(redis_url, drawn))


@pytest.mark.parametrize("seed", range(2))
def test_crowds(redis_url: str, seed: int) -> None:
    """Many requests of one account at once, so that slots and money run out, and the last of each is fought for."""
    chance = random.Random(seed)
    drawn: list[tuple[Any, ...]] = [*funded(), ("credit", 0, 10**5)]
    for number in range(500):
        if number % 25 == 0:
            limits, key_limits = chance.choice(CROWDED), chance.choice(CROWDED)
            drawn += [("account", 0, "active", 10**6, "UTC", limits), ("key", 0, 0, "active", False, key_limits, 0)]
        admit = ("admit", 0, 0, number, chance.choice([1, 40]), chance.choice([1, 999, 1_000]), 0, HERE)
        recent = max(0, number - chance.randrange(8))
        drawn += [
            ("restarted", admit) if number % 20 == 0 else admit,
            *([("restarted", admit)] if number % 20 == 10 else []),
            chance.choice(
                [
                    ("finish", 0, recent, (7, 9), chance.choice([None, 5, 999])),
                    ("settle", 0, recent, chance.choice([1, 3, 4]), chance.choice([5, 999])),
                    ("settle", 0, recent, chance.choice([1, 3, 4]), chance.choice([5, 999])),
                    ("void", 0, recent),
                    ("sleep", chance.choice([1, 10**6, 60 * 10**6, 60 * 10**6 + 1])),
                    ("renew", 0, recent, None, chance.random() < 0.5),
                    ("renew", 0, recent, 77, True),
                    ("reap", 0),
                ]
            ),
        ]
    asyncio.run(play(redis_url, drawn))


@pytest.mark.parametrize("zone", ZONES)
def test_every_day_around_a_change_of_the_clock(redis_url: str, zone: str) -> None:
    """A budget that is spent says when its day ends, every six hours from 28 March to 9 April 2026, and again in autumn."""
    drawn = [*funded(zone=zone, of_account=Limits(budget_day_nanos=0))]
    for span in [HOUR_US * 6] * 48 + [HOUR_US * 24 * 170] + [HOUR_US * 6] * 160:
        drawn += [("sleep", span), ("admit", 0, 0, 0, 1, 1_000, 0, HERE)]
    asyncio.run(play(redis_url, drawn))


async def forgetful(redis_url: str, drawn: list[tuple[Any, ...]]) -> None:
    """A settled request's number is used for another one."""
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    both = Both(redis)
    granted = 0
    try:
        await both.do(("sleep", 0))
        for number, operation in enumerate(drawn):
            await both.do(operation)
            if number % 10 == 0:
                await both.agree()
            if operation[0] == "settle":
                granted += both.requests.pop((operation[1], operation[2]), None) is not None
    finally:
        await both.clear()
        await redis.aclose()
    assert granted > 30
