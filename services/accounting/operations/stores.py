"""The stores an operator's command works on, opened for as long as it runs."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import redisclient, streams
from libs.common.balances import Balances
from libs.common.config import AccountingConfig
from libs.common.directory import Directory
from libs.common.gates import Gates
from libs.common.redisclient import RedisClient
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.upstreams import Upstreams
from services.accounting.ledger import Ledger, LedgerUnavailable

_CONNECT_S: Final = 10.0
TROUBLE: Final = (StoreUnavailable, LedgerUnavailable, nats.errors.Error, APIError, OSError, TimeoutError)
"""What a store that is away, or goes away, raises."""


class Stores:
    """See the module's docstring."""

    def __init__(self, config: AccountingConfig, broker: Client, ledger: Ledger, redis: RedisClient) -> None:
        self.config = config
        self.jetstream: JetStreamContext = broker.jetstream()
        self.ledger = ledger
        self.redis = redis
        scripts = Scripts(redis)
        self.scripts = scripts
        self.balances = Balances(redis, scripts)
        self.directory = Directory(redis, self.balances, Upstreams(redis, scripts), scripts)
        self.gates = Gates(redis, scripts)


@contextlib.asynccontextmanager
async def open_stores(config: AccountingConfig) -> AsyncIterator[Stores]:
    """Connect to all three. Raises what connecting raises, TimeoutError after ten seconds."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(_CONNECT_S):
            broker = await streams.connect(config.nats_url, name="relay-operator")
            stack.push_async_callback(streams.close, broker)
            await streams.check(broker.jetstream())
            ledger = await Ledger.open(config.clickhouse_url)
            stack.push_async_callback(ledger.close)
        redis = redisclient.connect(config.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
        stack.push_async_callback(redis.aclose)
        yield Stores(config, broker, ledger, redis)


class Output:
    """Lines for a person, or one JSON object a line for a program."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def say(self, text: str, **fields: Any) -> None:
        """A finding, with what a program wants to know of it."""
        if self._as_json:
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def progress(self, text: str) -> None:
        """How far it is: for a person who waits."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
