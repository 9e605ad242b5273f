"""Builds the gateway: every object once, and the two local paths that are not the relay's."""

import contextlib
from collections.abc import AsyncIterator

import httpx2
from nats.aio.client import Client
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from libs.common import metrics as metric_names
from libs.common import pricebook, redisclient, streams
from libs.common.balances import Balances
from libs.common.config import GatewayConfig
from libs.common.directory import Directory
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from services.gateway.admission import Admission
from services.gateway.cycle import BodyBudget
from services.gateway.exchange import Drains, Services
from services.gateway.free import FreePaths
from services.gateway.proxy import Proxy
from services.gateway.publisher import Publisher
from services.gateway.transport import TransportConfig, UpstreamTransport
from services.gateway.upstream import Upstream


def create_app(
    config: GatewayConfig,
    *,
    metrics: Metrics,
    body_budget: BodyBudget,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> ASGIApp:
    """The ASGI application. `transport` replaces the way to the upstream in tests."""
    book = pricebook.load()
    redis = redisclient.connect(config.redis_url)
    balances = Balances(redis)
    broker = Client()
    publisher = Publisher(broker.jetstream(), metrics, unpublished_max=config.unpublished_events_max)
    transport = transport or _upstream_transport(config, metrics)
    upstream = Upstream(transport, url=config.upstream_url, api_key=config.upstream_api_key)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        connecting = spawn(streams.connect(config.nats_url, name="relay-gateway", client=broker), name="nats-connect")
        try:
            yield
        finally:
            await publisher.flush(config.shutdown_seconds)
            connecting.cancel()
            await streams.close(broker)
            await transport.aclose()
            await redis.aclose()

    services = Services(
        upstream=upstream,
        publisher=publisher,
        metrics=metrics,
        drains=Drains(metrics, count_max=config.drains_max, seconds=config.drain_seconds),
        price_book_version=book.version,
        error_body_bytes_max=config.error_body_bytes_max,
    )
    return Proxy(
        local=Starlette(routes=_local_routes(redis, broker, metrics), lifespan=lifespan),
        gate=Admission(Directory(redis, balances), balances),
        services=services,
        free=FreePaths(upstream, book, metrics),
        book=book,
        metrics=metrics,
        body_budget=body_budget,
        body_bytes_max=config.body_bytes_max,
    )


def _local_routes(redis: Redis, broker: Client, metrics: Metrics) -> list[Route]:
    async def ready(_: Request) -> Response:
        """Redis is needed to admit. NATS is not: events wait for it."""
        redis_up = await redisclient.answers(redis)
        state = {"redis": redis_up, "nats": broker.is_connected}
        return JSONResponse(state, status_code=200 if redis_up else 503)

    async def healthy(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=metric_names.CONTENT_TYPE)

    return [Route("/healthz", healthy), Route("/readyz", ready), Route("/metrics", scrape)]


def _upstream_transport(config: GatewayConfig, metrics: Metrics) -> UpstreamTransport:
    transport = UpstreamTransport(
        TransportConfig(
            connect_timeout_s=config.upstream_connect_seconds,
            first_byte_timeout_s=config.upstream_first_byte_seconds,
            idle_timeout_s=config.upstream_idle_seconds,
            pool_connections_max=config.upstream_connections_max,
            proxy_url=config.upstream_proxy or None,
        )
    )
    metrics.gauge("relay_upstream_connections_open", lambda: transport.stats.open)
    metrics.gauge("relay_upstream_connections_idle", lambda: transport.stats.idle)
    return transport
