"""Limits as callers meet them, over real HTTP: what an answer says is left, what a refusal says to do, and that it is true."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anthropic
import httpx2
import pytest

from tests.e2e.herd import Line
from tests.e2e.relay import Gateway, Relay
from tests.e2e.waiting import PLAIN, wait_until

pytestmark = [pytest.mark.alone, pytest.mark.redis_suite]
MODEL: Final = "claude-sonnet-4-6"
HELLO: Final[list[Any]] = [{"role": "user", "content": "Hello"}]
LIMITS: Final = {"rpm": 500, "itpm": 60_000, "otpm": 30_000}
FIGURES: Final = {"requests": 500, "input-tokens": 60_000, "output-tokens": 30_000, "tokens": 90_000}


@pytest.fixture(scope="module")
def gateways(relay: Relay) -> Iterator[list[Gateway]]:
    with relay.gateways(2, relay.simulator_url) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(gateways: list[Gateway]) -> Gateway:
    return gateways[0]


def ask(
    gateway: Gateway, key: str, *, path: str = "/v1/messages", scenario: str = "", **fields: Any
) -> httpx2.Response:
    body = {"model": MODEL, "max_tokens": 50, "messages": HELLO, **fields}
    headers = {"x-api-key": key} | ({"x-sim-scenario": scenario} if scenario else {})
    return httpx2.post(gateway.url + path, json=body, headers=headers, timeout=30, verify=PLAIN)


def count_tokens(gateway: Gateway, key: str) -> httpx2.Response:
    return ask(gateway, key, path="/v1/messages/count_tokens")


def left(answer: httpx2.Response, what: str) -> int:
    return int(answer.headers[f"anthropic-ratelimit-{what}-remaining"])


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def until_refused(gateway: Gateway, key: str, **fields: Any) -> httpx2.Response:
    for _ in range(100):
        answer = ask(gateway, key, **fields)
        if answer.status_code != 200:
            assert answer.status_code == 429, answer.text
            return answer
    raise AssertionError("nothing was refused")


def test_every_answer_says_what_is_left(relay: Relay, gateway: Gateway) -> None:
    """Whole ones, streamed ones, the upstream's errors, and our own refusals."""
    account, key = relay.new_account(limits=LIMITS)
    answers = [
        ask(gateway, key),
        ask(gateway, key, stream=True),
        ask(gateway, key, scenario="error:400"),
        ask(gateway, key, scenario="error:529"),
    ]
    relay.admin.patch(f"/accounts/{account}", json={"limits": {"budget_total_usd": "0"}}).raise_for_status()
    answers.append(ask(gateway, key))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 529, 429]
    for answer in answers:
        for name, limit in FIGURES.items():
            assert int(answer.headers[f"anthropic-ratelimit-{name}-limit"]) == limit
            assert 0 < left(answer, name) <= limit
            reset = datetime.fromisoformat(answer.headers[f"anthropic-ratelimit-{name}-reset"])
            assert timedelta(seconds=-2) < reset - datetime.now(UTC) < timedelta(seconds=61)
    assert [left(answer, "requests") for answer in answers[:3]] == [499, 498, 497]


def test_the_tightest_scope_is_told(relay: Relay, gateway: Gateway) -> None:
    account, key = relay.new_account(limits=LIMITS)
    member = relay.post(f"/accounts/{account}/members", {"name": "Ada", "limits": {"rpm": 300}})["id"]
    his = relay.post(
        f"/accounts/{account}/keys", {"name": "test", "member_id": member, "limits": {"rpm": 1, "itpm": 10**6}}
    )
    first, second = ask(gateway, his["key"]), ask(gateway, his["key"])
    assert (first.headers["anthropic-ratelimit-requests-limit"], left(first, "requests")) == ("1", 0)
    assert first.headers["anthropic-ratelimit-input-tokens-limit"] == str(LIMITS["itpm"])
    assert "This API key may use 1 requests a minute; 0 are left." in error_of(second, 429)["message"]
    assert 50 <= int(second.headers["retry-after"]) <= 60
    assert left(ask(gateway, key), "requests") == LIMITS["rpm"] - 2  # the refused one took nothing


