"""Callers who leave: what they are billed is DESIGN.md's table (and decision 2), and nothing of them is left behind.

The upstream plays a script, so that everyone leaves at exactly the moment the test is about.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.e2e.bodies import JSON
from tests.e2e.leaving import (
    ANSWER,
    BEGUN,
    DELTAS,
    ESTIMATED,
    FINAL,
    JSON_HEAD,
    PER_BYTE,
    SOME_OF_IT,
    START,
    STOP,
    STREAM_HEAD,
    USAGE_FINAL,
    USAGE_START,
    Staged,
    ask,
    billed,
    input_estimate,
    read,
    sse,
)
from tests.e2e.relay import Gateway, Relay
from tests.e2e.waiting import wait_until
from tests.e2e.wire import WAIT_S, Caller, Received, ScriptedUpstream, Wire, chunk, head_bytes

DRAIN_S: Final = 3.0
JSON_BEGUN: Final = head_bytes(200, JSON) + chunk(ANSWER[:SOME_OF_IT])
DRAINS_MAX: Final = 2


@pytest.fixture(scope="module")
def gateway(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    settings = {
        "RELAY_DRAIN_SECONDS": str(DRAIN_S),
        "RELAY_DRAINS_MAX": str(DRAINS_MAX),
    }
    with relay.second_gateway(upstream.url, **settings) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_behind(gateway: Gateway, scripted_gateway: Gateway, upstream: ScriptedUpstream) -> Iterator[None]:
    yield
    wait_until(lambda: upstream.running == 0, "no stream at the upstream")
    for one in (gateway, scripted_gateway):
        one.wait_at_rest()
        wait_until(lambda one=one: one.callers_connected() == 0, "no caller's socket at the gateway")  # type: ignore[misc]


Leave = Callable[[Caller], None]
WAYS: Final = pytest.mark.parametrize("leave", [Wire.close, Wire.reset], ids=["close", "reset"])


# -- accounts that drain -----------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    ("stream", "first", "seen", "rest"),
    [
        (False, b"", b"", JSON_HEAD + ANSWER),
        (False, JSON_HEAD + ANSWER[:20], ANSWER[:20], ANSWER[20:]),
        (True, b"", b"", STREAM_HEAD + chunk(BEGUN + FINAL) + chunk(STOP) + b"0\r\n\r\n"),
        (True, STREAM_HEAD + chunk(START), START, chunk(DELTAS[0]) + chunk(FINAL + STOP) + b"0\r\n\r\n"),
        (True, STREAM_HEAD + chunk(BEGUN[:-9]), BEGUN[:-9], chunk(BEGUN[-9:] + FINAL + STOP) + b"0\r\n\r\n"),
    ],
    ids=["json before", "json inside", "stream before", "stream between events", "stream inside an event"],
)
def test_drained(
    relay: Relay,
    gateway: Gateway,
    upstream: ScriptedUpstream,
    leave: Leave,
    stream: bool,
    first: bytes,
    seen: bytes,
    rest: bytes,
) -> None:
    """The upstream is read to its end: the row is `measured`, as if the caller had stayed."""
    account, key = relay.new_account()
    upstream.script = script = Staged(first, rest)
    caller = ask(gateway, key, stream=stream)
    assert script.reached.wait(WAIT_S)
    if seen:
        read(caller, seen)
    leave(caller)
    if not seen or leave is Wire.reset:  # a quiet farewell inside an answer shows when something is written to him
        wait_until(lambda: gateway.gauge("relay_drains_in_progress") == 1, "the drain has begun")
    script.proceed.set()
    billed(relay, account, "measured", USAGE_FINAL, stream=stream, status=200)


@pytest.mark.parametrize(
    ("rest", "outcome", "usage", "status"),
    [
        (chunk(DELTAS[0]), "partial", USAGE_START, 200),
        (chunk(FINAL) + b"0\r\n\r\n", "partial", USAGE_FINAL, 200),
        (
            chunk(sse("error", error={"type": "overloaded_error", "message": "x"})) + b"0\r\n\r\n",
            "partial",
            USAGE_START,
            200,
        ),
    ],
    ids=["breaks", "ends without message_stop", "error event"],
)
def test_an_upstream_that_breaks_while_it_is_drained(
    relay: Relay,
    gateway: Gateway,
    upstream: ScriptedUpstream,
    rest: bytes,
    outcome: str,
    usage: dict[str, int],
    status: int,
) -> None:
    account, key = relay.new_account()
    script = Staged(STREAM_HEAD + chunk(START), rest)

    def and_close(wire: Wire, request: Received) -> None:
        script(wire, request)
        wire.close()

    upstream.script = and_close
    caller = ask(gateway, key)
    assert script.reached.wait(WAIT_S)
    read(caller, START)
    caller.reset()
    wait_until(lambda: gateway.gauge("relay_drains_in_progress") == 1, "the drain has begun")
    script.proceed.set()
    billed(relay, account, outcome, usage, status=status)


def test_an_error_that_nobody_waits_for_is_free(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    account, key = relay.new_account()
    upstream.script = script = Staged(b"", head_bytes(500, JSON, framing="length", size=2) + b"{}")
    caller = ask(gateway, key)
    assert script.reached.wait(WAIT_S)
    caller.close()
    wait_until(lambda: gateway.gauge("relay_drains_in_progress") == 1, "the drain has begun")
    script.proceed.set()
    billed(relay, account, "free", {}, status=500)


def test_the_drain_has_an_end(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Past its seconds the upstream is hung up on, and what has come by then is estimated."""
    (streaming, key_streaming), (plain, key_plain) = relay.new_account(), relay.new_account()
    upstream.script = stream = Staged(STREAM_HEAD + chunk(START), None)
    leaver = ask(gateway, key_streaming)
    assert stream.reached.wait(WAIT_S)
    read(leaver, START)
    upstream.script = answer = Staged(b"", None)
    waiting = ask(gateway, key_plain, stream=False)
    assert answer.reached.wait(WAIT_S)
    leaver.reset()
    waiting.reset()
    wait_until(lambda: gateway.gauge("relay_drains_in_progress") == 2, "both drains have begun")
    took_s = wait_until(lambda: stream.hung_up.is_set() and answer.hung_up.is_set(), "the relay hangs up")
    assert DRAIN_S / 2 < took_s < DRAIN_S + 3
    billed(relay, streaming, "estimated", USAGE_START, status=200)
    billed(relay, plain, "estimated", input_estimate(stream=False), status=0)


