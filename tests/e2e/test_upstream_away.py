"""An upstream that is not there, says nothing, or answers before it has listened: told soon, and nobody waits for ever."""

import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.bodies import JSON, SSE
from tests.e2e.leaving import DELTAS, START, STREAM_HEAD, USAGE_START, Staged, ask, billed
from tests.e2e.relay import Gateway, Relay, free_port
from tests.e2e.test_bad_input import refused
from tests.e2e.wire import WAIT_S, Caller, Received, ScriptedUpstream, Wire, chunk, head_bytes, playing

pytestmark = pytest.mark.alone

SILENCE_S: Final = 1.0


@pytest.fixture(scope="module")
def impatient(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """A gateway that takes a second of silence for the end."""
    settings = {
        "RELAY_UPSTREAM_FIRST_BYTE_SECONDS": str(SILENCE_S),
        "RELAY_UPSTREAM_IDLE_SECONDS": str(SILENCE_S),
    }
    with relay.second_gateway(upstream.url, **settings) as running:
        yield running


def test_nobody_listens(relay: Relay) -> None:
    account, key = relay.new_account()
    with relay.second_gateway(f"http://127.0.0.1:{free_port()}") as gateway:
        for stream in (False, True):
            with ask(gateway, key, stream=stream) as caller:
                head, body = caller.answer()
            refused((head, body), 529, "overloaded_error")
            assert int(head.get(b"retry-after") or 0) <= 10
        gateway.wait_at_rest()
    rows = relay.rows(account, 2)
    assert [(row["outcome"], row["status"], row["total_nanos"]) for row in rows] == [("free", 0, 0)] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_silence_before_the_first_byte(
    relay: Relay, impatient: Gateway, upstream: ScriptedUpstream, stream: bool
) -> None:
    account, key = relay.new_account()
    upstream.script = script = Staged(b"", None)
    started = time.monotonic()
    with ask(impatient, key, stream=stream) as caller:
        refused(caller.answer(), 504, "timeout_error")
    assert SILENCE_S * 0.9 < time.monotonic() - started < SILENCE_S + 3
    assert script.hung_up.wait(WAIT_S)
    billed(relay, account, "free", {}, status=0)


def test_silence_inside_a_stream(relay: Relay, impatient: Gateway, upstream: ScriptedUpstream) -> None:
    """Behind whole events the relay says so in one of its own; the row is what was known."""
    account, key = relay.new_account()
    upstream.script = script = Staged(STREAM_HEAD + chunk(START + DELTAS[0]), None)
    with ask(impatient, key) as caller:
        received, whole = caller.all_that_comes()
    assert whole and received.startswith(START + DELTAS[0] + b'event: error\ndata: {"type":"error"')
    assert script.hung_up.wait(WAIT_S)
    billed(relay, account, "partial", USAGE_START)


def test_silence_inside_an_event(relay: Relay, impatient: Gateway, upstream: ScriptedUpstream) -> None:
    account, key = relay.new_account()
    upstream.script = script = Staged(head_bytes(200, SSE) + chunk(START + DELTAS[0][:-9]), None)
    with ask(impatient, key) as caller:
        received, whole = caller.all_that_comes()
    assert not whole and received == START + DELTAS[0][:-9]
    assert script.hung_up.wait(WAIT_S)
    billed(relay, account, "partial", USAGE_START)


def test_an_answer_that_comes_before_the_request_was_read(
    relay: Relay, impatient: Gateway, upstream: ScriptedUpstream
) -> None:
    """The caller gets it; the connection, on which half a request is stuck, is not used again."""
    account, key = relay.new_account()
    error = b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'

    def early(wire: Wire, _: Received) -> None:
        playing(400, JSON, [error], framing="length")(wire, _)

    upstream.early = early
    body = b'{"model":"claude-sonnet-4-6","messages":"' + b"x" * 20_000_000 + b'"}'
    try:
        with Caller.to(impatient.url) as caller:
            caller.post("/v1/messages", [(b"x-api-key", key.encode()), *JSON], body)
            head, received = caller.answer()
        assert (head.status, received) == (400, error)
    finally:
        upstream.early = None
    impatient.wait_at_rest()
    assert impatient.gauge("relay_upstream_connections_open") == impatient.gauge("relay_upstream_connections_idle")
    billed(relay, account, "free", {}, status=400)
