"""What a caller is told of itself, on a real Redis: what the model has after every step, and what admission says no with."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from libs.common import ids, redisclient, rediskeys
from libs.common.leases import Admission, Checked, Leases, Refused
from libs.common.limits import Limits
from libs.common.scripts import Scripts
from libs.common.standing import Budget, ScopeStanding, Standings
from tests.contract import admission_model as told
from tests.contract.admission_pair import HERE, MODELS, START_US, ZONES, Both

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
HOUR_US: Final = 3_600 * 10**6
BUDGETS: Final = Limits(
    rpm=1_000, budget_day_nanos=10**6, budget_week_nanos=10**7, budget_month_nanos=10**8, budget_total_nanos=10**9
)


class Told(Both):
    """The pair, and who reads."""

    def __init__(self, redis: Any) -> None:
        super().__init__(redis)
        self.standings = Standings(self.leases._scripts, self.leases.member_of)

    async def compare(self, which: int) -> None:
        """Of one key of the first account: everything that is told is what the model has."""
        account, key = self.accounts[0], self.keys[0][which]
        standing = await self.standings.read(account.id, key.id)
        assert standing is not None
        assert standing.available_nanos == account.balance - account.held
        assert standing.granted_nanos == account.granted
        assert standing.granted_nanos == standing.available_nanos + account.held + account.spent
        assert standing.account == self._expected(account)
        assert standing.key == self._expected(key)
        assert standing.member == (self._expected(key.member) if key.member else None)
        assert standing.member_id == (key.member.id if key.member else "")
        assert (standing.models, standing.expires_at_ms) == (key.models, key.expires_at_ms)

    def _expected(self, one: told.Scope) -> ScopeStanding:
        account = self.accounts[0]
        found = [
            Budget(period, cap, *self.model._spent(account, one, kind))  # type: ignore[arg-type]
            for kind, period in enumerate(told.PERIODS)
            if (cap := one.budget(period)) is not None
        ]
        caps = {name: one.cap(number) for number, name in enumerate(told.RATES)}
        budgets = {f"budget_{period}_nanos": one.budget(period) for period in told.PERIODS}
        return ScopeStanding(
            status=one.status,
            limits=Limits(**caps, in_flight=one.in_flight_max, **budgets),
            held_nanos=one.held,
            spent_nanos=one.spent,
            in_flight=sum(ends > self.model.now_us for ends in one.slots.values()),
            budgets=tuple(found),
        )


@pytest.fixture
async def both(anyio_backend: str, redis_url: str) -> AsyncIterator[Told]:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    made = Told(redis)
    await made.do(("sleep", 0))
    yield made
    await made.clear()
    await redis.aclose()


async def begin(both: Told, zone: str = "Europe/Berlin", limits: Limits = BUDGETS) -> None:
    """An account with money; its first key is a member's, the other one its own."""
    for step in (
        ("account", 0, "active", 10**6, zone, limits),
        ("member", 0, "active", Limits(in_flight=7, budget_day_nanos=10**6)),
        ("key", 0, 0, "active", True, BUDGETS, 1),
        ("key", 0, 1, "active", False, Limits(), 2),
        ("credit", 0, 10**9),
    ):
        await both.do(step)


