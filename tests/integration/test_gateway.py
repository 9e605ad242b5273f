"""The gateway as one ASGI application on real stores, with a scripted upstream: what each path answers, and to whom."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from libs.common import apikeys, ids, redisclient, runtime, streams
from libs.common.balances import Balances
from libs.common.config import GatewayConfig
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, Credit
from libs.common.metrics import Metrics
from libs.common.upstreams import Upstreams
from services.gateway.app import create_app
from services.gateway.cycle import BodyBudget
from tests.integration.gateway_rig import ANSWER, MESSAGE, MODELS, Gateway, running, upstream

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
OPERATORS_KEY = "sk-ant-operator"


@pytest.fixture
async def gateway(anyio_backend: str, nats_url: str, redis_url: str) -> AsyncIterator[Gateway]:
    broker = await streams.connect(nats_url, name="test")
    await streams.create(broker.jetstream(), replicas=1, bytes_max=2**28)
    await broker.close()
    seen: list[httpx2.Request] = []

    async def recording(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return await upstream(request)

    config = GatewayConfig(
        nats_url=nats_url,
        redis_url=redis_url,
        upstream_url="http://upstream/base",
        upstream_api_key=OPERATORS_KEY,
        body_bytes_max=10_000,
        upstream_retries_max=0,
    )
    budget = BodyBudget(10_000)
    redis = redisclient.connect(redis_url)
    await redis.delete("{upstreams}breakers")  # what the test before has made of the one credential
    app = create_app(config, metrics=Metrics(), body_budget=budget, transport=httpx2.MockTransport(recording))
    async with running(app):
        yield Gateway(app, Directory(redis, Balances(redis), Upstreams(redis)), budget, seen)
    await redis.aclose()


async def test_the_upstream_gets_the_body_and_our_credential(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key()
    body = b' {"model" : "claude-sonnet-4-6","max_tokens":1, "messages":[]} '
    answer = await gateway.call(
        "POST", "/v1/messages?beta=true", headers={"authorization": f"Bearer {secret}", "x-odd": "1"}, body=body
    )
    assert (answer.status, answer.body) == (200, ANSWER)
    (request,) = gateway.seen
    assert request.content == body
    assert str(request.url) == "http://upstream/base/v1/messages?beta=true"
    assert request.headers["x-api-key"] == OPERATORS_KEY
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["x-odd"] == "1"
    assert secret not in str(request.headers.raw)


@pytest.mark.parametrize("path", ["/messages", "/v1/messages", "/v1/v1/messages"])
async def test_aliases(gateway: Gateway, path: str) -> None:
    secret, _, _ = await gateway.new_key()
    assert (await gateway.call("POST", path, key=secret, body=json.dumps(MESSAGE).encode())).status == 200
    assert gateway.seen[0].url.path == "/base/v1/messages"


async def test_who_is_not_let_in(gateway: Gateway) -> None:
    secret, _, key = await gateway.new_key()
    for given in ("", secret[:-1] + ("0" if secret[-1] != "0" else "1"), "sk-ant-x", apikeys.generate()):
        answer = await gateway.message(given)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert answer.headers["x-should-retry"] == "false"
        if given:
            assert given not in answer.body.decode()
    both = {"x-api-key": apikeys.generate(), "authorization": f"Bearer {secret}"}
    assert (await gateway.call("POST", "/v1/messages", headers=both, body=json.dumps(MESSAGE).encode())).status == 401
    assert gateway.seen == []
    assert key.status == "active"


async def test_a_change_is_in_force_for_the_next_request(gateway: Gateway) -> None:
    secret, account, key = await gateway.new_key()
    assert (await gateway.message(secret)).status == 200
    for status, expected in (("disabled", 401), ("active", 200), ("deleted", 401), ("active", 200)):
        await gateway.put(ApiKey(**{**_fields(key), "status": status}))
        assert (await gateway.message(secret)).status == expected
        assert (await gateway.call("GET", "/v1/models", key=secret)).status == expected
    await gateway.put(Account(**{**_fields(account), "status": "disabled"}))
    assert (await gateway.message(secret)).status == 401


async def test_without_balance_only_the_free_paths(gateway: Gateway) -> None:
    secret, account, _ = await gateway.new_key(credit_nanos=0)
    answer = await gateway.message(secret)
    assert (answer.status, answer.error["type"]) == (402, "insufficient_balance")
    assert answer.error["available_usd"] == "0.00"
    assert answer.headers["x-should-retry"] == "false"
    body = json.dumps(MESSAGE).encode()
    counted = await gateway.call("POST", "/v1/messages/count_tokens", key=secret, body=body)
    assert (counted.status, counted.body) == (200, b'{ "input_tokens":3 }')
    assert not {"set-cookie", "anthropic-organization-id"} & set(counted.headers)
    entry = Credit(id=ids.new_credit_id(), account_id=account.id, amount_nanos=10**9, reason="test", created_at_ms=1)
    await gateway.put(entry)
    assert (await gateway.message(secret)).status == 200


async def test_models_on_offer(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key(credit_nanos=0)
    answer = await gateway.call("GET", "/v1/models?limit=1000", key=secret)
    page = json.loads(answer.body)
    assert page == MODELS | {"data": MODELS["data"][:1]}  # type: ignore[index]
    assert answer.headers["content-length"] == str(len(answer.body))
    assert str(gateway.seen[0].url) == "http://upstream/base/v1/models?limit=1000"
    unpriced = await gateway.call("GET", "/v1/models/claude-unpriced-1", key=secret)
    assert (unpriced.status, unpriced.error["message"]) == (404, "model: claude-unpriced-1")
    assert (await gateway.call("GET", "/models/claude-haiku-4-5", key=secret)).status == 200


@pytest.mark.parametrize(
    ("given", "status", "shown"),
    [
        ("401 invalid x-api-key sk-ant", 529, ""),
        ("429 organization 7f3c", 529, ""),
        ("302 elsewhere", 502, ""),
        ('404 {"type":"error"} ', 404, '{"type":"error"} '),
        ("200 not a list", 502, ""),
    ],
)
async def test_a_free_path_that_fails(gateway: Gateway, given: str, status: int, shown: str) -> None:
    secret, _, _ = await gateway.new_key(credit_nanos=0)
    answer = await gateway.call("GET", "/v1/models", key=secret, headers={"x-answer": given})
    assert answer.status == status
    if shown:
        assert answer.body.decode() == shown
    else:
        assert answer.error["message"]
        assert given.partition(" ")[2] not in answer.body.decode()


async def test_who_leaves_a_free_path_lets_the_upstream_go(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key(credit_nanos=0)
    answer = await gateway.call("GET", "/v1/models", key=secret, headers={"x-wait": "1"}, leaves=True)
    assert answer.status == 0
    assert not [task for task in runtime.running() if task.get_name() == "watch-caller"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "The request body is not a JSON object"),
        (b"[1]", 400, "The request body is not a JSON object"),
        (b'{"model":"claude-sonnet-4-6"', 400, "The request body is not a JSON object"),
        (b'{"max_tokens":1}', 400, "model: Field required"),
        (b'{"model":7}', 400, "model: Input should be a valid string"),
        (b'{"model":"claude-unpriced-1"}', 404, "model: claude-unpriced-1"),
        (b'{"model":"claude-sonnet-4-6","model":"claude-haiku-4-5"}', 400, "model: the field stands twice"),
        (b'{"model":"claude-sonnet-4-6","speed":"fast"}', 400, "speed: claude-sonnet-4-6 is not on offer here"),
        (b'{"model":"claude-sonnet-4-6","inference_geo":"eu"}', 400, "inference_geo: 'eu' is not on offer here"),
        (b'{"model":"claude-sonnet-4-6","fallbacks":[{"model":"claude-x"}]}', 404, "model: claude-x"),
        (b'{"model":"claude-sonnet-4-6","billing_policy":{}}', 400, "billing_policy"),
        (b'{"model":"claude-sonnet-4-6"}' + b" " * 10_000, 413, "The request is larger than"),
    ],
)
async def test_a_body_that_is_not_forwarded(gateway: Gateway, body: bytes, status: int, message: str) -> None:
    secret, _, _ = await gateway.new_key()
    answer = await gateway.call("POST", "/v1/messages", key=secret, body=body)
    assert answer.status == status
    assert answer.error["message"].startswith(message)
    assert gateway.seen == []


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_body_that_says_it_is_not_json(gateway: Gateway, path: str) -> None:
    secret, _, _ = await gateway.new_key()
    body = json.dumps(MESSAGE).encode()
    for given in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx"):
        answer = await gateway.call("POST", path, key=secret, headers={"content-type": given}, body=body)
        assert (answer.status, answer.error["message"]) == (400, "content-type: must be application/json")
    for name, given in (("content-encoding", "gzip"), ("content-type", "application/json; charset=utf-16")):
        answer = await gateway.call("POST", path, key=secret, headers={name: given}, body=body)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    for given in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", ""):
        assert (await gateway.call("POST", path, key=secret, headers={"content-type": given}, body=body)).status == 200


async def test_paths(gateway: Gateway) -> None:
    for method, path, status in (
        ("HEAD", "/api/hello", 200),
        ("HEAD", "/", 200),
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/v1/complete", 404),
        ("POST", "/v1/organizations/x", 404),
        ("GET", "/v1/messages", 405),
        ("POST", "/v1/../v1/messages", 400),
        ("POST", "/v1/%2e%2e/messages", 400),
    ):
        answer = await gateway.call(method, path)
        assert answer.status == status, path
        if status >= 400:
            assert answer.error["message"]
    metrics = (await gateway.call("GET", "/metrics")).body.decode()
    assert "relay_refusals_total" in metrics
    assert "\nrelay_drains_in_progress 0\n" in metrics


async def test_one_account_cannot_take_all_the_room(gateway: Gateway) -> None:
    """The budget is for all; a quarter of it, or one whole body, is the most that one account may have under way."""
    greedy, _, _ = await gateway.new_key()
    modest, _, _ = await gateway.new_key()
    gateway.budget.bytes_max = 10**9
    body = json.dumps(MESSAGE).encode().ljust(9_000)
    held = asyncio.create_task(gateway.call("POST", "/v1/messages", key=greedy, headers={"x-wait": "1"}, body=body))
    while not gateway.seen:
        await asyncio.sleep(0)
    answer = await gateway.call("POST", "/v1/messages", key=greedy, body=body)
    assert (answer.status, answer.error["type"]) == (529, "overloaded_error")
    assert (await gateway.call("POST", "/v1/messages", key=modest, body=body)).status == 200
    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held
    assert (await gateway.call("POST", "/v1/messages", key=greedy, body=body)).status == 200


async def test_a_body_on_a_path_that_has_none_goes_nowhere(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key()
    assert (await gateway.call("GET", "/v1/models", key=secret, body=b"POST /v1/messages HTTP/1.1")).status == 200
    assert gateway.seen[0].content == b""


async def test_too_many_body_bytes_in_flight(gateway: Gateway) -> None:
    secret, _, _ = await gateway.new_key()
    gateway.budget.bytes_held = gateway.budget.bytes_max
    answer = await gateway.message(secret)
    assert (answer.status, answer.error["type"]) == (529, "overloaded_error")
    assert int(answer.headers["retry-after"]) <= 5
    gateway.budget.bytes_held = 0
    assert (await gateway.message(secret)).status == 200


@pytest.mark.alone
async def test_without_redis_nobody_is_admitted_and_nobody_waits(nats_url: str) -> None:
    config = GatewayConfig(nats_url=nats_url, redis_url="redis://127.0.0.1:1/0")
    transport = httpx2.MockTransport(upstream)
    app = create_app(config, metrics=Metrics(), body_budget=BodyBudget(100), transport=transport)
    redis = redisclient.connect(config.redis_url)
    async with running(app):
        gateway = Gateway(app, Directory(redis, Balances(redis), Upstreams(redis)), BodyBudget(100))
        started = time.monotonic()
        answer = await gateway.message(apikeys.generate())
        assert time.monotonic() - started < 0.3
        assert (answer.status, answer.error["type"]) == (529, "overloaded_error")
        assert answer.headers["retry-after"]
        assert (await gateway.call("GET", "/readyz")).status == 503
    await redis.aclose()


def _fields(entity: Account | ApiKey) -> dict[str, Any]:
    return {name: getattr(entity, name) for name in entity.__struct_fields__}
