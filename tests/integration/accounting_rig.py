"""Accounting on real stores: a worker inside the test, a publisher, and the oracle that adds up both sides."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Self

import nats.errors
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import events, ids, redisclient, streams, subjects
from libs.common.balances import Balance, Balances
from libs.common.config import AccountingConfig
from libs.common.events import ControlChanged, UsageRecorded
from libs.common.scripts import StoreUnavailable
from services.accounting.app import bootstrap, create_app
from services.accounting.ledger import Ledger
from tests.unit.accounting.samples import account, changed, credit

WAIT_S: Final = 30.0
ACK_WAIT_S: Final = 1
_bootstrapped: Final[set[tuple[str, str]]] = set()


class Rig:
    """Addresses and clients."""

    def __init__(self, config: AccountingConfig, broker: Client, redis: Any, ledger: Ledger) -> None:
        self.config = config
        self.broker = broker
        self.jetstream: JetStreamContext = broker.jetstream()
        self.redis = redis
        self.balances = Balances(redis)
        self.ledger = ledger

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Self]:
        """Bootstrap the stores and connect to them."""
        config = AccountingConfig(
            nats_url=nats_url,
            redis_url=redis_url,
            clickhouse_url=clickhouse_url,
            batch_messages_max=20,
            batch_seconds=0.05,
            shutdown_seconds=2,
        )
        if (nats_url, clickhouse_url) not in _bootstrapped:
            await bootstrap(config)
            _bootstrapped.add((nats_url, clickhouse_url))
        async with contextlib.AsyncExitStack() as stack:
            broker = await streams.connect(nats_url, name="test")
            stack.push_async_callback(broker.close)
            redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
            stack.push_async_callback(redis.aclose)
            ledger = await Ledger.open(clickhouse_url)
            stack.push_async_callback(ledger.close)
            yield cls(config, broker, redis, ledger)

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[Callable[[], bool]]:
        """A worker runs; whether it says that it is ready."""
        app = create_app(self.config)
        async with app.router.lifespan_context(app):
            yield app.state.ready

    async def shorten_ack_wait(self) -> None:
        """What a lost connection had in hand comes again after a minute: too long for a test."""
        for stream in (subjects.STREAM_USAGE, subjects.STREAM_CONTROL):
            info = await self.jetstream.consumer_info(stream, subjects.CONSUMER_ACCOUNTING)
            info.config.ack_wait = ACK_WAIT_S
            await self.jetstream.add_consumer(stream, info.config)

    async def publish(self, sent: Sequence[UsageRecorded], *, again: bool = False) -> None:
        """One message. Repeated until the server has taken it; `again`: under an id of its own, so that it comes twice."""
        message_id = ids.new_request_id() if again else events.message_id(sent)
        subject = subjects.usage_subject(ids.partition(sent[0].account_id))
        await self.publish_bytes(subject, events.encode_usage(sent), subjects.STREAM_USAGE, message_id)

    async def publish_bytes(self, subject: str, payload: bytes, stream: str, message_id: str = "") -> int:
        """Any message; its sequence."""
        headers = {"Nats-Msg-Id": message_id or ids.new_request_id()}
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    ack = await self.jetstream.publish(subject, payload, timeout=1, stream=stream, headers=headers)
                    return ack.seq
                except (nats.errors.Error, APIError, OSError):
                    await asyncio.sleep(0.05)

    async def change(self, event: ControlChanged) -> int:
        """Publish a control event, as admin does before it applies it; its sequence."""
        subject = subjects.control_subject(str(event.entity.__struct_config__.tag), event.entity.id)
        return await self.publish_bytes(subject, events.encode_control(event), subjects.STREAM_CONTROL)

    async def new_account(self, amount_nanos: int = 10**12) -> str:
        """An account and its credit, on their way through CONTROL."""
        account_id = ids.new_account_id()
        await self.change(changed(account(account_id)))
        await self.change(changed(credit(account_id, amount_nanos)))
        return account_id

    async def balance(self, account_id: str) -> Balance | None:
        """What Redis says, as soon as it says anything."""
        while True:
            try:
                return await self.balances.read(account_id)
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    async def archived(self, account_id: str) -> tuple[int, int]:
        """Rows of an account, and what they add up to."""
        statement = f"SELECT count(), sum(toInt128(total_nanos)) FROM usage FINAL WHERE account_id = '{account_id}'"
        ((rows, total),) = await self.ledger.query(statement)
        return int(rows), int(total)

    async def settled(self, account_id: str, rows: int, spent: int, granted: int = 10**12) -> None:
        """Wait until archive and balance both say so."""
        wanted = Balance(granted - spent, 0, spent, granted)

        async def agree() -> bool:
            return (
                await self.balance(account_id) == wanted
                and await self.archived(account_id) == (rows, spent)
                and await self._credits(account_id) == granted
            )

        await until(agree)

    async def _credits(self, account_id: str) -> int:
        statement = f"SELECT sum(amount_nanos) FROM credits FINAL WHERE account_id = '{account_id}'"
        ((amount_nanos,),) = await self.ledger.query(statement)
        return int(amount_nanos)

    async def parked(self) -> list[tuple[str, bytes, str]]:
        """Subject, payload and reason of everything in DLQ."""
        state = (await self.jetstream.stream_info(subjects.STREAM_DLQ)).state
        found = []
        for sequence in range(1, state.last_seq + 1):
            message = await self.jetstream.get_msg(subjects.STREAM_DLQ, seq=sequence)
            assert message.headers is not None
            found.append((str(message.subject), message.data or b"", message.headers["Relay-Reason"]))
        return found


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = WAIT_S) -> None:
    """Return once it holds."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        asked = loop.time()
        while not await condition():
            await asyncio.sleep(
                max(0.01, loop.time() - asked)
            )  # what asking costs is missed by those who are waited for
            asked = loop.time()
