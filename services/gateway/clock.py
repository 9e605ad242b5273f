"""Whether this machine's clock can be believed. Ids of requests carry its time; rows and budgets go by it."""

import asyncio
import logging
from typing import Final

from redis.exceptions import RedisError

from libs.common import clock
from libs.common.metrics import Metrics
from libs.common.redisclient import RedisClient

_log: Final = logging.getLogger("relay.clock")
_EVERY_S: Final = 10.0
_SKEW_MS_MAX: Final = 300_000


class ClockCheck:
    """Compares it with Redis's, by which limits and leases go. While Redis is away the last answer stands."""

    def __init__(self, redis: RedisClient, metrics: Metrics) -> None:
        self._redis = redis
        self.skew_ms = 0
        """How far ahead this machine is; negative: behind."""
        metrics.gauge("relay_clock_skew_ms", lambda: self.skew_ms)

    @property
    def is_wrong(self) -> bool:
        """Off by more than five minutes: nothing may be admitted."""
        return abs(self.skew_ms) > _SKEW_MS_MAX

    async def run(self) -> None:
        """Look every ten seconds, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Once. Half of the time the answer took is taken off."""
        before_ms = clock.unix_ms()
        try:
            seconds, microseconds = await self._redis.time()
        except (RedisError, OSError):
            return
        after_ms = clock.unix_ms()
        was_wrong = self.is_wrong
        self.skew_ms = (before_ms + after_ms) // 2 - (int(seconds) * 1000 + int(microseconds) // 1000)
        if self.is_wrong and not was_wrong:
            _log.critical("this clock is %d s off the store's: no request is admitted", self.skew_ms // 1000)
        elif was_wrong and not self.is_wrong:
            _log.warning("this clock is right again; requests are admitted")
