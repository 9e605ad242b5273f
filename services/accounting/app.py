"""Builds the accounting worker: stores, two consumers, reaper, rewinder, roll-ups, and a small health server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from libs.common import failpoints, streams, subjects
from libs.common import metrics as metric_names
from libs.common.config import AccountingConfig, ConfigError
from libs.common.leases import Leases
from libs.common.metrics import Metrics
from libs.common.runtime import spawn, stop
from services.accounting.consumer import Consumer, ControlHandler, Handler, UsageHandler, subscribe
from services.accounting.control import ControlBatch
from services.accounting.ledger import Ledger
from services.accounting.migrate import Layout, migrate
from services.accounting.reaper import Reaper
from services.accounting.rewinder import Rewinder
from services.accounting.rollups import Rollups
from services.accounting.stores import Stores, open_stores

_USAGE_LANES: Final = 2
"""Batches in hand at once: while one waits for ClickHouse or Redis, the next is read and priced. They share nothing but the
durable consumer, just as workers do; changes of control are applied in their order, and have one."""


async def bootstrap(config: AccountingConfig) -> None:
    """Create streams and tables where they are missing. Safe to repeat, and to run from two replicas at once."""
    broker = await streams.connect(config.nats_url, name="relay-bootstrap")
    try:
        await streams.create(broker.jetstream(), replicas=config.stream_replicas, bytes_max=config.stream_bytes_max)
        ledger = await Ledger.open(config.clickhouse_url)
        try:
            await migrate(ledger, Layout(config.clickhouse_cluster, config.ledger_partition, config.ledger_detail_days))
        finally:
            await ledger.close()
    finally:
        await streams.close(broker)


async def _consumers(stores: Stores, rollups: Rollups, metrics: Metrics) -> list[Consumer]:
    config, gates, ledger = stores.config, stores.gates, stores.ledger
    usage = UsageHandler(ledger, stores.balances, stores.books, gates, rollups, metrics)
    control = ControlHandler(ControlBatch(ledger, stores.directory), gates, metrics)
    handlers: list[tuple[str, str, Handler]] = [
        *[(subjects.STREAM_USAGE, "usage.>", usage)] * _USAGE_LANES,
        (subjects.STREAM_CONTROL, "control.>", control),
    ]
    return [
        Consumer(
            stores.jetstream,
            await subscribe(stores.jetstream, stream, subject),
            handler,
            metrics,
            batch_messages_max=config.batch_messages_max,
            batch_seconds=config.batch_seconds,
        )
        for stream, subject, handler in handlers
    ]


def _rewinder(stores: Stores, metrics: Metrics) -> Rewinder:
    return Rewinder(
        stores.gates,
        stores.jetstream,
        stores.ledger,
        stores.balances,
        stores.directory,
        stores.books,
        metrics,
        rewind_s=stores.config.rewind_seconds,
    )


@contextlib.asynccontextmanager
async def _working(config: AccountingConfig, metrics: Metrics) -> AsyncIterator[Callable[[], bool]]:
    """All loops of the worker; whether they work. At the end what is in hand is finished, or comes again."""
    async with open_stores(config, name="relay-accounting", connect_s=None) as stores:
        rollups = Rollups(stores.ledger, metrics, every_s=config.rollup_seconds)
        consumers = await _consumers(stores, rollups, metrics)
        reaper = Reaper(Leases(stores.redis, stores.scripts), stores.jetstream, metrics, every_s=config.reap_seconds)
        stopping = asyncio.Event()
        workers = [spawn(consumer.run(stopping), name="consume") for consumer in consumers]
        workers.append(spawn(reaper.run(stopping), name="reap"))
        workers.append(spawn(_rewinder(stores, metrics).run(stopping), name="rewind"))
        workers.append(spawn(rollups.run(stopping), name="sum-up"))

        def works() -> bool:
            return (
                stores.broker.is_connected
                and not any(worker.done() for worker in workers)
                and all(consumer.is_fetching for consumer in consumers)
            )

        try:
            yield works
        finally:
            stopping.set()
            _, late = await asyncio.wait(workers, timeout=config.shutdown_seconds)
            await stop(late)  # what they had in hand is delivered again


def create_app(config: AccountingConfig) -> Starlette:
    """The health server, whose lifespan is the worker. Raises ConfigError."""
    try:
        failpoints.arm_all(config.failpoints)
    except ValueError as error:
        raise ConfigError(f"RELAY_FAILPOINTS cannot be read: {error}") from None
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _working(config, metrics) as works:
            app.state.ready = works
            yield

    async def ready(request: Request) -> Response:
        working = bool(request.app.state.ready())
        return JSONResponse({"consuming": working}, status_code=200 if working else 503)

    async def healthy(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=metric_names.CONTENT_TYPE)

    return Starlette(
        routes=[Route("/healthz", healthy), Route("/readyz", ready), Route("/metrics", scrape)],
        lifespan=lifespan,
    )
