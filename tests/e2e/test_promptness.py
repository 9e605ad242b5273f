"""Every chunk goes on as soon as it came: the upstream sends the next one only when the caller has got the last."""

import queue
import statistics
import time
from typing import Final

import pytest

from tests.e2e.bodies import ANSWER, BODY, JSON, SSE, USAGE, event
from tests.e2e.relay import Relay
from tests.e2e.wire import WAIT_S, Caller, Headers, Received, ScriptedUpstream, Wire, chunk, head_bytes

pytestmark = pytest.mark.alone

DELAY_MEDIAN_S: Final = 0.05
DELAY_MAX_S: Final = 1.0
"""Generous: this is for bytes that wait for something, not for a busy machine. What the relay really adds the benchmark says."""

START: Final = event(
    b"message_start", b'{"type":"message_start","message":{"model":"claude-sonnet-4-6","usage":%s}}' % USAGE
)
DELTA: Final = event(b"content_block_delta", b'{"type":"content_block_delta","delta":{"text":"Hello"}}')
PING: Final = event(b"ping", b'{"type": "ping"}')
END: Final = event(b"message_delta", b'{"type":"message_delta","delta":{"stop_reason":"end_turn"}}') + event(
    b"message_stop", b'{"type":"message_stop"}'
)


class LockStep:
    """A script whose next piece waits until the caller has confirmed the one before; says how long each was under way."""

    def __init__(self, headers: Headers, pieces: list[bytes], *, framing: str = "chunked") -> None:
        self._headers = headers
        self._pieces = pieces
        self._framing = framing
        self._sent: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._confirmed: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __call__(self, wire: Wire, _: Received) -> None:
        wire.send(head_bytes(200, self._headers, framing=self._framing, size=sum(map(len, self._pieces))))
        self._confirmed.get(timeout=WAIT_S)
        for piece in self._pieces:
            self._sent.put(time.monotonic())
            wire.send(chunk(piece) if self._framing == "chunked" else piece)
            self._confirmed.get(timeout=WAIT_S)
        if self._framing == "chunked":
            wire.send(b"0\r\n\r\n")
        if self._framing == "eof":
            wire.close()

    def run(self, caller: Caller) -> list[float]:
        """Take the answer piece by piece; seconds from sent to received."""
        head = caller.head()
        incoming = caller.pieces(head)
        self._confirmed.put(None)
        delays = []
        for piece in self._pieces:
            received = b""
            while len(received) < len(piece):
                received += next(incoming)
            delays.append(time.monotonic() - self._sent.get(timeout=WAIT_S))
            assert received == piece
            self._confirmed.put(None)
        assert not b"".join(incoming)
        return delays


@pytest.fixture(scope="module")
def key(relay: Relay) -> Headers:
    return [(b"x-api-key", relay.new_account()[1].encode()), *JSON]


STREAMS: Final = {
    "events": [START, *[DELTA] * 100, END],
    "pings only": [START, *[PING] * 50, END],
    "ends inside events": [START[:40], START[40:], DELTA[:9], DELTA[9:-1], DELTA[-1:], END[:-1], END[-1:]],
    "single bytes": [bytes([byte]) for byte in START + PING + DELTA + END],
    "looks like an error": [
        START,
        b"event: err",
        b"or_of_some_kind\ndata: {}\n\n",
        b"event: error",
        b"s\ndata: {}\n\n",
        END,
    ],
    "no newline for long": [START, b"data: " + b"x" * 100_000, b"y", b"\n\n", END],
    "large": [START, b"data: " + b"x" * 3_000_000 + b"\n\n", PING, END],
}


@pytest.mark.parametrize("framing", ["chunked", "length", "eof"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_piece_by_piece(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, name: str, framing: str
) -> None:
    upstream.script = script = LockStep(SSE, STREAMS[name], framing=framing)
    caller.post("/v1/messages", key, BODY)
    delays = script.run(caller)
    print(f"{len(delays)} pieces, median {statistics.median(delays) * 1e6:.0f} µs, longest {max(delays) * 1e6:.0f} µs")
    assert statistics.median(delays) < DELAY_MEDIAN_S and max(delays) < DELAY_MAX_S, delays


@pytest.mark.parametrize("framing", ["chunked", "length", "eof"])
def test_json_goes_on_piece_by_piece(upstream: ScriptedUpstream, caller: Caller, key: Headers, framing: str) -> None:
    upstream.script = script = LockStep(JSON, [b"    ", b"  ", ANSWER[:30], ANSWER[30:], b"\n"], framing=framing)
    caller.post("/v1/messages", key, BODY)
    assert max(script.run(caller)) < DELAY_MAX_S


def test_zipped_bytes_go_on_piece_by_piece(upstream: ScriptedUpstream, caller: Caller, key: Headers) -> None:
    pieces = [bytes([number]) * 10 for number in range(50)]  # no gzip at all: nobody on the way may care
    upstream.script = script = LockStep([(b"content-encoding", b"gzip"), *JSON], pieces)
    caller.post("/v1/messages", key, BODY)
    assert max(script.run(caller)) < DELAY_MAX_S
