"""START HERE. Builds the control plane: one list of operations, from which router and OpenAPI document are made.

Every operation asks for the admin token; there is no way to add one that does not.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from nats.aio.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route

from libs.common import redisclient, streams
from libs.common.balances import Balances
from libs.common.config import AdminConfig, ConfigError
from libs.common.directory import Directory
from libs.common.redisclient import RedisClient
from libs.common.runtime import spawn
from libs.common.scripts import Scripts
from libs.common.sealing import Sealer
from libs.common.upstreams import Upstreams
from services.admin import accounts, balance, keys, members, openapi, requests, upstreams
from services.admin import credits as credit_entries
from services.admin.control import Control
from services.admin.ledger import Ledger
from services.admin.problems import Missing, Problem, WrongMethod, answer_problem, answer_unexpected
from services.admin.resource import Context, Operation, authorize, check_query

PREFIX: Final = "/api/v1"
OPERATIONS: Final = (
    *accounts.OPERATIONS,
    *credit_entries.OPERATIONS,
    *members.OPERATIONS,
    *keys.OPERATIONS,
    *balance.OPERATIONS,
    *upstreams.OPERATIONS,
    *requests.OPERATIONS,
)
_TOKEN_CHARS_MIN: Final = 16
_HOME: Final = """The control plane of this relay.

API        /api/v1        Authorization: Bearer <admin token>
OpenAPI    /api/openapi.json

There is no console yet; docs/api.md in the repository shows the API by example.
"""


def create_app(config: AdminConfig) -> Starlette:
    """The application. Raises ConfigError for a token that is too short to be one, and a secrets key that is none."""
    if len(config.admin_token) < _TOKEN_CHARS_MIN:
        raise ConfigError(f"RELAY_ADMIN_TOKEN must have at least {_TOKEN_CHARS_MIN} characters")
    broker, redis = Client(), redisclient.connect(config.redis_url)
    context = _context(config, broker, redis)
    ledger = context.ledger

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        connecting = spawn(streams.connect(config.nats_url, name="relay-admin", client=broker), name="nats-connect")
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.wait([connecting])
            await streams.close(broker)
            await ledger.close()
            await redis.aclose()

    async def ready(_: Request) -> Response:
        state = {
            "nats": broker.is_connected,
            "redis": await redisclient.answers(redis),
            "clickhouse": await ledger.answers(),
        }
        return JSONResponse(state, status_code=200 if all(state.values()) else 503)

    app = Starlette(
        routes=[
            *(_route(context, operation) for operation in OPERATIONS),
            Route("/api/openapi.json", _openapi),
            Route("/healthz", _healthy),
            Route("/readyz", ready),
            Route("/", _home),
        ],
        exception_handlers={Problem: answer_problem, 404: _no_path, 405: _no_method, 500: answer_unexpected},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    return app


def _context(config: AdminConfig, broker: Client, redis: RedisClient) -> Context:
    try:
        sealer = Sealer(config.secrets_key)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    scripts = Scripts(redis)
    balances, pool = Balances(redis, scripts), Upstreams(redis, scripts)
    return Context(
        control=Control(broker, Directory(redis, balances, pool)),
        ledger=Ledger(config.clickhouse_url),
        balances=balances,
        sealer=sealer,
        pool=pool,
        admin_token=config.admin_token,
    )


def _route(context: Context, operation: Operation) -> Route:
    return Route(PREFIX + operation.path, _authorized(context, operation), methods=[operation.method])


def _authorized(context: Context, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        authorize(request, context.admin_token)
        check_query(request, operation.query)
        return await operation.handler(context, request)

    return endpoint


async def _openapi(_: Request) -> Response:
    return JSONResponse(openapi.document(OPERATIONS, prefix=PREFIX))


async def _healthy(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _home(_: Request) -> Response:
    return PlainTextResponse(_HOME)


async def _no_path(request: Request, error: Exception) -> Response:
    return await answer_problem(request, Missing("There is no such path; see /api/openapi.json."))


async def _no_method(request: Request, error: Exception) -> Response:
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = ", ".join(sorted({method for route in matching for method in route.methods}))
    problem = WrongMethod(f"This path takes {allowed}; see /api/openapi.json.", allow=allowed)
    return await answer_problem(request, problem)
