"""START HERE. Builds the control plane: one list of operations, from which router and OpenAPI document are made.

Every operation names its roles; there is no way to add one that does not. A call for another account than the caller's is
answered as if there were no such account, whatever the operation.
"""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
from nats.aio.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match, Route

from libs.common import failpoints, redisclient, streams
from libs.common.balances import Balances
from libs.common.config import AdminConfig, ConfigError
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey
from libs.common.redisclient import RedisClient
from libs.common.runtime import spawn, stop
from libs.common.scripts import Scripts
from libs.common.sealing import Sealer
from libs.common.standing import Standings
from libs.common.upstreams import Upstreams
from services.admin import access, openapi, routes, setup
from services.admin.authentication import Authentication, check_account
from services.admin.chores import Chores
from services.admin.control import Control
from services.admin.ledger import Ledger
from services.admin.mirror import Mirror
from services.admin.notices.senders import Senders, SenderSettings
from services.admin.passwords import Passwords
from services.admin.problems import (
    Forbidden,
    Missing,
    Overtaken,
    PreconditionFailed,
    Problem,
    WrongMethod,
    answer_problem,
    answer_unexpected,
)
from services.admin.resource import CHANGED, Call, Context, Operation, check_query, match_of
from services.admin.resources.accounts import find_account
from services.admin.sessions import Sessions

PREFIX: Final = "/api/v1"
OPERATIONS: Final = routes.OPERATIONS
OPEN_PATHS: Final = frozenset({"/api/openapi.json", "/healthz", "/readyz", "/", "/link"})
"""Beside operations that are open to all: nothing of anybody's is there."""
_TOKEN_CHARS_MIN: Final = 16
_HOME: Final = """The control plane of this relay.

API        /api/v1        Authorization: Bearer <session or service token>
OpenAPI    /api/openapi.json

There is no console yet; docs/api.md in the repository shows the API by example.
"""
_LINK: Final = """This link sets your password. What follows # in it is its token; send it once, within three days:

curl -X POST {url}/api/v1/links/accept -H 'content-type: application/json' \\
  -d '{{"token": "rli_...", "email": "you@example.com", "password": "at least 12 characters"}}'

The answer holds a session token. Later ones come from POST /api/v1/sessions.
"""


def create_app(config: AdminConfig) -> Starlette:
    """The application. Raises ConfigError for a token that is too short to be one, and a secrets key that is none."""
    if config.admin_token and len(config.admin_token) < _TOKEN_CHARS_MIN:
        raise ConfigError(f"RELAY_ADMIN_TOKEN must have at least {_TOKEN_CHARS_MIN} characters")
    try:
        failpoints.arm_all(config.failpoints)
    except ValueError as error:
        raise ConfigError(f"RELAY_FAILPOINTS cannot be read: {error}") from None
    broker, redis = Client(), redisclient.connect(config.redis_url)
    context = _context(config, broker, redis)
    authentication = Authentication(context.mirror, context.sessions, config.admin_token)
    app = Starlette(
        routes=[
            *(_route(context, authentication, operation) for operation in OPERATIONS),
            Route("/api/openapi.json", _openapi()),
            Route("/healthz", _healthy),
            Route("/readyz", _ready(context, broker, redis)),
            Route("/link", _link(context.public_url)),
            Route("/", _home),
        ],
        exception_handlers={Problem: answer_problem, 404: _no_path, 405: _no_method, 500: answer_unexpected},
        lifespan=_lifespan(config, context, broker, redis),
    )
    app.state.context = context
    app.router.redirect_slashes = False  # a redirect would be built from the Host header
    return app


