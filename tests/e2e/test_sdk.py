"""The official SDK through the relay: what works against Anthropic's API works here, and leaves the right row."""

import asyncio
import base64
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import pytest

from libs.localstack.simulator.errors import ORGANIZATION_ID
from tests.e2e.relay import Relay
from tests.e2e.waiting import wait_until

MODEL = "claude-sonnet-4-6"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360000002000100ffff03000006000557bfabd40000000049454e44ae426082"
    )
).decode()


@pytest.fixture
def account(relay: Relay) -> tuple[str, str]:
    return relay.new_account()


def client(relay: Relay, key: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=relay.gateway_url, api_key=key, max_retries=0, **options)


def test_message(relay: Relay, account: tuple[str, str]) -> None:
    with client(relay, account[1]) as sdk:
        raw = sdk.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=HELLO)
    message = raw.parse()
    assert message.content and message.usage.output_tokens > 0
    receipt = relay.receipt(raw.headers["x-relay-request-id"])
    assert receipt["outcome"] == "measured" and receipt["model_asked"] == MODEL
    expected = Decimal(message.usage.input_tokens * 3 + message.usage.output_tokens * 15) / 1_000_000
    assert Decimal(receipt["total_usd"]) == expected
    assert Decimal(relay.balance(account[0])["spent_usd"]) == expected
    assert relay.receipt(raw.headers["request-id"])["request_id"] == receipt["request_id"]


def test_stream(relay: Relay, account: tuple[str, str]) -> None:
    with client(relay, account[1]) as sdk, sdk.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.stop_reason
    (row,) = relay.rows(account[0], 1)
    assert row["stream"] and row["outcome"] == "measured" and row["client"] == "anthropic-python"


@pytest.mark.anyio
async def test_async_stream(relay: Relay, account: tuple[str, str]) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=relay.gateway_url, api_key=account[1], max_retries=0) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream,
    ):
        assert [text async for text in stream.text_stream]


def test_tools(relay: Relay, account: tuple[str, str]) -> None:
    tools: list[Any] = [
        {
            "name": "get_weather",
            "description": "Weather of a place",
            "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        }
    ]
    messages: list[Any] = [{"role": "user", "content": "use the get_weather tool"}]
    with client(relay, account[1]) as sdk:
        first = sdk.messages.create(model=MODEL, max_tokens=300, messages=messages, tools=tools)
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert call.name == "get_weather" and "place" in call.input
        messages += [
            {"role": "assistant", "content": [block.model_dump() for block in first.content]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "17 degrees"}]},
        ]
        second = sdk.messages.create(model=MODEL, max_tokens=300, messages=messages, tools=tools)
    assert "17 degrees" in "".join(block.text for block in second.content if block.type == "text")
    relay.rows(account[0], 2)


def test_streamed_tools(relay: Relay, account: tuple[str, str]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    tools: list[Any] = [{"name": "add", "description": "Adds", "input_schema": schema}]
    question: list[Any] = [{"role": "user", "content": 'use the add tool with {"a": 17, "b": "naïve 😀"}'}]
    with (
        client(relay, account[1]) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=300, messages=question, tools=tools) as stream,
    ):
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds and final.stop_reason == "tool_use"
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert call.input == {"a": 17, "b": "naïve 😀"}
    (row,) = relay.rows(account[0], 1)
    assert (row["outcome"], row["stop_reason"]) == ("measured", "tool_use")


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking(relay: Relay, account: tuple[str, str], streamed: bool) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 3000,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    with client(relay, account[1]) as sdk:
        if streamed:
            with sdk.messages.stream(**ask) as stream:
                kinds = {event.type for event in stream}
                message = stream.get_final_message()
            assert "thinking" in kinds and "signature" in kinds
        else:
            message = sdk.messages.create(**ask)
    assert [block.type for block in message.content] == ["thinking", "text"]
    (row,) = relay.rows(account[0], 1)
    expected = Decimal(message.usage.input_tokens * 3 + message.usage.output_tokens * 15) / 1_000_000
    assert Decimal(row["total_usd"]) == expected


@pytest.mark.anyio
async def test_async_calls(relay: Relay, account: tuple[str, str]) -> None:
    async with anthropic.AsyncAnthropic(base_url=relay.gateway_url, api_key=account[1], max_retries=0) as sdk:
        messages = await asyncio.gather(
            *(sdk.messages.create(model=MODEL, max_tokens=60, messages=HELLO) for _ in range(10))
        )
        count = await sdk.messages.count_tokens(model=MODEL, messages=HELLO)
        assert {message.usage.input_tokens for message in messages} == {count.input_tokens}
        assert MODEL in [model.id async for model in sdk.models.list(limit=5)]
        with pytest.raises(anthropic.NotFoundError):
            await sdk.messages.create(model="claude-unpriced-1", max_tokens=10, messages=HELLO)
    assert len({row["request_id"] for row in relay.rows(account[0], 10)}) == 10