def test_drains_have_a_number(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """One more than may drain at once is hung up on at once."""
    drained: list[tuple[str, Staged]] = []
    for _ in range(DRAINS_MAX):
        account, key = relay.new_account()
        upstream.script = script = Staged(STREAM_HEAD + chunk(START), chunk(FINAL + STOP) + b"0\r\n\r\n")
        caller = ask(gateway, key)
        assert script.reached.wait(WAIT_S)
        read(caller, START)
        caller.reset()
        drained.append((account, script))
    wait_until(lambda: gateway.gauge("relay_drains_in_progress") == DRAINS_MAX, "all drains have begun")
    account, key = relay.new_account()
    upstream.script = refused = Staged(STREAM_HEAD + chunk(BEGUN), None)
    caller = ask(gateway, key)
    read(caller, BEGUN)
    caller.reset()
    assert refused.hung_up.wait(WAIT_S)
    for _, script in drained:
        script.proceed.set()
    billed(relay, account, "estimated", ESTIMATED)
    for account, _ in drained:
        billed(relay, account, "measured", USAGE_FINAL)


# -- accounts that cancel ----------------------------------------------------------------------------------------------


class GoingOn(Staged):
    """Once the caller has left, it writes the same bytes again and again until the relay hangs up."""

    def __init__(self, first: bytes, more: bytes) -> None:
        super().__init__(first, None)
        self._more = more

    def __call__(self, wire: Wire, _: Received) -> None:
        wire.send(self._first)
        self.reached.set()
        assert self.proceed.wait(WAIT_S)
        wire.socket.settimeout(0.1)
        with contextlib.suppress(OSError):
            while not self._is_closed(wire):
                wire.send(self._more)
        self.hung_up.set()
        wire.close()

    def _is_closed(self, wire: Wire) -> bool:
        try:
            wire.wait_closed()
        except TimeoutError:
            return False
        return True


@WAYS
@pytest.mark.parametrize(
    ("stream", "first", "seen", "outcome", "usage"),
    [
        (False, b"", b"", "estimated", input_estimate(stream=False)),
        (False, JSON_BEGUN, ANSWER[:SOME_OF_IT], "estimated", input_estimate(stream=False, output_tokens=PER_BYTE)),
        (True, b"", b"", "estimated", input_estimate(stream=True)),
        (True, STREAM_HEAD + chunk(b": hello\n\n"), b": hello\n\n", "estimated", input_estimate(stream=True)),
        (True, STREAM_HEAD + chunk(START), START, "estimated", USAGE_START),
        (True, STREAM_HEAD + chunk(BEGUN), BEGUN, "estimated", ESTIMATED),
        (True, STREAM_HEAD + chunk(BEGUN + FINAL), BEGUN + FINAL, "measured", USAGE_FINAL),
    ],
    ids=[
        "json before",
        "json inside",
        "before",
        "before message_start",
        "after message_start",
        "inside",
        "after the usage",
    ],
)
def test_cancelled(
    relay: Relay,
    scripted_gateway: Gateway,
    upstream: ScriptedUpstream,
    leave: Leave,
    stream: bool,
    first: bytes,
    seen: bytes,
    outcome: str,
    usage: dict[str, int],
) -> None:
    """The upstream is hung up on, long before a drain would have ended; the row is an estimate, unless the usage was final."""
    account, key = relay.new_account(on_disconnect="cancel")
    quiet = seen and leave is Wire.close  # a quiet farewell inside an answer shows when something is written to him
    more = chunk(sse("ping") if stream else b" ")
    upstream.script = script = GoingOn(first, more) if quiet else Staged(first, None)
    caller = ask(scripted_gateway, key, stream=stream)
    assert script.reached.wait(WAIT_S)
    if seen:
        read(caller, seen)
    leave(caller)
    script.proceed.set()
    assert script.hung_up.wait(WAIT_S)
    billed(relay, account, outcome, usage, stream=stream)


# -- others ------------------------------------------------------------------------------------------------------------


def test_leaving_after_the_answer_changes_nothing(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """An idle connection may be closed at any time; the next request finds the upstream's connection still open."""
    account, key = relay.new_account()
    script = Staged(b"", JSON_HEAD + ANSWER)
    script.proceed.set()
    upstream.script = script
    Caller.to(gateway.url).close()
    opened = gateway.gauge("relay_upstream_connections_open")
    for _ in range(2):
        with ask(gateway, key, stream=False) as caller:
            assert caller.answer()[1] == ANSWER
    assert gateway.gauge("relay_upstream_connections_open") <= max(opened, 1)
    rows = relay.rows(account, 2)
    assert [row["outcome"] for row in rows] == ["measured", "measured"]


def test_leaving_inside_the_request_is_no_request(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    account, key = relay.new_account()
    before = len(upstream.requests)
    for ending in (Wire.close, Wire.reset):
        caller = Caller.to(gateway.url)
        caller.send(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: %s\r\ncontent-length: 90\r\n\r\n{" % key.encode()
        )
        ending(caller)
    gateway.wait_at_rest()
    assert len(upstream.requests) == before
    relay.rows(account, 0)


def test_who_only_stops_sending_gets_his_answer(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    account, key = relay.new_account(on_disconnect="cancel")
    upstream.script = script = Staged(STREAM_HEAD + chunk(START), chunk(FINAL + STOP) + b"0\r\n\r\n")
    with ask(gateway, key) as caller:
        caller.socket.shutdown(1)
        assert script.reached.wait(WAIT_S)
        head = caller.head()
        while head.status == 100:
            head = caller.head()
        pieces = caller.pieces(head)
        assert next(pieces) == START
        script.proceed.set()
        assert b"".join(pieces) == FINAL + STOP
    billed(relay, account, "measured", USAGE_FINAL)