def _lifespan(
    config: AdminConfig, context: Context, broker: Client, redis: RedisClient
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        connecting = spawn(streams.connect(config.nats_url, name="relay-admin", client=broker), name="nats-connect")
        chores = Chores(config, context, redis, broker)
        running = [
            connecting,
            spawn(_after(connecting, context.mirror.run), name="mirror"),
            *([] if config.admin_token else [spawn(setup.offer(context), name="set-up")]),
            spawn(chores.run(), name="chores"),
        ]
        try:
            yield
        finally:
            await stop(running)
            await chores.close()
            context.senders.close()
            await streams.close(broker)
            await context.ledger.close()
            await redis.aclose()

    return lifespan


async def _after(first: Awaitable[object], run: Callable[[], Awaitable[None]]) -> None:
    await first
    await run()


def _context(config: AdminConfig, broker: Client, redis: RedisClient) -> Context:
    try:
        sealer = Sealer(config.secrets_key)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    scripts = Scripts(redis)
    balances, pool, mirror = Balances(redis, scripts), Upstreams(redis, scripts), Mirror(broker)
    return Context(
        control=Control(broker, Directory(redis, balances, pool), mirror),
        mirror=mirror,
        ledger=Ledger(config.clickhouse_url),
        balances=balances,
        standings=Standings(scripts, _member_of(mirror)),
        sealer=sealer,
        pool=pool,
        passwords=Passwords(),
        sessions=Sessions(redis),
        price_lead_seconds=config.price_lead_seconds,
        senders=_senders(config),
        public_url=(config.admin_url or f"http://127.0.0.1:{config.admin_port}").rstrip("/"),
    )


def _member_of(mirror: Mirror) -> Callable[[str], str]:
    def member_of(key_id: str) -> str:
        key = mirror.get(ApiKey, key_id)
        return key.member_id if key else ""

    return member_of


def _senders(config: AdminConfig) -> Senders:
    networks = tuple(filter(None, (text.strip() for text in config.webhook_networks.split(","))))
    settings = SenderSettings(smtp_url=config.smtp_url, smtp_from=config.smtp_from, allowed_networks=networks)
    try:
        return Senders(settings)
    except ValueError as error:
        raise ConfigError(f"RELAY_SMTP_URL, RELAY_SMTP_FROM or RELAY_WEBHOOK_NETWORKS: {error}") from None


def _route(context: Context, authentication: Authentication, operation: Operation) -> Route:
    path = operation.path if operation.at_root else PREFIX + operation.path
    return Route(path, _endpoint(context, authentication, operation), methods=[operation.method], name=operation.id)


def _endpoint(
    context: Context, authentication: Authentication, operation: Operation
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        principal = None
        if operation.roles is not None:
            principal = await authentication.principal(request)
            check_account(principal, str(request.path_params.get("account_id", "")))
            if not access.may(principal, operation.roles, operation.scope):
                scope = f" with scope {operation.scope}" if principal.scopes is not None and operation.scope else ""
                roles = ", ".join(sorted(operation.roles))
                raise Forbidden(f"Your role is {principal.role}; this is for {roles}{scope}.")
            await _check_exists(context, request)
        check_query(request, operation.query, operation.repeatable)
        try:
            return await operation.handler(context, Call(request.scope, request.receive, principal, operation.id))
        except Overtaken:
            if "If-Match" in operation.headers and match_of(request) is not None:
                raise PreconditionFailed(CHANGED) from None
            raise

    return endpoint


async def _check_exists(context: Context, request: Request) -> None:
    """Raise Missing if the account in the path does not exist; asked of the log only if this process does not know it."""
    account_id = str(request.path_params.get("account_id", ""))
    if account_id and context.mirror.get(Account, account_id) is None:
        await find_account(context, account_id)


def _ready(context: Context, broker: Client, redis: RedisClient) -> Callable[[Request], Awaitable[Response]]:
    async def ready(_: Request) -> Response:
        state = {
            "nats": broker.is_connected and context.mirror.is_whole,
            "redis": await redisclient.answers(redis),
            "clickhouse": await context.ledger.answers(),
        }
        return JSONResponse(state, status_code=200 if all(state.values()) else 503)

    return ready


def _openapi() -> Callable[[Request], Awaitable[Response]]:
    body = msgspec.json.encode(openapi.document(OPERATIONS, prefix=PREFIX))
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    async def document(request: Request) -> Response:
        is_known = request.headers.get("if-none-match") == etag
        headers = {"etag": etag, "content-type": "application/json"}
        return Response(b"" if is_known else body, 304 if is_known else 200, headers=headers)

    return document


async def _healthy(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _home(_: Request) -> Response:
    return PlainTextResponse(_HOME)


def _link(url: str) -> Callable[[Request], Awaitable[Response]]:
    async def link(_: Request) -> Response:
        return PlainTextResponse(_LINK.format(url=url))

    return link


async def _no_path(request: Request, error: Exception) -> Response:
    return await answer_problem(request, Missing("There is no such path; see /api/openapi.json."))


async def _no_method(request: Request, error: Exception) -> Response:
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = ", ".join(sorted({method for route in matching for method in route.methods}))
    problem = WrongMethod(f"This path takes {allowed}; see /api/openapi.json.", allow=allowed)
    return await answer_problem(request, problem)