@pytest.mark.parametrize("limits", [{"rpm": 60}, {"itpm": 600}], ids=str)
def test_who_waits_as_long_as_told_passes(relay: Relay, gateway: Gateway, limits: dict[str, int]) -> None:
    _, key = relay.new_account(limits=limits)
    refused = until_refused(gateway, key)
    assert error_of(refused, 429)["type"] == "rate_limit_error"
    assert "x-should-retry" not in refused.headers
    time.sleep(int(refused.headers["retry-after"]))
    assert ask(gateway, key).status_code == 200


def test_output_is_refused_while_there_is_debt_and_not_longer(relay: Relay, gateway: Gateway) -> None:
    """What will be said is not known before: requests pass until more was said than is allowed."""
    _, key = relay.new_account(limits={"otpm": 600})
    refused = until_refused(gateway, key, scenario="text;tokens=320", max_tokens=1000)
    told_s, since = int(refused.headers["retry-after"]), time.monotonic()
    assert "output tokens a minute; 0 are left" in error_of(refused, 429)["message"]
    assert left(refused, "output-tokens") == 0 and 1 < told_s < 20
    passed_after_s = wait_until(lambda: ask(gateway, key, max_tokens=1).status_code == 200, "it passes again")
    assert told_s - 1.2 < passed_after_s < told_s + 0.5
    assert time.monotonic() - since < told_s + 1


@pytest.mark.parametrize("limit", ["in_flight", "balance"])
def test_who_comes_while_another_is_in_flight_is_told_to_try_again(relay: Relay, gateway: Gateway, limit: str) -> None:
    if limit == "balance":
        _, key = relay.new_account(credit_usd="0.001")
    else:
        _, key = relay.new_account(limits={"in_flight": 1})
    slow: list[httpx2.Response] = []
    first = threading.Thread(target=lambda: slow.append(ask(gateway, key, scenario="slow;gap_ms=300")))
    first.start()
    wait_until(lambda: gateway.gauge("relay_requests_in_flight") == 1, "the first is under way")
    refused = ask(gateway, key)
    assert "in flight" in error_of(refused, 429)["message"]
    assert refused.headers["retry-after"] == "1" and "x-should-retry" not in refused.headers
    first.join()
    assert slow[0].status_code == 200
    assert ask(gateway, key, max_tokens=1).status_code == 200


@pytest.mark.parametrize("period", ["day", "week", "month", "total"])
def test_a_spent_budget_is_not_to_be_retried(relay: Relay, gateway: Gateway, period: str) -> None:
    account, key = relay.new_account(limits={f"budget_{period}_usd": "0.001"})
    assert ask(gateway, key, scenario="text;tokens=50").status_code == 200
    relay.rows(account, 1)
    refused = ask(gateway, key)
    message = error_of(refused, 429)["message"]
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    assert "of this account is 0.001 USD" in message and "is spent" in message
    assert ("It resets at" in message) is (period != "total")


def test_a_balance_too_low_says_what_would_fit_and_it_does(relay: Relay, gateway: Gateway) -> None:
    account, key = relay.new_account(credit_usd="0.01", multiplier="1.3")
    refused = ask(gateway, key, max_tokens=4000)
    error = error_of(refused, 402)
    assert error["type"] == "insufficient_balance" and error["available_usd"] == "0.01"
    assert refused.headers["x-should-retry"] == "false" and "retry-after" not in refused.headers
    fits = error["max_tokens_affordable"]
    assert 0 < fits < 4000 and error["needed_usd"] in error["message"] and str(fits) in error["message"]
    assert ask(gateway, key, max_tokens=fits + 1).status_code == 402
    assert ask(gateway, key, max_tokens=fits).status_code == 200
    relay.rows(account, 1)


