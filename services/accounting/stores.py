"""The stores a worker or an operator's command works on, opened for as long as it runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import nats.errors
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import redisclient, streams
from libs.common.balances import Balances
from libs.common.books import Books
from libs.common.config import AccountingConfig
from libs.common.directory import Directory
from libs.common.gates import Gates
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.upstreams import Upstreams
from services.accounting.ledger import Ledger, LedgerUnavailable

TROUBLE: Final = (StoreUnavailable, LedgerUnavailable, nats.errors.Error, APIError, OSError, TimeoutError)
"""What a store that is away, or goes away, raises."""


class Stores:
    """Clients, and what gives Redis's scripts a meaning."""

    def __init__(self, config: AccountingConfig, broker: Client, ledger: Ledger, redis: RedisClient) -> None:
        self.config = config
        self.broker = broker
        self.jetstream: JetStreamContext = broker.jetstream()
        self.ledger = ledger
        self.redis = redis
        self.scripts = Scripts(redis)
        self.balances = Balances(redis, self.scripts)
        self.directory = Directory(redis, self.balances, Upstreams(redis, self.scripts), self.scripts)
        self.books = Books(self.scripts)
        self.gates = Gates(redis, self.scripts)


@contextlib.asynccontextmanager
async def open_stores(config: AccountingConfig, *, name: str, connect_s: float | None) -> AsyncIterator[Stores]:
    """Connect to all three. Raises StreamMissing, LedgerUnavailable; TimeoutError if NATS is not there within `connect_s`."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(connect_s):
            broker = await streams.connect(config.nats_url, name=name)
            stack.push_async_callback(streams.close, broker)
            await streams.check(broker.jetstream())
            ledger = await Ledger.open(config.clickhouse_url)
            stack.push_async_callback(ledger.close)
        redis = redisclient.connect(config.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
        stack.push_async_callback(redis.aclose)
        yield Stores(config, broker, ledger, redis)