@pytest.mark.parametrize("option", ["api_key", "auth_token"])
def test_both_ways_to_send_a_key(relay: Relay, account: tuple[str, str], option: str) -> None:
    options: dict[str, Any] = {option: account[1]}
    with anthropic.Anthropic(base_url=relay.gateway_url, max_retries=0, **options) as sdk:
        assert sdk.messages.create(model=MODEL, max_tokens=10, messages=HELLO).content
    relay.rows(account[0], 1)


def test_a_wrong_key_is_not_repeated(relay: Relay) -> None:
    before = relay.gateway.metric("relay_refusals_total")
    with (
        anthropic.Anthropic(base_url=relay.gateway_url, api_key="sk-cr-wrong", max_retries=3) as sdk,
        pytest.raises(anthropic.AuthenticationError),
    ):
        sdk.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    assert relay.gateway.metric("relay_refusals_total") == before + 1


def test_an_overloaded_upstream_is_asked_again(relay: Relay, account: tuple[str, str]) -> None:
    """By whom, is not told here: the answer comes, and it is billed once."""
    headers = {"x-sim-scenario": "overloaded;times=1", "x-sim-id": account[0]}
    with anthropic.Anthropic(base_url=relay.gateway_url, api_key=account[1], max_retries=2) as sdk:
        message = sdk.messages.create(model=MODEL, max_tokens=10, messages=HELLO, extra_headers=headers)
    assert message.content
    wait_until(lambda: relay.spent_nanos(account[0]) > 0, "the bill")
    entries = [entry for entry in relay.invoice() if entry["sim_id"] == account[0]]
    assert [entry["status"] for entry in entries] == [529, 200]


def test_vision(relay: Relay, account: tuple[str, str]) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    content: list[Any] = [image, {"type": "text", "text": "What is this?"}]
    with client(relay, account[1]) as sdk:
        message = sdk.messages.create(model=MODEL, max_tokens=50, messages=[{"role": "user", "content": content}])
    assert message.content
    relay.rows(account[0], 1)


@pytest.mark.parametrize(("ttl", "write_price"), [("5m", Decimal("3.75")), ("1h", Decimal(6))])
def test_caching(relay: Relay, account: tuple[str, str], ttl: str, write_price: Decimal) -> None:
    system: list[Any] = [
        {
            "type": "text",
            "text": f"{account[0]} is the account of this test. " + "A long instruction. " * 600,
            "cache_control": {"type": "ephemeral", "ttl": ttl},
        }
    ]
    with client(relay, account[1]) as sdk:
        for _ in range(2):
            with sdk.messages.stream(model=MODEL, max_tokens=20, messages=HELLO, system=system) as stream:
                stream.until_done()
    newest, oldest = relay.rows(account[0], 2)
    lines = {line["class"]: line for line in relay.receipt(oldest["request_id"])["lines"]}
    written = lines[f"cache_write_{ttl}"]
    assert Decimal(written["unit_price_usd_per_mtok"]) == write_price and written["quantity"] > 1024
    lines = {line["class"]: line for line in relay.receipt(newest["request_id"])["lines"]}
    assert lines["cache_read"]["quantity"] == written["quantity"]
    assert Decimal(lines["cache_read"]["unit_price_usd_per_mtok"]) == Decimal("0.30")


def test_count_tokens_and_models_are_free(relay: Relay) -> None:
    account, key = relay.new_account(credit_usd="0")
    with client(relay, key) as sdk:
        assert sdk.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 0
        models = [model.id for model in sdk.models.list(limit=1000)]
        assert MODEL in models and "claude-unpriced-1" not in models
        assert sdk.models.retrieve(MODEL).id == MODEL
        with pytest.raises(anthropic.NotFoundError):
            sdk.models.retrieve("claude-unpriced-1")
    relay.rows(account, 0)
    assert relay.balance(account)["spent_usd"] == "0.00"


def test_no_balance(relay: Relay) -> None:
    account, key = relay.new_account(credit_usd="0")
    with client(relay, key) as sdk, pytest.raises(anthropic.APIStatusError) as caught:
        sdk.messages.create(model=MODEL, max_tokens=10, messages=HELLO)
    body: Any = caught.value.body
    assert caught.value.status_code == 402 and body["error"]["type"] == "insufficient_balance"
    assert caught.value.response.headers["x-should-retry"] == "false"
    relay.rows(account, 0)


