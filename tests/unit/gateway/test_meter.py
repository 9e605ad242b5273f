"""The meter: golden streams of ours in every chunking, the recorded corpus, and bytes that are no stream at all."""

import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.metrics import Metrics
from libs.common.usage import model_calls
from services.gateway.meter import GzipMeter, JsonMeter, Meter, Reading, StreamMeter


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


def test_golden_whole_and_byte_by_byte() -> None:
    check_golden(read([GOLDEN]))
    check_golden(read([GOLDEN[at : at + 1] for at in range(len(GOLDEN))]))


@given(st.lists(st.integers(0, 10_000), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_golden_in_any_chunking_and_line_ending(cuts: list[int], line_end: bytes) -> None:
    check_golden(read(split(GOLDEN.replace(b"\n", line_end), cuts)))


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_arbitrary_bytes_never_raise(chunks: list[bytes]) -> None:
    read(chunks)
    read(chunks, JsonMeter(Metrics()))
    read(chunks, GzipMeter(StreamMeter(Metrics()), Metrics()))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_odd_json_in_events_never_raises(value: Any) -> None:
    for name in ("message_start", "message_delta", "content_block_start", "content_block_delta", "error"):
        read([event(name, message=value, delta=value, usage=value, content_block=value, error=value)])


def test_stream_cut_before_message_stop_is_not_complete() -> None:
    reading = read([GOLDEN[: GOLDEN.index(b"event: message_delta")]])
    assert reading.usage == reading.usage_start and not reading.complete and not reading.final


def test_error_event_is_seen() -> None:
    reading = read(
        [started(input_tokens=1), event("error", error={"type": "overloaded_error", "message": "Overloaded"})]
    )
    assert reading.error_type == "overloaded_error" and not reading.complete


@pytest.mark.parametrize(
    ("body", "empty"),
    [
        (ended("refusal", output_tokens=0), True),
        (block(text="") + ended("refusal", output_tokens=0), True),
        (block(text="") + text("") + ended("refusal"), True),
        (block(text="") + text("No") + ended("refusal"), False),
        (block(text="No") + ended("refusal"), False),
        (block(text="") + block(text="", index=1) + ended("refusal"), False),
        (block("tool_use", name="x") + ended("refusal"), False),
        (block("thinking", thinking="", signature="") + text("hm") + ended("refusal"), False),
    ],
)
def test_refusal_content(body: bytes, empty: bool) -> None:
    reading = read([started(input_tokens=20, output_tokens=1) + body])
    assert reading.content_empty is empty and reading.stop_reason == "refusal"


@pytest.mark.parametrize("said", [False, True])
def test_a_hop_that_declined_before_output(said: bool) -> None:
    handover = block("fallback", index=1, **{"from": {"model": "claude-fable-5"}, "to": {"model": "claude-opus-4-8"}})
    reading = read([started(), block(text="") + text("Well") if said else b"", handover, block(index=2), ended()])
    assert reading.declined_models == ([] if said else ["claude-fable-5"])


def test_a_huge_event_is_passed_over_and_what_follows_is_read() -> None:
    metrics = Metrics()
    meter = StreamMeter(metrics)
    huge = text("x" * (9 * 1024 * 1024))
    pieces = [huge[at : at + 65_536] for at in range(0, len(huge), 65_536)]
    reading = read([started(input_tokens=1), *pieces, ended(output_tokens=5)], meter)
    assert reading.complete and reading.usage == {"input_tokens": 1, "output_tokens": 5}
    assert metrics.value("relay_meter_errors_total", "oversized") == 1


def test_json_answer() -> None:
    body = (
        b'{"model":"claude-opus-4-7","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn",'
        b'"usage":{"input_tokens":3,"output_tokens":1}}   '
    )
    reading = read([body[:50], body[50:]], JsonMeter(Metrics()))
    assert reading.usage == {"input_tokens": 3, "output_tokens": 1} and reading.complete
    assert not read([body[:50]], JsonMeter(Metrics())).complete


def test_gzip_that_nobody_asked_for() -> None:
    packed = gzip.compress(GOLDEN)
    check_golden(
        read([packed[at : at + 7] for at in range(0, len(packed), 7)], GzipMeter(StreamMeter(Metrics()), Metrics()))
    )


def test_corpus(corpus: Path) -> None:
    """Every recorded response: usage and billable lines, whole, byte by byte and in random chunks."""
    rng = random.Random(20261123)
    seen = 0
    for entry in json.loads((corpus / "index.json").read_bytes()):
        expected = entry.get("expected_usage")
        if expected is None:
            continue
        seen += 1
        body = (corpus / entry["file"]).read_bytes()
        random_cuts = [rng.randrange(len(body)) for _ in range(rng.randrange(1, 60))]
        for chunks in ([body], [body[at : at + 1] for at in range(len(body))], split(body, random_cuts)):
            meter = StreamMeter(Metrics()) if entry["stream"] else JsonMeter(Metrics())
            reading = read(chunks, meter)
            assert reading.usage == expected, entry["file"]
            assert reading.model == entry["model"], entry["file"]
            assert reading.stop_reason == (entry["stop_reason"] or ""), entry["file"]
            assert lines(reading, one_hour(corpus / entry["file"])) == entry["billable"], entry["file"]
    assert seen > 100


def one_hour(response: Path) -> bool:
    meta = response.parent / (response.name.rsplit(".", 1)[0] + ".meta.json")
    return meta.exists() and '"ttl": "1h"' in json.dumps(json.loads(meta.read_bytes()))


def lines(reading: Reading, cache_ttl_1h: bool) -> list[dict[str, Any]]:
    assert reading.usage is not None
    calls = model_calls(
        reading.usage, model_asked=reading.model, model_answered=reading.model, cache_ttl_1h=cache_ttl_1h
    )
    classes = ("model", "input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
    return [{"type": call.kind, **{name: getattr(call, name) for name in classes}} for call in calls]
