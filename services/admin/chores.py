"""What the control plane does by itself, in one of its processes at a time: whoever holds the lock in Redis.

A process that stands still loses the lock and may wake up in the middle of a chore: every chore's writes are compare-and-set or
entries with an id of their own, so that two at once do nothing twice.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from redis.exceptions import RedisError

from libs.common import rediskeys
from libs.common.config import AdminConfig
from libs.common.entities import RuleKind
from libs.common.redisclient import RedisClient
from libs.common.runtime import spawn, stop
from services.admin.alerts.backlog import Backlog
from services.admin.alerts.measures import Measures, Reading
from services.admin.alerts.outbox import Outbox
from services.admin.alerts.watcher import Watcher
from services.admin.alerts.windows import Windows
from services.admin.prices import new_models
from services.admin.prices.new_models import NewModels
from services.admin.promotions_end import PromotionsEnd
from services.admin.resource import Context

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
        self._running: dict[str, asyncio.Task[None]] = {}
        self._chores = [
            Chore("end-promotions", config.promotions_seconds, PromotionsEnd(context).run),
            Chore("look-for-models", config.new_models_seconds, NewModels(context).run),
            Chore("alerts", config.alerts_seconds, _watcher(context, redis, broker).run),
            Chore("notices", _OUTBOX_S, Outbox(context).run),
        ]

    async def run(self) -> None:
        """For ever. Each chore is a task of its own: one that waits for somebody slow does not keep the others waiting."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TURN_S)
            if not self._context.mirror.is_whole or not await self._holds_lock():
                continue
            for chore in self._chores:
                if loop.time() >= chore.due_at and chore.name not in self._running:
                    chore.due_at = loop.time() + chore.every_s
                    task = self._running[chore.name] = spawn(_done(chore), name=chore.name)
                    task.add_done_callback(functools.partial(self._ended, chore.name))

    async def close(self) -> None:
        """Stop what is being done: it is done again by whoever holds the lock next."""
        running = list(self._running.values())
        await stop(running)
        with contextlib.suppress(RedisError, OSError):  # another need not wait until it is over
            if await self._redis.get(rediskeys.lock("chores")) == self._mark.encode():
                await self._redis.delete(rediskeys.lock("chores"))

    def _ended(self, name: str, _: asyncio.Task[None]) -> None:
        self._running.pop(name, None)

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


async def _done(chore: Chore) -> None:
    try:
        await chore.do()
    except Exception as error:  # noqa: BLE001 - logged; it is done again when it is due
        _log.warning("%s is tried again: %s", chore.name, str(error) or type(error).__name__)


def _watcher(context: Context, redis: RedisClient, broker: Client) -> Watcher:
    windows, backlog = Windows(context.ledger), Backlog(broker)
    others: dict[RuleKind, Reading] = {"unknown_model": new_models.reading(context)}
    measures = Measures(redis, context.balances, context.mirror, windows, context.pool, backlog, others)
    return Watcher(context, measures)
