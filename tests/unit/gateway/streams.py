"""Events of a stream as the API writes them, one golden stream that holds every kind, and a way to read them."""

import itertools
import json
from typing import Any

from libs.common.metrics import Metrics
from services.gateway.meter import Meter, Reading, StreamMeter


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def started(model: str = "claude-sonnet-4-6", **usage: Any) -> bytes:
    return event("message_start", message={"model": model, "content": [], "usage": usage})


def text(value: str, index: int = 0) -> bytes:
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": value})


def block(kind: str = "text", index: int = 0, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def ended(stop_reason: str = "end_turn", **usage: Any) -> bytes:
    delta = event("message_delta", delta={"stop_reason": stop_reason}, usage=usage)
    return delta + event("message_stop")


GOLDEN = (
    started(input_tokens=10, cache_read_input_tokens=55096, output_tokens=1)
    + block(text="")
    + event("ping")
    + text("Grüße, 世界 😀")
    + event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "hm"})
    + event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a":"\n"}'})
    + event("content_block_stop", index=0)
    + event("hologram", payload="a kind of event yet to be invented")
    + ended(input_tokens=404500, cache_read_input_tokens=0, output_tokens=7, cache_creation_input_tokens=None)
)
GOLDEN_CHARS = len("Grüße, 世界 😀") + len("hm") + len('{"a":"\n"}')


def read(chunks: list[bytes], meter: Meter | None = None) -> Reading:
    meter = meter or StreamMeter(Metrics())
    for chunk in chunks:
        meter.feed(chunk)
    meter.end()
    return meter.reading


def split(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(body) + 1) for cut in cuts} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


def check_golden(reading: Reading) -> None:
    assert reading.usage_start == {"input_tokens": 10, "cache_read_input_tokens": 55096, "output_tokens": 1}
    assert reading.usage == {"input_tokens": 404500, "cache_read_input_tokens": 0, "output_tokens": 7}
    assert (reading.model, reading.stop_reason) == ("claude-sonnet-4-6", "end_turn")
    assert reading.text_chars == GOLDEN_CHARS
    assert reading.complete and reading.final and not reading.content_empty
