"""Builds the accounting worker: stores, two consumers, the reaper, and a small health server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from nats.js.client import JetStreamContext
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from libs.common import failpoints, redisclient, streams, subjects
from libs.common import metrics as metric_names
from libs.common.balances import Balances
from libs.common.config import AccountingConfig
from libs.common.directory import Directory
from libs.common.gates import Gates
from libs.common.leases import Leases
from libs.common.metrics import Metrics
from libs.common.redisclient import RedisClient
from libs.common.runtime import spawn
from libs.common.scripts import Scripts
from libs.common.upstreams import Upstreams
from services.accounting.consumer import Consumer, ControlHandler, Handler, UsageHandler, subscribe
from services.accounting.control import ControlBatch
from services.accounting.ledger import Ledger
from services.accounting.migrate import migrate
from services.accounting.reaper import Reaper
from services.accounting.rewinder import Rewinder


async def bootstrap(config: AccountingConfig) -> None:
    """Create streams and tables where they are missing. Safe to repeat, and to run from two replicas at once."""
    broker = await streams.connect(config.nats_url, name="relay-bootstrap")
    try:
        await streams.create(broker.jetstream(), replicas=config.stream_replicas, bytes_max=config.stream_bytes_max)
        ledger = await Ledger.open(config.clickhouse_url)
        try:
            await migrate(ledger)
        finally:
            await ledger.close()
    finally:
        await streams.close(broker)


async def _consumers(
    config: AccountingConfig,
    jetstream: JetStreamContext,
    ledger: Ledger,
    redis: RedisClient,
    scripts: Scripts,
    metrics: Metrics,
) -> list[Consumer]:
    balances, gates = Balances(redis, scripts), Gates(redis, scripts)
    control = ControlBatch(ledger, Directory(redis, balances, Upstreams(redis, scripts), scripts))
    handlers: list[tuple[str, str, Handler]] = [
        (subjects.STREAM_USAGE, "usage.>", UsageHandler(ledger, balances, gates, metrics)),
        (subjects.STREAM_CONTROL, "control.>", ControlHandler(control, gates, metrics)),
    ]
    return [
        Consumer(
            jetstream,
            await subscribe(jetstream, stream, subject),
            handler,
            metrics,
            batch_messages_max=config.batch_messages_max,
            batch_seconds=config.batch_seconds,
        )
        for stream, subject, handler in handlers
    ]


def _rewinder(
    config: AccountingConfig,
    jetstream: JetStreamContext,
    ledger: Ledger,
    redis: RedisClient,
    scripts: Scripts,
    metrics: Metrics,
) -> Rewinder:
    balances = Balances(redis, scripts)
    directory = Directory(redis, balances, Upstreams(redis, scripts), scripts)
    gates = Gates(redis, scripts)
    return Rewinder(gates, jetstream, ledger, balances, directory, metrics, rewind_s=config.rewind_seconds)


def create_app(config: AccountingConfig) -> Starlette:
    """The health server, whose lifespan is the worker."""
    failpoints.arm_all(config.failpoints)
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stores:
            broker = await streams.connect(config.nats_url, name="relay-accounting")
            stores.push_async_callback(streams.close, broker)
            await streams.check(broker.jetstream())
            ledger = await Ledger.open(config.clickhouse_url)
            stores.push_async_callback(ledger.close)
            redis = redisclient.connect(config.redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
            stores.push_async_callback(redis.aclose)
            scripts = Scripts(redis)
            consumers = await _consumers(config, broker.jetstream(), ledger, redis, scripts, metrics)
            reaper = Reaper(Leases(redis, scripts), broker.jetstream(), metrics, every_s=config.reap_seconds)
            rewinder = _rewinder(config, broker.jetstream(), ledger, redis, scripts, metrics)
            stopping = asyncio.Event()
            workers = [spawn(consumer.run(stopping), name="consume") for consumer in consumers]
            workers.append(spawn(reaper.run(stopping), name="reap"))
            workers.append(spawn(rewinder.run(stopping), name="rewind"))
            app.state.ready = lambda: (
                broker.is_connected
                and not any(worker.done() for worker in workers)
                and all(consumer.is_fetching for consumer in consumers)
            )
            try:
                yield
            finally:
                stopping.set()
                _, late = await asyncio.wait(workers, timeout=config.shutdown_seconds)
                for worker in late:  # what it had in hand is delivered again
                    worker.cancel()
                await asyncio.gather(*late, return_exceptions=True)

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
