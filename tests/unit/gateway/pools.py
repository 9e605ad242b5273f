"""A pool of upstreams that answer as they are told, each by its API key, and what arrived there."""

import json
from collections.abc import Callable
from typing import Any, Final

import httpx2
import msgspec
import pytest

from libs.common.config import GatewayConfig
from libs.common.errors import RelayError
from libs.common.metrics import Metrics
from libs.common.upstreams import Upstreams
from services.gateway.attempts import Attempts, Sent
from services.gateway.pool import Credential, Pool
from services.gateway.upstream import Call

ACCOUNT: Final = "acct_0123456789abcdef0123456789abcdef"
CALL: Final = Call(method="POST", target=b"/v1/messages", headers=[(b"content-type", b"application/json")], body=b"{}")
"""What every request here is, but for its body."""
Reply = httpx2.Response | httpx2.TransportError | Callable[[httpx2.Request], httpx2.Response]


def error(status: int, kind: str = "api_error", message: str = "no", **headers: str) -> httpx2.Response:
    """An error in the API's form; underscores in names of headers stand for hyphens."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(
        status,
        json={"type": "error", "error": {"type": kind, "message": message}},
        headers={"request-id": "req_up", **fields},
    )


def ok() -> httpx2.Response:
    return httpx2.Response(200, json={"ok": True}, headers={"request-id": "req_up"})


class Rig:
    """`given`: the credentials by name, each with fields of RELAY_UPSTREAMS. An upstream without a script answers."""

    def __init__(
        self,
        given: dict[str, dict[str, Any]] | list[str],
        *,
        upstreams: Upstreams | None = None,
        **config: Any,
    ) -> None:
        fields = given if isinstance(given, dict) else {name: {} for name in given}
        entries = [
            {"name": name, "api_key": f"key-{name}", "base_url": "https://api", **more} for name, more in fields.items()
        ]
        patience = {"upstream_retry_seconds": 0.001, "upstream_retries_seconds_max": 2.0, **config}
        self.config = GatewayConfig(upstreams=json.dumps(entries) if entries else "", **patience)
        self.metrics = Metrics()
        self.asked: list[str] = []
        self.proxies: list[str] = []
        self.scripts: dict[str, list[Reply]] = {}
        self.pool = Pool(self.config, transport_for=self._transport, metrics=self.metrics, upstreams=upstreams)

    def _transport(self, proxy_url: str) -> httpx2.AsyncBaseTransport:
        self.proxies.append(proxy_url)
        return httpx2.MockTransport(self._answer)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        name = request.headers["x-api-key"].removeprefix("key-")
        self.asked.append(name)
        if (sent := request.extensions.get("sent")) is not None:
            sent()
        script = self.scripts.get(name) or [ok()]
        reply = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(reply, httpx2.TransportError):
            raise reply
        if callable(reply):
            return reply(request)
        return httpx2.Response(reply.status_code, headers=reply.headers, content=reply.content)

    def tell(self, name: str, *replies: Reply) -> None:
        """What an upstream answers, in turn; the last one from then on."""
        self.scripts[name] = list(replies)

    def attempts(self, request_id: str = "req_1", account_id: str = ACCOUNT, *, free: bool = False) -> Attempts:
        return Attempts(self.pool, self.config, self.metrics, account_id=account_id, request_id=request_id, free=free)

    def named(self, name: str) -> Credential:
        return next(one for one in self.pool._credentials if one.id == name)

    @property
    def first(self) -> str:
        """Where the account sticks."""
        found = self.pool.choose(ACCOUNT)
        assert found is not None
        return found.id

    def state(self, name: str) -> str:
        return self.named(name).breaker.state(self.pool.now_ms())

    def pass_time(self, seconds: float) -> None:
        """For the breakers."""
        self.pool._clock_ms += int(seconds * 1000)


async def sent(rig: Rig, attempts: Attempts | None = None) -> Sent:
    """The answer of one request; afterwards nothing is under way."""
    attempts = attempts or rig.attempts()
    try:
        return await attempts.send(CALL)
    finally:
        attempts.release()
        assert all(one.in_flight == 0 for one in rig.pool._credentials)


async def refused(rig: Rig, attempts: Attempts | None = None) -> RelayError:
    """What the caller of one request is told instead of an answer."""
    with pytest.raises(RelayError) as caught:
        await sent(rig, attempts)
    return caught.value


async def sent_alone(attempts: Attempts, body: bytes = b"{}") -> Sent:
    """The answer of one of several."""
    try:
        return await attempts.send(msgspec.structs.replace(CALL, body=body))
    finally:
        attempts.release()
