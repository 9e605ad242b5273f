"""Callers who do not take their answer: they hold up the upstream and nobody else, and are billed like any other."""

import threading
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.leaving import FINAL, START, STOP, STREAM_HEAD, USAGE_FINAL, USAGE_START, ask, billed, sse
from tests.e2e.relay import Gateway, Relay
from tests.e2e.waiting import wait_until
from tests.e2e.wire import WAIT_S, Broken, Received, ScriptedUpstream, Wire, chunk

pytestmark = pytest.mark.alone

STALLED_S: Final = 2.0


@pytest.fixture(scope="module")
def gateway(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    settings = {"RELAY_READER_STALLED_SECONDS": str(STALLED_S)}
    with relay.second_gateway(upstream.url, **settings) as running:
        yield running


class Flood:
    """Writes deltas until it is done or hung up on; the relay's buffers are far smaller."""

    bytes_all: Final = 40 * 1024 * 1024

    def __init__(self) -> None:
        self.sent = 0
        self.ended = threading.Event()

    def __call__(self, wire: Wire, _: Received) -> None:
        delta = chunk(sse("content_block_delta", delta={"text": "x" * 60_000}))
        try:
            wire.send(STREAM_HEAD + chunk(START))
            while self.sent < self.bytes_all:
                wire.send(delta)
                self.sent += len(delta)
            wire.send(chunk(FINAL + STOP) + b"0\r\n\r\n")
        finally:
            self.ended.set()

    def wait_stuck(self) -> None:
        """Until it is held up: nothing more goes out."""
        before = -1

        def stuck() -> bool:
            nonlocal before
            same, before = before == self.sent > 0, self.sent
            return same and not self.ended.wait(0.2)

        wait_until(stuck, "the upstream is held up")
        assert self.sent < self.bytes_all / 2


@pytest.mark.parametrize(("setting", "outcome"), [("drain", "measured"), ("cancel", "estimated")])
def test_a_reader_who_stops_and_then_leaves(
    relay: Relay, gateway: Gateway, upstream: ScriptedUpstream, setting: str, outcome: str
) -> None:
    """He holds up the upstream, not the relay's memory; when he leaves he is billed like any other."""
    account, key = relay.new_account(on_disconnect=setting)
    upstream.script = flood = Flood()
    caller = ask(gateway, key)
    assert next(caller.pieces(caller.head())).startswith(START)
    flood.wait_stuck()
    caller.reset()
    assert flood.ended.wait(WAIT_S)
    gateway.wait_at_rest()
    (row,) = relay.rows(account, 1)
    assert row["outcome"] == outcome
    if outcome == "measured":
        assert row["usage"] == USAGE_FINAL
    else:
        received = row["usage"]["output_tokens"] - USAGE_START["output_tokens"]
        assert 0 < received * 4 < flood.bytes_all


def test_a_reader_who_stays_but_takes_nothing_is_cut_off(
    relay: Relay, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    account, key = relay.new_account()
    upstream.script = flood = Flood()
    with ask(gateway, key) as caller:
        head = caller.head()
        assert flood.ended.wait(WAIT_S)
        with pytest.raises((Broken, ConnectionResetError)):
            b"".join(caller.pieces(head))
    billed(relay, account, "measured", USAGE_FINAL)
