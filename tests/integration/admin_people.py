"""People of the control plane for tests: somebody of every role, signed in as people are, and paths filled in."""

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from libs.common import ids, redisclient
from libs.common.config import AdminConfig
from services.admin.app import OPERATIONS, PREFIX, create_app
from services.admin.resource import Operation
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import SECRETS_KEY, TOKEN, Admin

PASSWORD: Final = "a long pass phrase"
BY_ID: Final = {one.id: one for one in OPERATIONS}
_PREFIXES: Final = {
    "account_id": "acct",
    "operator_id": "oper",
    "member_id": "memb",
    "key_id": "key",
    "token_id": "tok",
    "code_id": "code",
    "upstream_id": "upst",
    "request_id": "req",
}
_NO_ENTITY: Final = {"month": "2026-11", "version": "2026-11-01"}


@dataclass(frozen=True)
class Person:
    """Somebody who has signed in."""

    id: str
    email: str
    token: str
    account_id: str = ""


@contextlib.asynccontextmanager
async def admin_from(rig: Rig, address: str) -> AsyncIterator[Admin]:
    """The application, called from that address: tries are counted by address, and tests must not count each other's."""
    config = AdminConfig(
        nats_url=rig.config.nats_url,
        redis_url=rig.config.redis_url,
        clickhouse_url=rig.config.clickhouse_url,
        admin_token=TOKEN,
        secrets_key=SECRETS_KEY,
    )
    app = create_app(config)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    client = httpx2.AsyncClient(transport=transport, base_url="http://admin", timeout=30)
    async with app.router.lifespan_context(app), client:
        admin = Admin(client, app)
        await until(admin.is_ready)
        yield admin


async def forget_tries(redis: redisclient.RedisClient) -> None:
    """What was counted against guessing is forgotten."""
    async for key in redis.scan_iter(match="*tries*"):
        await redis.delete(key)


async def invited(admin: Admin, role: str, account_id: str = "") -> tuple[str, str, str]:
    """Id, address and link's token of somebody new; in an account: a member of it."""
    email = f"{ids.uuid7_hex()}@example.com"
    path = f"/accounts/{account_id}/members" if account_id else "/operators"
    made = await admin.done("POST", path, json={"name": f"the {role}", "email": email, "role": role})
    return made["id"], email, made["link"]["url"].partition("#")[2]


async def signed_in(admin: Admin, role: str, account_id: str = "") -> Person:
    """Somebody new: invited, and in by his link."""
    name, email, token = await invited(admin, role, account_id)
    session = await admin.done("POST", "/links/accept", json={"token": token, "password": PASSWORD})
    return Person(name, email, session["token"], account_id)


async def service_token(admin: Admin, role: str, scopes: list[str], account_id: str = "") -> str:
    """A service token's secret."""
    path = f"/accounts/{account_id}/tokens" if account_id else "/tokens"
    return str((await admin.done("POST", path, json={"name": "t", "role": role, "scopes": scopes}))["token"])


def some_id(parameter: str) -> str:
    """Well-formed, and nobody's."""
    if parameter in _NO_ENTITY:
        return _NO_ENTITY[parameter]
    return ids.new_id(_PREFIXES.get(parameter, "none"))


def parameters_of(operation: Operation) -> list[str]:
    """Names in its path."""
    return re.findall(r"{(\w+)}", operation.path)


def path_of(operation: Operation, values: Mapping[str, str]) -> str:
    """Its whole path; what `values` does not name is nobody's."""
    path = operation.path if operation.at_root else PREFIX + operation.path
    return re.sub(r"{(\w+)}", lambda match: values.get(match[1]) or some_id(match[1]), path)


async def ask(
    admin: Admin, operation: Operation, values: Mapping[str, str], *, token: str | None, **options: Any
) -> httpx2.Response:
    """A call of an operation; with a body, if it has one: the smallest there is unless `json` says what."""
    if operation.body is not None and "json" not in options and "content" not in options:
        options["json"] = {}
    headers = options.pop("headers", {}) | ({} if token is None else {"authorization": f"Bearer {token}"})
    return await admin.client.request(operation.method, path_of(operation, values), headers=headers, **options)
