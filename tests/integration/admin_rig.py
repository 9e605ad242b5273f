"""The control plane as one ASGI application on real stores, and a client that checks every answer against its own document."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final, Self

import httpx2
from jsonschema import Draft202012Validator
from redis.asyncio import Redis
from starlette.applications import Starlette

from libs.common import ids, sealing
from libs.common.config import AdminConfig
from libs.common.leases import Admission, Granted, Leases, Refused
from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX, create_app
from services.admin.resource import Context
from tests.integration.accounting_rig import until

TOKEN: Final = "test-admin-token-0123456789"
DOCUMENT: Final[dict[str, Any]] = openapi.document(OPERATIONS, prefix=PREFIX)
PROBLEM: Final = "application/problem+json"
LOCALHOST: Final = "00000000000000000000ffff7f000001"
SECRETS_KEY: Final = sealing.new_key()


class Admin:
    """Calls with the right token."""

    def __init__(self, client: httpx2.AsyncClient, app: Starlette) -> None:
        self.client = client
        self.app = app
        self.context: Context = app.state.context
        """What the application's handlers work with."""

    @classmethod
    @contextlib.asynccontextmanager
    async def over(
        cls, nats_url: str, redis_url: str, clickhouse_url: str, *, wait: bool = True, **settings: Any
    ) -> AsyncIterator[Self]:
        """Start the application on these stores, with these settings; `wait`: until it has found them."""
        urls = {"nats_url": nats_url, "redis_url": redis_url, "clickhouse_url": clickhouse_url}
        config = AdminConfig(**urls | {"admin_token": TOKEN, "secrets_key": SECRETS_KEY} | settings)
        app = create_app(config)
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        client = httpx2.AsyncClient(transport=transport, base_url="http://admin", timeout=30)
        async with app.router.lifespan_context(app), client:
            admin = cls(client, app)
            if wait:
                await until(admin.is_ready)
            yield admin

    async def is_ready(self) -> bool:
        """Whether it has found its stores."""
        return (await self.client.get("/readyz")).status_code == 200

    async def send(self, method: str, path: str, *, token: str | bytes = TOKEN, **options: Any) -> httpx2.Response:
        """A call under /api/v1; what is answered is as the document says."""
        raw = token if isinstance(token, bytes) else token.encode()
        headers = {b"authorization": b"Bearer " + raw, **options.pop("headers", {})}
        whole = path if path.startswith("/v1/") else PREFIX + path
        answer = await self.client.request(method, whole, headers=headers, **options)
        if method != "HEAD":
            check(method, path, answer)
        return answer

    async def done(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """A call that succeeds; its answer."""
        answer = await self.send(method, path, **options)
        assert answer.is_success, answer.text
        return dict(answer.json())

    async def refused(self, method: str, path: str, status: int, **options: Any) -> str:
        """A call that is answered by a problem of that status; its detail."""
        answer = await self.send(method, path, **options)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return str(answer.json()["detail"])

    async def new_account(self, usd: str | None = "10.00") -> str:
        """An account with a credit."""
        account_id = str((await self.done("POST", "/accounts", json={"name": "test"}))["id"])
        if usd:
            await self.done("POST", f"/accounts/{account_id}/credits", json={"amount_usd": usd, "reason": "test"})
        return account_id

    async def balance(self, account_id: str) -> dict[str, str]:
        """What an account has."""
        return await self.done("GET", f"/accounts/{account_id}/balance")


async def admitted(redis: Redis, account_id: str, key_id: str, **changes: Any) -> Granted | Refused:
    """What admission says now to a small request of that key. It takes nothing."""
    asked: dict[str, Any] = {"address": LOCALHOST, "models": ("claude-sonnet-4-6",), "input_tokens": 1, "hold_nanos": 1}
    leases = Leases(redis)
    admission = Admission(
        request_id=ids.new_request_id(), account_id=account_id, key_id=key_id, memo=b"{}", **(asked | changes)
    )
    decision = await leases.admit(admission)
    if isinstance(decision, Granted):
        await leases.void(decision.lease)
    return decision


def check(method: str, path: str, answer: httpx2.Response) -> None:
    """The answer has the schema its operation is documented with; a problem is a whole one."""
    if not answer.is_success:
        body = json.loads(answer.content)
        assert answer.headers["content-type"] == PROBLEM
        assert (body["status"], body["type"]) == (answer.status_code, "about:blank")
        assert body["title"] and body["detail"]
        assert answer.status_code != 500
        return
    assert answer.headers["cache-control"] == "no-store"
    contents = _operation(method, path.partition("?")[0])["responses"][str(answer.status_code)]["content"]
    media = answer.headers["content-type"].partition(";")[0]
    assert media in contents
    if media != "application/json":
        return
    Draft202012Validator({**DOCUMENT, **contents["application/json"]["schema"]}).validate(json.loads(answer.content))


def _operation(method: str, path: str) -> dict[str, Any]:
    parts = (path if path.startswith("/v1/") else PREFIX + path).split("/")
    for template, operations in DOCUMENT["paths"].items():
        wanted = template.split("/")
        if len(wanted) == len(parts) and all(w.startswith("{") or w == p for w, p in zip(wanted, parts, strict=True)):
            return dict(operations[method.lower()])
    raise AssertionError(f"{path} is not documented")