def change_account(**fields: Any) -> Callable[[Relay, dict[str, str]], None]:
    return lambda relay, ids: change(relay, f"/accounts/{ids['account']}", fields)


def change_key(**fields: Any) -> Callable[[Relay, dict[str, str]], None]:
    return lambda relay, ids: change(relay, f"/accounts/{ids['account']}/keys/{ids['key']}", fields)


def change_member(**fields: Any) -> Callable[[Relay, dict[str, str]], None]:
    return lambda relay, ids: change(relay, f"/accounts/{ids['account']}/members/{ids['member']}", fields)


def change(relay: Relay, path: str, fields: dict[str, Any]) -> None:
    relay.admin.patch(path, json=fields).raise_for_status()


def delete(what: str) -> Callable[[Relay, dict[str, str]], None]:
    def deleting(relay: Relay, ids: dict[str, str]) -> None:
        relay.admin.delete(f"/accounts/{ids['account']}/{what}s/{ids[what]}").raise_for_status()

    return deleting


def take_all_money(relay: Relay, ids: dict[str, str]) -> None:
    relay.post(f"/accounts/{ids['account']}/credits", {"amount_usd": "-100.00", "reason": "test"})


def give_money(relay: Relay, ids: dict[str, str]) -> None:
    relay.post(f"/accounts/{ids['account']}/credits", {"amount_usd": "100.00", "reason": "test"})


@pytest.mark.parametrize(
    ("done", "status", "undone"),
    [
        (change_account(status="disabled"), 401, change_account(status="active")),
        (change_account(limits={"budget_total_usd": "0"}), 429, change_account(limits={"budget_total_usd": None})),
        (change_key(status="disabled"), 401, change_key(status="active")),
        (change_key(limits={"budget_day_usd": "0"}), 429, change_key(limits={"budget_day_usd": "1"})),
        (change_key(models=["claude-haiku-4-5"]), 404, change_key(models=["claude-haiku-4-5", MODEL])),
        (change_key(ip_allowlist=["10.0.0.0/8"]), 401, change_key(ip_allowlist=["10.0.0.0/8", "127.0.0.0/8"])),
        (change_key(expires_at="2026-01-01T00:00:00Z"), 401, change_key(expires_at=None)),
        (change_member(status="disabled"), 401, change_member(status="active")),
        (change_member(limits={"budget_week_usd": "0"}), 429, change_member(limits={"budget_week_usd": None})),
        (take_all_money, 402, give_money),
        (delete("key"), 401, None),
        (delete("member"), 401, None),
    ],
)
def test_a_change_is_in_force_for_the_very_next_request(
    relay: Relay,
    gateways: list[Gateway],
    done: Callable[[Relay, dict[str, str]], None],
    status: int,
    undone: Callable[[Relay, dict[str, str]], None] | None,
) -> None:
    """On every gateway; and so is its undoing."""
    account, _ = relay.new_account()
    member = relay.post(f"/accounts/{account}/members", {"name": "Ada"})["id"]
    key = relay.post(f"/accounts/{account}/keys", {"name": "test", "member_id": member})
    ids = {"account": account, "key": key["id"], "member": member}
    for _ in range(2):
        assert [ask(gateway, key["key"]).status_code for gateway in gateways] == [200, 200]
        done(relay, ids)
        assert [ask(gateway, key["key"]).status_code for gateway in gateways] == [status, status]
        if undone is None:
            return
        undone(relay, ids)
    assert [ask(gateway, key["key"]).status_code for gateway in gateways] == [200, 200]


def test_a_key_may_use_its_models_only(relay: Relay, gateway: Gateway) -> None:
    account, _ = relay.new_account()
    key = relay.post(f"/accounts/{account}/keys", {"name": "test", "models": ["claude-haiku-4-5"]})["key"]
    assert ask(gateway, key, model="claude-haiku-4-5-20251001").status_code == 200
    refused = ask(gateway, key)
    assert error_of(refused, 404) == {"type": "not_found_error", "message": f"model: {MODEL}"}
    in_fallback = ask(gateway, key, model="claude-haiku-4-5", fallbacks=[{"model": MODEL}])
    assert error_of(in_fallback, 404)["type"] == "not_found_error"
    listed = httpx2.get(f"{gateway.url}/v1/models?limit=1000", headers={"x-api-key": key}, verify=PLAIN).json()["data"]
    assert {entry["id"] for entry in listed} == {"claude-haiku-4-5", "claude-haiku-4-5-20251001"}
    relay.rows(account, 1)


