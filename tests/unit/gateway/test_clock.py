"""A clock that is more than five minutes off the store's admits nothing."""

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisAway

from libs.common import clock as real
from libs.common.metrics import Metrics
from services.gateway.clock import ClockCheck

pytestmark = pytest.mark.anyio


class Redis:
    """Tells a time that is so far behind."""

    def __init__(self, behind_ms: int) -> None:
        self.behind_ms: int | None = behind_ms

    async def time(self) -> tuple[int, int]:
        if self.behind_ms is None:
            raise RedisAway
        now_ms = real.unix_ms() - self.behind_ms
        return now_ms // 1000, now_ms % 1000 * 1000


def check(redis: Any) -> ClockCheck:
    return ClockCheck(redis, Metrics())


@pytest.mark.parametrize(
    ("behind_ms", "wrong"), [(0, False), (299_000, False), (-299_000, False), (301_000, True), (-3_600_000, True)]
)
async def test_five_minutes_either_way_are_forgiven(behind_ms: int, wrong: bool) -> None:
    clock = check(Redis(behind_ms))
    await clock.look()
    assert clock.is_wrong is wrong
    assert abs(clock.skew_ms - behind_ms) < 100


async def test_while_redis_is_away_the_last_answer_stands() -> None:
    redis = Redis(3_600_000)
    clock = check(redis)
    await clock.look()
    redis.behind_ms = None
    await clock.look()
    assert clock.is_wrong
    redis.behind_ms = 0
    await clock.look()
    assert not clock.is_wrong
