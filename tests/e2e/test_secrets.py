"""Canaries in prompts, completions, keys and everything a caller can send: none of them is found anywhere afterwards."""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

import clickhouse_connect
import httpx2
import pytest
import redis.asyncio
from nats.aio.client import Client
from nats.errors import TimeoutError as NothingMore
from nats.js.api import ConsumerConfig

from libs.common import apikeys, subjects
from libs.localstack.simulator.errors import ORGANIZATION_ID
from tests.e2e.bodies import JSON, MODEL, SSE, USAGE, event
from tests.e2e.relay import ADMIN_TOKEN, UPSTREAM_KEY, Gateway, Relay
from tests.e2e.waiting import PLAIN
from tests.e2e.wire import Caller, Head, Headers, Received, ScriptedUpstream, Wire, chunk, head_bytes, playing

CANARY: Final = "canary" + secrets.token_hex(8)
PROMPT: Final = f"prompt-{CANARY}"
COMPLETION: Final = f"completion-{CANARY}"
WHOLE_KEY: Final = re.compile(rb"sk-cr-[0-9A-Za-z]{49}")
ORGANIZATION: Final = "organization 0a1b2c3d-1111-2222-3333-444455556666 of " + COMPLETION


def body(**changes: Any) -> bytes:
    fields = {
        "model": MODEL,
        "max_tokens": 5,
        "stream": True,
        "system": PROMPT,
        "messages": [{"role": "user", "content": PROMPT}],
        "metadata": {"user_id": PROMPT},
        "tools": [{"name": CANARY, "input_schema": {}}],
    }
    return json.dumps(fields | changes).encode()


START: Final = event(
    b"message_start", b'{"type":"message_start","message":{"model":"%s","usage":%s}}' % (MODEL.encode(), USAGE)
)
DELTA: Final = event(
    b"content_block_delta", b'{"type":"content_block_delta","delta":{"text":"%s"}}' % COMPLETION.encode()
)
STOP: Final = event(b"message_delta", b'{"type":"message_delta","delta":{"stop_reason":"end_turn"}}') + event(
    b"message_stop", b'{"type":"message_stop"}'
)


def message(text: str) -> bytes:
    content = [{"type": "text", "text": text}]
    return json.dumps(
        {"model": MODEL, "content": content, "stop_reason": "end_turn", "usage": json.loads(USAGE)}
    ).encode()