async def test_numbers_after_known_steps(both: Told) -> None:
    """Two requests of the member's key, one settled; said in figures, not by the model."""
    await begin(both)
    account, key = both.accounts[0].id, both.keys[0][0].id
    for step in (("admit", 0, 0, 0, 40, 700, 0, HERE), ("admit", 0, 0, 1, 40, 300, 0, HERE)):
        await both.do(step)
    standing = await both.standings.read(account, key)
    assert standing is not None and standing.member is not None
    for one in (standing.account, standing.member, standing.key):
        assert (one.held_nanos, one.spent_nanos, one.in_flight) == (1_000, 0, 2)
    assert (standing.available_nanos, standing.granted_nanos) == (10**9 - 1_000, 10**9)
    await both.do(("finish", 0, 0, (40, 9), 650))
    await both.do(("settle", 0, 0, 3, 650))
    standing = await both.standings.read(account, key)
    assert standing is not None and standing.member is not None
    for one in (standing.account, standing.member, standing.key):
        assert (one.held_nanos, one.spent_nanos, one.in_flight) == (300, 650, 1)
    assert standing.available_nanos == 10**9 - 950
    end_of_day = START_US // 10**6 + 3 * 3_600  # it is 21:00 in Berlin
    assert standing.member.budgets == (Budget("day", 10**6, 650, end_of_day),)
    assert [one.spent_nanos for one in standing.key.budgets] == [650] * 4
    assert (standing.models, standing.expires_at_ms) == (MODELS[:1], None)
    other = await both.standings.read(account, both.keys[0][1].id)
    assert other is not None and (other.member, other.member_id, other.models) == (None, "", ())
    assert (other.key.spent_nanos, other.key.budgets, other.expires_at_ms) == (0, (), START_US // 1000 + 100_000)
    assert other.account == standing.account


@pytest.mark.parametrize("seed", range(3))
async def test_a_long_story_over_days_and_zones(both: Told, seed: int) -> None:
    chance = random.Random(seed)
    await begin(both, chance.choice(ZONES))
    for number in range(150):
        request, which = number, chance.randrange(2)
        await both.do(("admit", 0, which, request, 40, chance.choice([700, 2_500]), 0, HERE))
        recent = max(0, request - chance.randrange(5))
        steps: list[tuple[Any, ...]] = [
            ("finish", 0, recent, (7, 9), chance.choice([None, 5])),
            ("settle", 0, recent, chance.choice([1, 3]), chance.choice([5, 999])),
            ("settle", 0, request, 3, 1_234),
            ("sleep", chance.choice([1, 30 * 10**6, 61 * 10**6, HOUR_US, 9 * HOUR_US])),
            ("void", 0, recent),
        ]
        for step in chance.sample(steps, 3):
            await both.do(step)
        if number % 15 == 0:
            await both.do(("account", 0, "active", 10**6, chance.choice(ZONES), chance.choice([BUDGETS, Limits()])))
            await both.do(("key", 0, 1, "active", chance.random() < 0.5, Limits(rpm=9), chance.randrange(3)))
        await both.compare(0)
        await both.compare(1)
    assert both.accounts[0].spent > 10_000


async def test_a_budget_is_told_as_it_is_refused(both: Told) -> None:
    await begin(both, "America/New_York", Limits(budget_day_nanos=1_000, budget_month_nanos=9_000))
    await both.do(("admit", 0, 0, 0, 40, 800, 0, HERE))
    await both.do(("settle", 0, 0, 3, 800))
    for hours in (1, 30, 24 * 40):
        await both.do(("sleep", hours * HOUR_US))
        account, key = both.accounts[0], both.keys[0][0]
        refused = both.model.admit(account, key, _asking(account.id, key.id, 10_000))
        standing = await both.standings.read(account.id, key.id)
        assert isinstance(refused, Refused) and standing is not None
        real = await both.leases.admit(_asking(account.id, key.id, 10_000))
        assert isinstance(real, Refused) and (real.reason, real.scope, real.detail) == ("budget", "account", "day")
        assert standing.account.budgets[0] == Budget("day", real.limit, real.value, real.reset_s)


async def test_nothing_is_told_that_nobody_has_checked_and_nothing_changes(both: Told) -> None:
    await begin(both)
    before = await both._everything()
    account_id, key_id = both.accounts[0].id, both.keys[0][0].id
    assert await both.standings.read(account_id, key_id) is not None
    gate = rediskeys.gate(ids.partition(account_id))
    run_id = await both.redis.get(gate)
    await both.redis.set(gate, "0" * 40)
    try:
        assert await both.standings.read(account_id, key_id) is None
    finally:
        await both.redis.set(gate, run_id)
    assert await both._everything() == before


async def test_check_and_standing_travel_together(redis_url: str, both: Told) -> None:
    """One pipeline for both, once it is known whose key it is; the key may be given to somebody else meanwhile."""
    await begin(both)
    pipelines: list[int] = []

    class Counting(Scripts):
        async def _execute(self, calls: Any, *, with_texts: bool = False) -> list[Any]:
            pipelines.append(len(calls))
            return await super()._execute(calls, with_texts=with_texts)

    scripts = Counting(both.redis)
    leases = Leases(both.redis, scripts)
    standings = Standings(scripts, leases.member_of)
    account_id, key_id = both.accounts[0].id, both.keys[0][0].id

    async def ask() -> tuple[Any, Any]:
        return await asyncio.gather(leases.check(account_id, key_id, address=HERE), standings.read(account_id, key_id))

    await ask()
    pipelines.clear()
    checked, standing = await ask()
    assert isinstance(checked, Checked) and standing.member_id == both.members[0].id
    assert pipelines == [2]
    await both.do(("key", 0, 0, "active", False, Limits(), 0))
    checked, standing = await ask()
    assert isinstance(checked, Checked) and standing.member is None


def _asking(account_id: str, key_id: str, hold_nanos: int) -> Admission:
    return Admission(
        request_id=ids.new_request_id(),
        account_id=account_id,
        key_id=key_id,
        address=HERE,
        models=MODELS[:1],
        input_tokens=1,
        hold_nanos=hold_nanos,
        memo=b"{}",
    )
