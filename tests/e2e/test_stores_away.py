"""Stores gone: without Redis nothing is admitted, and at once; without NATS or ClickHouse requests succeed, rows come later."""

import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final

import httpx2
import pytest

from tests.e2e.bodies import BODY, JSON
from tests.e2e.relay import Relay
from tests.e2e.store import Store
from tests.e2e.test_bad_input import refused
from tests.e2e.waiting import PLAIN, wait_until
from tests.e2e.wire import Caller, Head

pytestmark = pytest.mark.alone

REFUSED_WITHIN_S: Final = 0.3
MARGIN_S: Final = 0.1
"""For a machine that does other things at the same time."""
WAITING_S: Final = 1.0
QUESTION: Final = json.dumps(
    {"model": "claude-sonnet-4-6", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello"}]}
).encode()


def ask(relay: Relay, key: str, path: str = "/v1/messages", body: bytes = QUESTION) -> tuple[Head, bytes]:
    with Caller.to(relay.gateway_url) as caller:
        caller.post(path, [(b"x-api-key", key.encode()), *JSON], body)
        return caller.answer()


def is_ready(relay: Relay) -> bool:
    return httpx2.get(f"{relay.gateway_url}/readyz", verify=PLAIN).status_code == 200


@pytest.mark.parametrize("away", [Store.kill, Store.freeze], ids=["killed", "frozen"])
def test_without_redis_nothing_is_admitted_and_what_runs_is_finished(
    own_relay: Relay, own_redis: Store, away: Callable[[Store], None]
) -> None:
    account, key = own_relay.new_account()
    other = own_relay.new_key(account)["key"]  # one the gateway has not seen yet
    assert ask(own_relay, key)[0].status == 200
    with Caller.to(own_relay.gateway_url) as running:
        slow = (b"x-sim-scenario", b"slow;gap_ms=100;tokens=60")
        body = QUESTION[:-1] + b',"stream":true}'
        running.post("/v1/messages", [(b"x-api-key", key.encode()), *JSON, slow], body)
        pieces = running.pieces(running.head())
        received = next(pieces)
        away(own_redis)
        took_s: list[float] = []
        try:
            for _ in range(2):
                for secret in (key, other):
                    for path in ("/v1/messages", "/v1/messages/count_tokens"):
                        started = time.monotonic()
                        head, answer = ask(own_relay, secret, path)
                        refused((head, answer), 529, "overloaded_error")
                        assert head.get(b"retry-after") == b"2"
                        took_s.append(time.monotonic() - started)
            assert statistics.median(took_s) < REFUSED_WITHIN_S + MARGIN_S and max(took_s) < 5 * REFUSED_WITHIN_S, (
                took_s
            )
            assert not is_ready(own_relay)
            received += b"".join(pieces)
            assert b"event: message_stop" in received
        finally:
            own_redis.give_back()
    wait_until(lambda: is_ready(own_relay), "the gateway finds Redis again")
    wait_until(lambda: ask(own_relay, key)[0].status == 200, "its balances are checked")
    assert ask(own_relay, key)[0].status == ask(own_relay, other)[0].status == 200
    rows = own_relay.rows(account, 5)
    assert {row["outcome"] for row in rows} == {"measured"}


def test_without_nats_requests_succeed_and_their_rows_come_later(own_relay: Relay, own_nats: Store) -> None:
    account, key = own_relay.new_account()
    own_nats.kill()
    try:
        for _ in range(5):
            started = time.monotonic()
            assert ask(own_relay, key)[0].status == 200
            assert time.monotonic() - started < 1
        assert ask(own_relay, key, body=BODY)[0].status == 400
        wait_until(lambda: own_relay.gateway.gauge("relay_events_unpublished") == 6, "the events wait")
        assert is_ready(own_relay)
    finally:
        own_nats.give_back()
    wait_until(lambda: own_relay.admin.get(f"/accounts/{account}").status_code == 200, "admin finds NATS again")
    rows: list[dict[str, Any]] = own_relay.rows(account, 6, wait_s=60)
    assert sorted(row["outcome"] for row in rows) == ["free", *["measured"] * 5]
    own_relay.gateway.wait_at_rest()


def test_a_gateway_does_not_end_before_its_events_are_kept(own_relay: Relay, own_nats: Store) -> None:
    """SIGTERM while NATS is away: the events in hand are waited for, and published once it is back."""
    account, key = own_relay.new_account()
    with own_relay.second_gateway(own_relay.simulator_url) as gateway:
        own_nats.kill()
        try:
            with Caller.to(gateway.url) as caller:
                caller.post("/v1/messages", [(b"x-api-key", key.encode()), *JSON], QUESTION)
                assert caller.answer()[0].status == 200
            wait_until(lambda: gateway.gauge("relay_events_unpublished") == 1, "the event waits")
            gateway.service.signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                gateway.service.process.wait(WAITING_S)
        finally:
            own_nats.give_back()
        assert gateway.service.process.wait(30) == 0
    wait_until(lambda: own_relay.admin.get(f"/accounts/{account}").status_code == 200, "admin finds NATS again")
    (row,) = own_relay.rows(account, 1)
    assert row["outcome"] == "measured"


def test_without_clickhouse_requests_succeed_and_are_not_settled_before_they_are_in_the_archive(
    own_relay: Relay, own_clickhouse: Store
) -> None:
    account, key = own_relay.new_account()
    own_clickhouse.kill()
    try:
        for _ in range(3):
            assert ask(own_relay, key)[0].status == 200
        own_relay.gateway.wait_at_rest()
        accounting = own_relay.services["accounting"]
        wait_until(lambda: "LedgerUnavailable" in accounting.log_text, "accounting has tried")
        balance = own_relay.balance(account)
        assert balance["spent_usd"] == "0.00" != balance["held_usd"]
    finally:
        own_clickhouse.give_back()
    assert {row["outcome"] for row in own_relay.rows(account, 3, wait_s=60)} == {"measured"}