def error(kind: str, text: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": text}}).encode()


def broken(data: bytes) -> Callable[[Wire, Received], None]:
    def script(wire: Wire, _: Received) -> None:
        wire.send(data)
        wire.close()

    return script


ANSWERS: Final = [
    playing(200, JSON, [message(COMPLETION)]),
    playing(200, JSON, [message(COMPLETION)[:-20]]),
    playing(200, JSON, [COMPLETION.encode()]),
    playing(200, SSE, [START, DELTA, STOP]),
    playing(200, SSE, [START, DELTA]),
    playing(200, SSE, [START, DELTA[:-30]]),
    playing(200, SSE, [START, b"event: message_delta\ndata: " + COMPLETION.encode() + b"\n\n", STOP]),
    playing(200, SSE, [START, event(b"error", error("rate_limit_error", ORGANIZATION))]),
    playing(200, SSE, [START, event(b"error", COMPLETION.encode())]),
    playing(400, JSON, [error("invalid_request_error", COMPLETION)]),
    playing(400, JSON, [error("invalid_request_error", "specified API usage limits " + ORGANIZATION)]),
    playing(429, JSON, [error("rate_limit_error", ORGANIZATION)]),
    playing(401, JSON, [error("authentication_error", f"{UPSTREAM_KEY} {COMPLETION}")]),
    playing(500, JSON, [COMPLETION.encode()]),
    playing(302, [*JSON, (b"location", b"http://elsewhere/" + COMPLETION.encode())], [b"{}"]),
    playing(200, [*JSON, (b"content-encoding", CANARY.encode())], [b"{}"]),
    broken(b"HTTP/1.1 200 " + COMPLETION.encode() + b"\r\n" + COMPLETION.encode() + b"\r\n\r\n"),
    broken(COMPLETION.encode() * 10),
    broken(head_bytes(200, SSE) + chunk(START + DELTA) + COMPLETION.encode()),
]


def ask(url: str, path: str, headers: Headers, data: bytes) -> tuple[Head, bytes]:
    """Whatever comes back, whole or not."""
    with Caller.to(url) as caller:
        caller.post(path, headers, data)
        head, received = caller.head(), b""
        while piece := caller.some():
            received += piece
    return head, received


def bad_requests(key: bytes) -> Iterator[tuple[str, Headers, bytes]]:
    good = [(b"x-api-key", key), *JSON]
    yield "/v1/messages", good, PROMPT.encode()
    yield "/v1/messages", good, body()[:-5]
    yield "/v1/messages", good, body(model=CANARY)
    yield "/v1/messages", good, body(model={CANARY: 1})
    yield "/v1/messages", good, body(stream=CANARY)
    yield "/v1/messages", good, body(speed=CANARY)
    yield "/v1/messages", good, body(billing_policy=CANARY)
    yield "/v1/messages", [(b"x-api-key", key), (b"content-type", CANARY.encode())], body()
    yield f"/v1/{CANARY}", good, body()
    yield f"/v1/%2e%2e/{CANARY}", good, body()
    yield "/v1/messages", [*good, (b"x-long", CANARY.encode() * 3000)], body()
    yield "/v1/messages", [*good, (b"x-odd", CANARY.encode() + b"\xff")], body()
    yield "/v1/messages", [*good, *good], body()
    yield "/v1/messages", [(b"x-api-key", b"sk-cr-" + CANARY.encode())], body()
    yield "/v1/messages", [(b"authorization", b"Bearer " + CANARY.encode())], body()
    yield "/v1/messages", [(b"x-api-key", apikeys.generate().encode())], body()
    yield f"/v1/messages?{CANARY}", [*good, (b"user-agent", CANARY.encode()), (b"x-note", CANARY.encode())], body()
    yield f"/v1/messages/count_tokens?{CANARY}", good, body()


@pytest.fixture(scope="module")
def planted(relay: Relay, scripted_gateway: Gateway, upstream: ScriptedUpstream) -> list[bytes]:
    """Every kind of request and answer, well or badly formed, with a canary in each of its parts; what callers got."""
    account, key = relay.new_account()
    close = (b"connection", b"close")
    answers = []
    for script in ANSWERS:
        upstream.script = script
        _, received = ask(scripted_gateway.url, "/v1/messages", [(b"x-api-key", key.encode()), *JSON, close], body())
        answers.append(received)
    for path, headers, data in bad_requests(key.encode()):
        _, received = ask(scripted_gateway.url, path, [*headers, close], data)
        answers.append(received)
    scripted_gateway.wait_at_rest()
    relay.rows(account, len(ANSWERS) + 1)
    return answers


def test_the_operator_is_not_named_to_callers(planted: list[bytes]) -> None:
    for received in planted:
        assert not any(name in received for name in (b"0a1b2c3d", UPSTREAM_KEY.encode(), b"sk-ant", b"sk-cr-canary"))


@pytest.mark.anyio
async def test_no_canary_anywhere(planted: list[bytes], relay: Relay, scripted_gateway: Gateway) -> None:
    """Looks through logs, spools, metrics and stores, and makes sure that it looks where something is."""
    assert len(planted) > len(ANSWERS)
    account, key = relay.new_account()
    sha256 = apikeys.hash_key(key.encode())
    relay.rows(account, 0)
    found = {
        "logs": b"".join(path.read_bytes() for path in relay.logs.rglob("*") if path.is_file()),
        "metrics": b"".join(
            httpx2.get(f"{url}/metrics", verify=PLAIN).content for url in metric_urls(relay, scripted_gateway)
        ),
        "redis": await redis_contents(relay.stores["RELAY_REDIS_URL"]),
        "nats": await nats_contents(relay.stores["RELAY_NATS_URL"]),
        "clickhouse": clickhouse_contents(relay.stores["RELAY_CLICKHOUSE_URL"]),
    }
    assert b"refused" in found["logs"] and b"relay_requests_total" in found["metrics"]
    for place in ("redis", "nats"):
        assert account.encode() in found[place] and sha256.encode() in found[place]
    assert b"claude-sonnet-4-6" in found["clickhouse"]
    for place, content in found.items():
        for secret in (CANARY, UPSTREAM_KEY, key, ADMIN_TOKEN, ORGANIZATION_ID, "0a1b2c3d-1111"):
            at = content.find(secret.encode())
            assert at < 0, f"{secret} in {place}: {content[max(at - 200, 0) : at + 200]!r}"
        assert WHOLE_KEY.search(content) is None, place


def metric_urls(relay: Relay, gateway: Gateway) -> list[str]:
    return [gateway.url, *(relay.services[name].url for name in ("gateway", "accounting"))]


async def redis_contents(url: str) -> bytes:
    """Names and values of every key."""
    contents: list[Any] = []

    async def in_order(name: bytes) -> Any:
        return await store.zrange(name, 0, -1, withscores=True)

    async with redis.asyncio.Redis.from_url(url) as store:
        reads = {"string": store.get, "hash": store.hgetall, "set": store.smembers, "zset": in_order}
        async for name in store.scan_iter(count=1000):
            kind = await store.type(name)
            contents += [name, await reads[kind.decode() if isinstance(kind, bytes) else kind](name)]
    return repr(contents).encode()


async def nats_contents(url: str) -> bytes:
    """Subjects, headers and payloads of every message of every stream."""
    broker = Client()
    await broker.connect(url)
    contents: list[bytes] = []
    try:
        jetstream = broker.jetstream()
        for stream in (subjects.STREAM_USAGE, subjects.STREAM_CONTROL, subjects.STREAM_DLQ):
            subscription = await jetstream.pull_subscribe(">", stream=stream, config=ConsumerConfig(max_ack_pending=-1))
            left = (await jetstream.stream_info(stream)).state.messages
            while left > 0:
                try:
                    messages = await subscription.fetch(min(left, 500), timeout=5)
                except NothingMore:
                    break
                left -= len(messages)
                contents += [repr((one.subject, one.headers)).encode() + one.data for one in messages]
            assert left <= 0
            await subscription.unsubscribe()
    finally:
        await broker.close()
    return b"\n".join(contents)


def clickhouse_contents(url: str) -> bytes:
    """Every row of every table."""
    client = clickhouse_connect.get_client(dsn=url, autogenerate_session_id=False)
    try:
        rows = [client.query(f"SELECT * FROM {table}").result_rows for table in ("usage", "credits", "control")]
    finally:
        client.close()
    assert all(rows)
    return repr(rows).encode()
