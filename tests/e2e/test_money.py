"""A thousand mixed requests at once: every row is what the simulator's invoice, priced independently, says; and Σ = Σ.

The seed of a run is printed; RELAY_TEST_SEED repeats it.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import secrets
from collections import Counter
from decimal import Decimal
from typing import Any, Final

import httpx2
import pytest

from services.gateway.peek import peek
from tests.e2e.crowd import CANCELLING, SETTINGS, Crowd, new_account
from tests.e2e.plans import Plan, Planner
from tests.e2e.relay import Relay
from tests.e2e.waiting import PLAIN, wait_until
from tests.invoice_fold import cost_nanos

REQUESTS: Final = 1000


def parked_by(relay: Relay) -> int:
    """Events that accounting has given up so far."""
    lines = httpx2.get(f"{relay.services['accounting'].url}/metrics", verify=PLAIN).text.splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith("relay_events_parked_total"))


@pytest.fixture(scope="module", autouse=True)
def unpriced(relay: Relay) -> tuple[str, str, int]:
    """An event without a price, sent before all else, since accounting is patient with it; and one with a price.

    The account, the id of the second, and how many events were parked before.
    """
    parked = parked_by(relay)
    account, key = relay.new_account()
    body = {"model": "claude-sonnet-4-6", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
    with httpx2.Client(base_url=relay.gateway_url, headers={"x-api-key": key}) as caller:
        odd = caller.post("/v1/messages", json=body, headers={"x-sim-scenario": "unknown_class"})
        plain = caller.post("/v1/messages", json=body)
    assert (odd.status_code, plain.status_code) == (200, 200)
    return account, plain.headers["x-relay-request-id"], parked


def body_of(answer: bytes) -> bytes:
    """The body of a whole answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return body
    pieces, at = [], 0
    while size := int(body[at : (end := body.index(b"\r\n", at))], 16):
        pieces.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
    assert body[at:] == b"0\r\n\r\n"
    return b"".join(pieces)


def characters(stream: bytes) -> int:
    """Of text, thinking and tool input, as decision 2 counts them."""
    deltas = [
        json.loads(line) for line in re.findall(rb"^data: (\{.*\"content_block_delta\".*)$", stream, re.MULTILINE)
    ]
    return sum(len(delta["delta"].get(name, "")) for delta in deltas for name in ("text", "thinking", "partial_json"))


def check(plan: Plan, row: dict[str, Any], invoiced: dict[str, Any], received: bytes, multiplier_ppm: int) -> None:
    """One row against one entry of the invoice."""
    assert row["outcome"] == plan.outcome
    assert (row["model_asked"], row["stream"]) == (plan.model, plan.stream)
    assert row["status"] == invoiced["status"] or plan.leave
    assert hashlib.sha256(plan.body).hexdigest() == invoiced["body_received_sha256"]
    usage = row["usage"]
    match plan.outcome:
        case "free":
            assert (row["total_nanos"], row["lines"], usage) == (0, [], {})
            return
        case "measured":
            assert invoiced["complete"] and usage == invoiced["usage_final"]
            if not plan.leave:
                assert hashlib.sha256(body_of(received)).hexdigest() == invoiced["body_sent_sha256"]
        case "partial":
            assert not invoiced["complete"] and usage == invoiced["usage_last_sent"]
        case "estimated":
            check_estimate(plan, row, invoiced, received)
    assert row["model_answered"] == (invoiced["model_answered"] if invoiced["usage_start"] else plan.model)
    assert row["total_nanos"] == cost_nanos(
        usage,
        model_asked=plan.model,
        model_answered=row["model_answered"],
        cache_ttl_1h=plan.ttl_1h,
        multiplier_ppm=multiplier_ppm,
        declined_models=invoiced["declined_models"],
    )


