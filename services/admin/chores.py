"""What the control plane does by itself, in one of its processes at a time: whoever holds the lock in Redis.

A process that stands still loses the lock and may wake up in the middle of a chore: every chore's writes are compare-and-set or
entries with an id of their own, so that two at once do nothing twice.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from redis.exceptions import RedisError

from libs.common import rediskeys
from libs.common.config import AdminConfig
from libs.common.redisclient import RedisClient
from services.admin.backlog import Backlog
from services.admin.measures import Measures
from services.admin.new_models import NewModels
from services.admin.outbox import Outbox
from services.admin.promotions_end import PromotionsEnd
from services.admin.resource import Context
from services.admin.watcher import Watcher
from services.admin.windows import Windows

_log: Final = logging.getLogger("relay.chores")
_TURN_S: Final = 1.0
_LOCK_S: Final = 15
_OUTBOX_S: Final = 2.0


class Chore:
    """Something to do every so often."""

    def __init__(self, name: str, every_s: float, do: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self.every_s = every_s
        self.do = do
        self.due_at = 0.0


class Chores:
    """See the module's docstring."""

    def __init__(self, config: AdminConfig, context: Context, redis: RedisClient, broker: Client) -> None:
        self._context = context
        self._redis = redis
        self._mark = secrets.token_hex(8)
        self._chores = [
            Chore("end-promotions", config.promotions_seconds, PromotionsEnd(context).run),
            Chore("look-for-models", config.new_models_seconds, NewModels(context).run),
            Chore("alerts", config.alerts_seconds, _watcher(context, redis, broker).run),
            Chore("notices", _OUTBOX_S, Outbox(context).run),
        ]

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TURN_S)
            if not self._context.mirror.is_whole or not await self._holds_lock():
                continue
            for chore in self._chores:
                if loop.time() < chore.due_at:
                    continue
                chore.due_at = loop.time() + chore.every_s
                try:
                    await chore.do()
                except Exception as error:  # noqa: BLE001 - logged; a chore that ended would never be done again
                    _log.warning("%s is tried again: %s", chore.name, str(error) or type(error).__name__)

    async def close(self) -> None:
        """Nothing is open between two turns."""

    async def _holds_lock(self) -> bool:
        key = rediskeys.lock("chores")
        try:
            if await self._redis.set(key, self._mark, nx=True, ex=_LOCK_S):
                return True
            holder = await self._redis.get(key)
            if holder != self._mark.encode():
                return False
            await self._redis.expire(key, _LOCK_S)
        except (RedisError, OSError):
            return False
        return True


def _watcher(context: Context, redis: RedisClient, broker: Client) -> Watcher:
    windows, backlog = Windows(context.ledger), Backlog(broker)
    return Watcher(context, Measures(redis, context.balances, context.mirror, windows, context.pool, backlog))
