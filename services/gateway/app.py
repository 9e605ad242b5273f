"""Builds the gateway: every object once, and the two local paths that are not the relay's."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import httpx2
from nats.aio.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from libs.common import failpoints, redisclient, streams
from libs.common import metrics as metric_names
from libs.common.balances import Balances
from libs.common.books import Books
from libs.common.config import ConfigError, GatewayConfig
from libs.common.directory import Directory
from libs.common.gates import Gates
from libs.common.leases import Leases
from libs.common.metrics import Metrics
from libs.common.redisclient import RedisClient
from libs.common.runtime import spawn, stop
from libs.common.scripts import Scripts, StoreUnavailable
from libs.common.sealing import Sealer
from libs.common.standing import Standings
from libs.common.upstreams import Upstreams
from services.gateway import callers, recovery
from services.gateway.admission import Gate
from services.gateway.clock import ClockCheck
from services.gateway.cycle import BodyBudget
from services.gateway.exchange import Drains, Services
from services.gateway.free import FreePaths
from services.gateway.keeper import LeaseKeeper
from services.gateway.pool import Pool
from services.gateway.prices import Prices
from services.gateway.proxy import Proxy
from services.gateway.publisher import Publisher
from services.gateway.refusal_counts import RefusalCounts
from services.gateway.spool import Spool
from services.gateway.transport import TransportConfig, UpstreamTransport

_REPLAY_S: Final = 5.0


def create_app(
    config: GatewayConfig,
    *,
    metrics: Metrics,
    body_budget: BodyBudget,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> ASGIApp:
    """The ASGI application. `transport` replaces the way to the upstream in tests. Raises ConfigError."""
    _arm(config)
    trusted_proxies = _trusted_proxies(config)
    redis = redisclient.connect(config.redis_url)
    scripts = Scripts(redis)
    upstreams = Upstreams(redis, scripts)
    leases = Leases(redis, scripts, lease_ms=config.lease_seconds * 1000)
    keeper = LeaseKeeper(leases, metrics, lease_seconds=config.lease_seconds)
    broker = Client()
    spool = Spool(Path(config.spool_directory), metrics, bytes_max=config.spool_bytes_max)
    publisher = Publisher(broker.jetstream(), metrics, spool, is_connected=lambda: broker.is_connected)
    counts = _refusal_counts(broker, metrics, leases)
    ways = _Ways(config, metrics)
    way = ways.make if transport is None else lambda _: transport
    sealer = Sealer(config.secrets_key)
    pool = Pool(config, transport_for=way, metrics=metrics, upstreams=upstreams, sealer=sealer)
    services = Services(
        pool=pool,
        keeper=keeper,
        publisher=publisher,
        spool=spool,
        metrics=metrics,
        drains=Drains(metrics, count_max=config.drains_max, seconds=config.drain_seconds),
        config=config,
    )
    gates = Gates(redis, scripts)
    prices = Prices(Books(scripts), gates, every_s=config.price_book_seconds)
    clock = ClockCheck(redis, metrics)
    lifespan = _lifespan(services, clock, prices, counts, broker, redis, scripts)
    directory = Directory(redis, Balances(redis, scripts), upstreams, scripts)
    return Proxy(
        local=Starlette(routes=_local_routes(redis, broker, clock, prices, metrics), lifespan=lifespan),
        gate=_gate(scripts, directory, leases, gates, services, clock, counts),
        services=services,
        free=FreePaths(pool, config, metrics),
        prices=prices,
        metrics=metrics,
        body_budget=body_budget,
        body_bytes_max=config.body_bytes_max,
        trusted_proxies=trusted_proxies,
    )


def _lifespan(
    services: Services,
    clock: ClockCheck,
    prices: Prices,
    counts: RefusalCounts,
    broker: Client,
    redis: RedisClient,
    scripts: Scripts,
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    config, pool, keeper, publisher = services.config, services.pool, services.keeper, services.publisher

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        publisher.resume(recovery.recover(services.spool, services.metrics))
        connecting = spawn(streams.connect(config.nats_url, name="relay-gateway", client=broker), name="nats-connect")
        with contextlib.suppress(StoreUnavailable):  # it is tried again every second
            await pool.refresh()
        await clock.look()
        await prices.look()
        running = [
            spawn(keeper.run(), name="keep-leases"),
            spawn(pool.run(), name="follow-upstreams"),
            spawn(clock.run(), name="check-clock"),
            spawn(counts.run(), name="publish-refusals"),
            spawn(prices.run(), name="follow-prices"),
        ]
        await publisher.flush(_REPLAY_S)  # what was left goes first; NATS away does not keep us from serving
        try:
            yield
        finally:
            await publisher.flush(config.shutdown_seconds)
            await stop([connecting, *running])
            await counts.close()
            await keeper.close()
            await streams.close(broker)
            await services.spool.aclose()
            await pool.aclose()
            await scripts.drain()
            await redis.aclose()

    return lifespan


def _gate(
    scripts: Scripts,
    directory: Directory,
    leases: Leases,
    gates: Gates,
    services: Services,
    clock: ClockCheck,
    counts: RefusalCounts,
) -> Gate:
    return Gate(
        directory,
        leases,
        gates,
        services.keeper,
        services.spool,
        clock,
        counts,
        Standings(scripts, leases.member_of),
        unknown_keys_per_minute=services.config.unknown_keys_per_minute,
    )


def _refusal_counts(broker: Client, metrics: Metrics, leases: Leases) -> RefusalCounts:
    return RefusalCounts(
        broker.jetstream(), metrics, member_of=leases.member_of, is_connected=lambda: broker.is_connected
    )


def _trusted_proxies(config: GatewayConfig) -> callers.Networks:
    try:
        return callers.trusted_networks(config.trusted_proxies)
    except ValueError as error:
        raise ConfigError(f"RELAY_TRUSTED_PROXIES cannot be read: {error} (docs/configuration.md)") from None


def _arm(config: GatewayConfig) -> None:
    try:
        failpoints.arm_all(config.failpoints)
    except ValueError as error:
        raise ConfigError(f"RELAY_FAILPOINTS cannot be read: {error}") from None


def _local_routes(
    redis: RedisClient, broker: Client, clock: ClockCheck, prices: Prices, metrics: Metrics
) -> list[Route]:
    async def ready(_: Request) -> Response:
        """Redis, a clock that is right, and prices are needed to admit. NATS is not: events wait for it."""
        needed = {"redis": await redisclient.answers(redis), "clock": not clock.is_wrong, "prices": prices.is_known}
        return JSONResponse(needed | {"nats": broker.is_connected}, status_code=200 if all(needed.values()) else 503)

    async def healthy(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), media_type=metric_names.CONTENT_TYPE)

    return [Route("/healthz", healthy), Route("/readyz", ready), Route("/metrics", scrape)]


class _Ways:
    """Makes transports, one for each proxy, and shows their connections together."""

    def __init__(self, config: GatewayConfig, metrics: Metrics) -> None:
        self._config = config
        self._made: list[UpstreamTransport] = []
        metrics.gauge("relay_upstream_connections_open", lambda: sum(one.stats.open for one in self._made))
        metrics.gauge("relay_upstream_connections_idle", lambda: sum(one.stats.idle for one in self._made))

    def make(self, proxy_url: str) -> UpstreamTransport:
        """Raises ValueError for a proxy that cannot be used."""
        config = self._config
        transport = UpstreamTransport(
            TransportConfig(
                connect_timeout_s=config.upstream_connect_seconds,
                first_byte_timeout_s=config.upstream_first_byte_seconds,
                idle_timeout_s=config.upstream_idle_seconds,
                pool_connections_max=config.upstream_connections_max,
                proxy_url=proxy_url or None,
            )
        )
        self._made.append(transport)
        return transport