def check_estimate(plan: Plan, row: dict[str, Any], invoiced: dict[str, Any], received: bytes) -> None:
    """`message_start` plus a token for four characters: at least those the caller saw, at most those that were sent."""
    start, usage = invoiced["usage_start"], row["usage"]
    if start is None or not plan.stream:
        tokens = 0 if plan.stream else -(-row["bytes_out"] // 4)  # of a JSON answer, what had come (ADR 2)
        assert usage == {"input_tokens": peek(plan.body).input_estimated_tokens, "output_tokens": tokens}
        return
    if usage["input_tokens"] == peek(plan.body).input_estimated_tokens and plan.leave == "before":
        return  # cancelled in the moment in which the first event was on its way
    tokens = usage["output_tokens"] - start["output_tokens"]
    assert usage == {**start, "output_tokens": usage["output_tokens"]}
    assert -(-characters(received) // 4) <= tokens <= -(-invoiced["text_chars_sent"] // 4)


@pytest.mark.anyio
async def test_a_thousand_requests(relay: Relay) -> None:
    seed = int(os.environ.get("RELAY_TEST_SEED") or secrets.randbits(32))
    print(f"RELAY_TEST_SEED={seed}")
    accounts = [new_account(relay, settings) for settings in SETTINGS]
    plans = Planner(random.Random(seed), accounts=len(accounts), cancelling=CANCELLING).draw(REQUESTS)
    crowd = Crowd(relay, accounts)
    await crowd.run(plans)
    await asyncio.to_thread(relay.gateway.wait_at_rest)
    wait_until(lambda: relay.simulator("connections")["busy"] == 0, "the upstream serves nobody any more")
    assert relay.simulator("connections")["streams_running"] == 0
    invoice: dict[str, list[dict[str, Any]]] = {}
    for entry in relay.invoice():
        invoice.setdefault(entry["sim_id"], []).append(entry)
    for number, account in enumerate(accounts):
        # `rows` also waits until, and fails unless, the balance has lost what the rows add up to
        rows = relay.rows(account.id, sum(plan.account == number for plan in plans))
        account.rows = {row["bytes_in"]: row for row in rows}
        assert len(account.rows) == len(rows)
        assert relay.balance(account.id)["held_usd"] == "0.00"
    problems = []
    for plan in plans:
        account = accounts[plan.account]
        row, invoiced = account.rows[len(plan.body)], invoice[plan.sim_id][-1]
        # an error is tried four times; a reused connection that is reset is replaced
        assert len(invoice[plan.sim_id]) == 1 or plan.scenario in ("reset", "error:500", "error:529")
        try:
            check(plan, row, invoiced, crowd.received[plan.number], account.multiplier_ppm)
        except AssertionError as error:
            problems.append(
                (plan.number, plan.scenario, plan.leave, plan.stream, plan.model, str(error), row, invoiced)
            )
    assert not problems, f"{len(problems)} of {REQUESTS}, the first: {problems[:3]}"
    seen = Counter(plan.outcome for plan in plans)
    assert min(seen[name] for name in ("measured", "partial", "estimated", "free")) >= 10, seen


@pytest.mark.parametrize("stream", [False, True])
def test_a_row_tells_all_there_is_to_tell(relay: Relay, stream: bool) -> None:
    """And its lines add up to its total, to the nano-dollar."""
    account, key = relay.new_account(multiplier="1.1")
    body = {
        "model": "claude-haiku-4-5",
        "max_tokens": 500,
        "stream": stream,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    headers = {"x-api-key": key, "user-agent": "claude-cli/2.1.330 (external, cli)", "x-sim-scenario": "web_search;n=2"}
    answer = httpx2.post(f"{relay.gateway_url}/v1/messages?beta=true", json=body, headers=headers, verify=PLAIN)
    row = relay.receipt(answer.headers["x-relay-request-id"])
    (created,) = relay.admin.get(f"/accounts/{account}/keys").json()["data"]
    expected = {
        "request_id": answer.headers["x-relay-request-id"],
        "upstream_request_id": answer.headers["request-id"],
        "account_id": account,
        "key_id": created["id"],
        "version": 3,
        "path": "/v1/messages",
        "model_asked": "claude-haiku-4-5",
        "model_answered": "claude-haiku-4-5-20251001",
        "stream": stream,
        "status": 200,
        "outcome": "measured",
        "stop_reason": "end_turn",
        "client": "claude-code",
        "bytes_in": len(answer.request.content),
        "bytes_out": len(answer.content),
        "multiplier_ppm": 1_100_000,
    }
    assert {name: row[name] for name in expected} == expected
    ((upstream_id, status, error),) = [(one["upstream_id"], one["status"], one["error"]) for one in row["attempts"]]
    assert (upstream_id, status, error) == ("env", 200, "")
    assert row["price_book_version"] and row["time"].endswith("Z") and 0 < row["first_byte_us"] <= row["duration_us"]
    lines = {line["class"]: line for line in row["lines"]}
    assert set(lines) == {"input", "output", "web_search"} and lines["web_search"]["quantity"] == 2
    total = sum(Decimal(line["amount_usd"]) for line in row["lines"])
    assert total == Decimal(row["total_usd"]) == Decimal(row["total_nanos"]) / 10**9
    model = "claude-haiku-4-5"
    cost = cost_nanos(row["usage"], model_asked=model, model_answered=model, multiplier_ppm=1_100_000)
    assert row["total_nanos"] == cost


def test_an_amount_nobody_knows_is_parked_and_costs_nothing_yet(relay: Relay, unpriced: tuple[str, str, int]) -> None:
    """Never priced at zero, never guessed: the event waits for an operator, the rest of the account goes on."""
    account, request_id, parked = unpriced
    (row,) = relay.rows(account, 1, held=True)
    assert row["request_id"] == request_id
    wait_until(lambda: parked_by(relay) == parked + 1, "the event is parked")
    assert relay.rows(account, 1, held=True) == [row]
    assert Decimal(relay.balance(account)["held_usd"]) > 0  # until the lease of the parked one ends