def test_unknown_model(relay: Relay, account: tuple[str, str]) -> None:
    with client(relay, account[1]) as sdk, pytest.raises(anthropic.NotFoundError) as caught:
        sdk.messages.create(model="claude-unpriced-1", max_tokens=10, messages=HELLO)
    body: Any = caught.value.body
    assert body["error"] == {"type": "not_found_error", "message": "model: claude-unpriced-1"}
    relay.rows(account[0], 0)


@pytest.fixture
def upstream_forgiven(relay: Relay) -> Iterator[None]:
    """Some of the errors take the one credential out of service, which is not what this is about."""
    yield
    relay.forget_breakers()


@pytest.mark.parametrize(
    ("scenario", "status"),
    [
        ("error:400", 400),
        ("error:404", 404),
        ("error:413", 413),
        ("error:500", 500),
        ("error:529", 529),
        ("error:401", 529),
        ("error:402", 529),
        ("error:403", 529),
        ("error:429", 529),
        ("spend_limit", 529),
        ("enforced_spend_limit", 529),
        ("on_hold", 529),
    ],
)
def test_upstream_errors(
    relay: Relay, account: tuple[str, str], upstream_forgiven: None, scenario: str, status: int
) -> None:
    """What the caller must know passes; what is the operator's own trouble is 529 with nothing of it shown."""
    with client(relay, account[1]) as sdk, pytest.raises(anthropic.APIStatusError) as caught:
        sdk.messages.create(model=MODEL, max_tokens=10, messages=HELLO, extra_headers={"x-sim-scenario": scenario})
    assert caught.value.status_code == status
    text = caught.value.response.text
    assert "organization" not in text.lower() and ORGANIZATION_ID not in text
    leaky = ("server", "via", "set-cookie", "cf-ray", "anthropic-organization-id")
    assert not any(name in caught.value.response.headers for name in leaky)
    (row,) = relay.rows(account[0], 1)
    assert row["outcome"] == "free" and row["total_usd"] == "0.00"


@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [
        ("cut;after=4", "partial"),
        ("cut;after=4;clean=1", "partial"),
        ("cut;after=0", "free"),
        ("cut_inside_frame;after=4", "partial"),
        ("no_message_stop", "partial"),
        ("reset", "free"),
    ],
)
def test_a_stream_that_is_cut_is_never_taken_for_a_whole_one(
    relay: Relay, account: tuple[str, str], scenario: str, outcome: str
) -> None:
    with (
        client(relay, account[1]) as sdk,
        pytest.raises((anthropic.APIError, httpx2.TransportError)),
        sdk.messages.stream(
            model=MODEL, max_tokens=500, messages=HELLO, extra_headers={"x-sim-scenario": scenario}
        ) as stream,
    ):
        stream.until_done()
    (row,) = relay.rows(account[0], 1)
    assert row["outcome"] == outcome


def test_json_that_is_cut_is_never_taken_for_whole(relay: Relay, account: tuple[str, str]) -> None:
    with client(relay, account[1]) as sdk, pytest.raises(anthropic.APIConnectionError):
        sdk.messages.create(model=MODEL, max_tokens=50, messages=HELLO, extra_headers={"x-sim-scenario": "cut_json"})
    (row,) = relay.rows(account[0], 1)
    assert row["outcome"] == "free"


def test_error_inside_a_stream(relay: Relay, account: tuple[str, str]) -> None:
    with (
        client(relay, account[1]) as sdk,
        pytest.raises(anthropic.APIStatusError),
        sdk.messages.stream(
            model=MODEL, max_tokens=50, messages=HELLO, extra_headers={"x-sim-scenario": "error_event"}
        ) as stream,
    ):
        stream.until_done()
    (row,) = relay.rows(account[0], 1)
    assert row["outcome"] == "partial"


def test_an_error_inside_a_stream_that_is_the_operators(relay: Relay, account: tuple[str, str]) -> None:
    scenario = f"error_event;type=rate_limit_error;message=limit of organization {ORGANIZATION_ID}"
    with (
        client(relay, account[1]) as sdk,
        pytest.raises(anthropic.APIStatusError) as caught,
        sdk.messages.stream(
            model=MODEL, max_tokens=50, messages=HELLO, extra_headers={"x-sim-scenario": scenario}
        ) as stream,
    ):
        stream.until_done()
    body: Any = caught.value.body
    assert body["error"]["type"] == "overloaded_error" and ORGANIZATION_ID not in str(body)
