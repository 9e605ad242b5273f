"""The gateway as one ASGI application, its upstream, and the callers of its tests."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2
from starlette.types import ASGIApp, Message

from libs.common import apikeys, ids
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity
from libs.common.limits import NO_DEFAULTS, Limits
from services.gateway.cycle import BodyBudget

MESSAGE = {"model": "claude-sonnet-4-6", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = (
    b'{"model":"claude-sonnet-4-6","content":[],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}'
)
MODELS = {
    "data": [
        {"id": "claude-haiku-4-5-20251001", "max_tokens": 1, "odd": [1]},
        {"id": "claude-unpriced-1", "max_tokens": 2},
    ],
    "has_more": False,
    "first_id": "claude-haiku-4-5-20251001",
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object of an answer in Anthropic's shape, which is checked."""
        value = json.loads(self.body)
        assert value["type"] == "error"
        assert value["request_id"] == self.headers["request-id"] == self.headers["x-relay-request-id"]
        return dict(value["error"])


@dataclass
class Gateway:
    app: ASGIApp
    directory: Directory
    budget: BodyBudget
    seen: list[httpx2.Request] = field(default_factory=list)
    version: int = 0

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str = "",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        leaves: bool = False,
        address: str = "127.0.0.1",
    ) -> Answer:
        """One request as the server hands it over; `leaves`: the caller is gone once his request is read."""
        raw_path, _, query = path.encode().partition(b"?")
        given = {"host": "relay", **({"x-api-key": key} if key else {}), **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": (address, 1),
            "state": {},
        }
        incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []
        gone = asyncio.Event()
        if leaves:
            gone.set()

        async def receive() -> Message:
            if incoming:
                return incoming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        async with asyncio.timeout(10):
            await self.app(scope, receive, send)
        if not sent:
            return Answer(0, {}, b"")
        names = [name for name, _ in sent[0]["headers"]]
        assert len(names) == len(set(names)), names
        given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], given, b"".join(one.get("body", b"") for one in sent[1:]))

    async def message(self, key: str, **changes: Any) -> Answer:
        """POST /v1/messages with an ordinary body."""
        return await self.call("POST", "/v1/messages", key=key, body=json.dumps(MESSAGE | changes).encode())

    async def put(self, entity: Entity) -> None:
        """Apply an entity as admin does."""
        self.version += 1
        await self.directory.apply(ControlChanged(entity=entity, actor="test", reason="test", at_ms=1), self.version)

    async def new_key(
        self, *, credit_nanos: int = 10**10, account_limits: Limits = NO_DEFAULTS, **changes: Any
    ) -> tuple[str, Account, ApiKey]:
        """A key of a new account, with `changes` to it."""
        secret = apikeys.generate()
        account = Account(id=ids.new_account_id(), name="test", created_at_ms=1, limits=account_limits)
        key = ApiKey(
            id=ids.new_key_id(),
            account_id=account.id,
            name="test",
            created_at_ms=1,
            sha256=apikeys.hash_key(secret.encode()),
            hint="",
            **changes,
        )
        await self.put(account)
        await self.put(key)
        if credit_nanos:
            entry = ids.new_credit_id()
            await self.put(
                Credit(id=entry, account_id=account.id, amount_nanos=credit_nanos, reason="test", created_at_ms=1)
            )
        return secret, account, key


async def upstream(request: httpx2.Request) -> httpx2.Response:
    """Answers as the path asks; `x-answer` chooses an error, `x-wait` never answers."""
    if "x-wait" in request.headers:
        await asyncio.Event().wait()
    if "x-answer" in request.headers:
        status, _, text = request.headers["x-answer"].partition(" ")
        return httpx2.Response(int(status), headers={"content-type": "application/json"}, content=text.encode())
    path = request.url.path
    if path.endswith("/models"):
        return httpx2.Response(200, json=MODELS)
    if path.endswith("/count_tokens"):
        return httpx2.Response(
            200, headers={"set-cookie": "a=b", "anthropic-organization-id": "7f3c"}, content=b'{ "input_tokens":3 }'
        )
    return httpx2.Response(200, headers={"content-type": "application/json"}, content=ANSWER)


@contextlib.asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """An application between its lifespan's start and end."""
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    outgoing: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.get_running_loop().create_task(
        cast("Any", app({"type": "lifespan", "state": {}}, incoming.get, outgoing.put))
    )
    await incoming.put({"type": "lifespan.startup"})
    assert (await outgoing.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        await incoming.put({"type": "lifespan.shutdown"})
        assert (await outgoing.get())["type"] == "lifespan.shutdown.complete"
        await task
