"""What the tests about leavers share: an answer whose every moment is known, an upstream that stops in it, and the bill."""

import json
import threading
from typing import Any, Final

from services.gateway.peek import peek
from tests.e2e.bodies import JSON, MODEL, SSE, event
from tests.e2e.relay import Gateway, Relay
from tests.e2e.wire import WAIT_S, Caller, Received, Wire, head_bytes
from tests.invoice_fold import cost_nanos

USAGE_START: Final = {"input_tokens": 1000, "cache_read_input_tokens": 300, "output_tokens": 3}
USAGE_FINAL: Final = {**USAGE_START, "output_tokens": 77}
TEXTS: Final = ("Hello, ", "wörld ", "😀 ", '{"a":')
DELTA_NAMES: Final = ("text", "thinking", "text", "partial_json")


def sse(kind: str, **fields: Any) -> bytes:
    return event(kind.encode(), json.dumps({"type": kind, **fields}).encode())


START: Final = sse("message_start", message={"model": MODEL, "usage": USAGE_START})
DELTAS: Final = [sse("content_block_delta", delta={name: text}) for name, text in zip(DELTA_NAMES, TEXTS, strict=True)]
FINAL: Final = sse("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 77})
STOP: Final = sse("message_stop")
BEGUN: Final = START + b"".join(DELTAS)
PER_BYTE: Final = -1
"""In the place of a number of tokens: as many as the bytes of a JSON answer that had come make."""
SOME_OF_IT: Final = 20
"""Bytes of a JSON answer that come at once."""
ESTIMATED: Final = {**USAGE_START, "output_tokens": 3 + -(-sum(map(len, TEXTS)) // 4)}
ANSWER: Final = json.dumps(
    {"model": MODEL, "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", "usage": USAGE_FINAL}
).encode()
STREAM_HEAD: Final = head_bytes(200, SSE)
JSON_HEAD: Final = head_bytes(200, JSON, framing="length", size=len(ANSWER))


class Staged:
    """Writes `first`, waits until the test says so (or, without a `rest`, until the relay hangs up), writes `rest`."""

    def __init__(self, first: bytes, rest: bytes | None) -> None:
        self._first = first
        self._rest = rest
        self.reached = threading.Event()
        self.proceed = threading.Event()
        self.hung_up = threading.Event()

    def __call__(self, wire: Wire, _: Received) -> None:
        wire.send(self._first)
        self.reached.set()
        if self._rest is not None:
            assert self.proceed.wait(WAIT_S)
            wire.send(self._rest)
            return
        wire.wait_closed()
        self.hung_up.set()
        wire.close()


def request_body(*, stream: bool) -> bytes:
    return json.dumps({"model": MODEL, "max_tokens": 900, "stream": stream, "messages": ["x" * 500]}).encode()


def ask(gateway: Gateway, key: str, *, stream: bool = True) -> Caller:
    caller = Caller.to(gateway.url)
    caller.post("/v1/messages", [(b"x-api-key", key.encode()), *JSON], request_body(stream=stream))
    return caller


def read(caller: Caller, wanted: bytes) -> None:
    """Take the beginning of an answer."""
    pieces, received = caller.pieces(caller.head()), b""
    while len(received) < len(wanted):
        received += next(pieces)
    assert received == wanted


def billed(relay: Relay, account: str, outcome: str, usage: dict[str, int], **columns: Any) -> None:
    """The account has one row, it is this one, and it is what the balance lost."""
    (row,) = relay.rows(account, 1)
    if usage.get("output_tokens") == PER_BYTE:
        usage = {**usage, "output_tokens": -(-row["bytes_out"] // 4)}
        assert row["bytes_out"] >= SOME_OF_IT
    cost = cost_nanos(usage, model_asked=MODEL, model_answered=MODEL) if outcome != "free" else 0
    found = {name: row[name] for name in ("outcome", "usage", "total_nanos", *columns)}
    assert found == {"outcome": outcome, "usage": usage, "total_nanos": cost, **columns}
    assert relay.spent_nanos(account) == cost


def input_estimate(*, stream: bool, output_tokens: int = 0) -> dict[str, int]:
    """The estimated input. PER_BYTE: and one token for each four bytes of the answer (ADR 2)."""
    return {"input_tokens": peek(request_body(stream=stream)).input_estimated_tokens, "output_tokens": output_tokens}