def test_a_key_works_until_it_expires(relay: Relay, gateway: Gateway) -> None:
    account, _ = relay.new_account()
    expires_at = datetime.now(UTC) + timedelta(seconds=1.5)
    key = relay.post(f"/accounts/{account}/keys", {"name": "test", "expires_at": expires_at.isoformat()})["key"]
    assert ask(gateway, key).status_code == 200
    time.sleep(max((expires_at - datetime.now(UTC)).total_seconds(), 0) + 0.05)
    refused = ask(gateway, key)
    assert "This API key expired at " in error_of(refused, 401)["message"]
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.anyio
async def test_counting_tokens_takes_nothing_from_messages(relay: Relay, gateway: Gateway) -> None:
    """Claude Code asks 26 times within 50 ms."""
    _, key = await asyncio.to_thread(relay.new_account, limits={"rpm": 1, "free_rpm": 26})
    body = b'{"model":"%b","messages":[{"role":"user","content":"Hello"}]}' % MODEL.encode()
    head = f"POST /v1/messages/count_tokens HTTP/1.1\r\nhost: relay\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n"
    lines = [await Line.to(gateway) for _ in range(26)]
    started = time.monotonic()
    for line in lines:
        line.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert time.monotonic() - started < 0.05
    answers = await asyncio.gather(*(line.answer() for line in lines))
    for line in lines:
        line.abort()
    await asyncio.sleep(0)
    assert {answer.status for answer in answers} == {200}
    refused = await asyncio.to_thread(count_tokens, gateway, key)
    assert "requests a minute to count_tokens, the model list and /v1/usage" in error_of(refused, 429)["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3
    message = await asyncio.to_thread(ask, gateway, key)
    assert (message.status_code, left(message, "requests")) == (200, 0)


def sdk_of(gateway: Gateway, key: str, *, retries: int) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=retries)


def test_the_sdk_waits_as_told_and_passes(relay: Relay, gateway: Gateway) -> None:
    _, key = relay.new_account(limits={"rpm": 30})
    until_refused(gateway, key)
    with sdk_of(gateway, key, retries=0) as sdk, pytest.raises(anthropic.RateLimitError) as caught:
        sdk.messages.create(model=MODEL, max_tokens=50, messages=HELLO)
    assert caught.value.type == "rate_limit_error"
    told_s = int(caught.value.response.headers["retry-after"])
    started = time.monotonic()
    with sdk_of(gateway, key, retries=1) as sdk:
        assert sdk.messages.create(model=MODEL, max_tokens=50, messages=HELLO).content
    assert told_s - 1.2 < time.monotonic() - started < told_s + 2


@pytest.mark.parametrize(
    ("done", "raised"),
    [
        (change_account(limits={"budget_month_usd": "0"}), anthropic.RateLimitError),
        (change_account(status="disabled"), anthropic.AuthenticationError),
        (take_all_money, anthropic.APIStatusError),
    ],
)
def test_the_sdk_does_not_repeat_what_waiting_does_not_help(
    relay: Relay,
    gateway: Gateway,
    done: Callable[[Relay, dict[str, str]], None],
    raised: type[anthropic.APIStatusError],
) -> None:
    account, key = relay.new_account()
    done(relay, {"account": account})
    started = time.monotonic()
    with sdk_of(gateway, key, retries=5) as sdk, pytest.raises(raised):
        sdk.messages.create(model=MODEL, max_tokens=50, messages=HELLO)
    assert time.monotonic() - started < 0.5
