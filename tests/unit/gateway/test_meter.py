"""The meter: golden streams of ours in every chunking, the recorded corpus, and bytes that are no stream at all."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.metrics import Metrics
from libs.common.usage import UsageUnreadable, model_calls
from services.gateway.meter import UNREADABLE_USAGE, GzipMeter, JsonMeter, Reading, StreamMeter
from tests.unit.gateway.streams import GOLDEN, block, check_golden, ended, event, read, split, started, text


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


EVENTS = (
    "message_start",
    "message_delta",
    "content_block_start",
    "content_block_delta",
    "message_stop",
    "error",
    "ping",
)
FIELDS = ("message", "delta", "usage", "content_block", "error", "type", "model", "stop_reason", "content", "from")
odd = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(EVENTS),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
)


@given(st.sampled_from(EVENTS), odd, st.booleans())
def test_odd_json_in_events_never_raises(name: str, value: Any, everywhere: bool) -> None:
    fields = dict.fromkeys(FIELDS, value) if everywhere else value
    read([f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()])
    read([event(name, **dict.fromkeys(FIELDS[:5], value))])
    read([json.dumps(value).encode()], JsonMeter(Metrics()))
    read([json.dumps(fields).encode()], JsonMeter(Metrics()))


def test_stream_cut_before_message_stop_is_not_complete() -> None:
    reading = read([GOLDEN[: GOLDEN.index(b"event: message_delta")]])
    assert reading.usage == reading.usage_start and not reading.complete and not reading.final


def test_an_error_event_is_the_end() -> None:
    error = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    reading = read([started(input_tokens=1), error, event("message_stop")])
    assert reading.error_type == "overloaded_error" and not reading.complete and not reading.final
    assert reading.usage == {"input_tokens": 1}


@pytest.mark.parametrize("error", [None, [], {}, "x", {"type": None}, {"type": ""}, {"message": "x"}])
def test_an_error_without_a_type_is_an_error(error: Any) -> None:
    assert read([event("error", error=error)]).error_type == "api_error"
    assert read([b"event: error\ndata: not even JSON\n\n"]).error_type == "api_error"


def test_an_event_is_what_its_data_say() -> None:
    stop = b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n'
    for lead in (b"data: ", b"data:", b"event: ping\ndata: ", b"event: content_block_delta\ndata: ", b"id: 1\ndata: "):
        reading = read([started(input_tokens=1, output_tokens=1), lead + stop])
        assert reading.usage == {"input_tokens": 1, "output_tokens": 5}, lead
        assert reading.final
    reading = read([b"event: content_block_delta\n" + ended(output_tokens=5).partition(b"\n")[2]])
    assert reading.usage == {"output_tokens": 5} and reading.complete


def test_data_without_a_type_are_what_the_event_line_says() -> None:
    chunks = [
        b'event: message_start\ndata: {"message":{"model":"m","usage":{"input_tokens":1}}}\n\n',
        b'event: content_block_delta\ndata: {"delta":{"text":"four"}}\n\n',
        b'event: message_delta\ndata: {"usage":{"output_tokens":2}}\n\n',
        b"event: message_stop\ndata: {}\n\n",
    ]
    reading = read(chunks)
    assert (reading.model, reading.usage) == ("m", {"input_tokens": 1, "output_tokens": 2})
    assert reading.text_chars == 4 and reading.complete


def test_data_on_several_lines_and_behind_a_byte_order_mark() -> None:
    reading = read(
        [b'\xef\xbb\xbfdata: {"type":\ndata: "message_start","message":\ndata:{"usage":{"input_tokens":1}}}\n\n']
    )
    assert reading.usage == {"input_tokens": 1}
    delta = b'event: content_block_delta\ndata: {"type":"content_block_delta",\ndata: "delta":{"text":"four"}}\n\n'
    assert read([delta]).text_chars == 4


@pytest.mark.parametrize("usage", [None, [], "x", 5, [{"input_tokens": 1}]])
def test_a_usage_that_is_no_object_is_nothing_only_if_it_is_null(usage: Any) -> None:
    unreadable = {} if usage is None else {UNREADABLE_USAGE: 1}
    start = event("message_start", message={"model": "m", "usage": usage})
    reading = read([start, event("message_delta", delta=usage, usage=usage)])
    assert (reading.model, reading.usage or {}) == ("m", unreadable)
    reading = read([started(input_tokens=1), event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)])
    assert reading.usage == {"input_tokens": 1} | unreadable and reading.final
    body = json.dumps({"model": "m", "content": [], "stop_reason": "end_turn", "usage": usage}).encode()
    assert (read([body], JsonMeter(Metrics())).usage or {}) == unreadable


@pytest.mark.parametrize(
    "usage", [b'{"input_tokens":1e400}', b'{"output_tokens":NaN}', b'{"a":' * 3000 + b"1" + b"}" * 3000]
)
def test_a_usage_that_cannot_be_read_is_never_priced_at_nothing(usage: bytes) -> None:
    delta = (
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
        + usage
        + b"}\n\n"
    )
    readings = [
        read([started(input_tokens=1), delta]),
        read(
            [b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":' + usage + b"}}\n\n"]
        ),
        read([b'{"model":"m","content":[],"usage":' + usage + b"}"], JsonMeter(Metrics())),
    ]
    for reading in readings:
        assert reading.usage is not None
        with pytest.raises(UsageUnreadable):
            model_calls(reading.usage, model_asked="m", model_answered="m", cache_ttl_1h=False)


def test_values_of_any_type_are_laid_over_as_they_are() -> None:
    odd_values: dict[str, Any] = {
        "input_tokens": "5",
        "cache_creation": [],
        "iterations": {"a": 1},
        "output_tokens": 1.5,
    }
    assert read([started(input_tokens=1), ended(**odd_values)]).usage == odd_values


LONE = rb'"\ud83d"'
DEEP = b"[" * 3_000 + b"]" * 3_000


@pytest.mark.parametrize("odd_value", [LONE, DEEP, b"[NaN]", b'"\xff"'])
def test_what_the_fast_decoder_cannot_read_costs_only_that_field(odd_value: bytes) -> None:
    start = (
        b'data: {"type":"message_start","message":{"odd":%b,"model":"m","usage":{"input_tokens":1}}}\n\n' % odd_value
    )
    delta = (
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2},"odd":%b}\n\n'
    )
    reading = read([b"event: message_start\n" + start, b"event: message_delta\n" + delta % odd_value])
    assert (reading.model, reading.usage) == ("m", {"input_tokens": 1, "output_tokens": 2})
    assert reading.stop_reason == "end_turn"
    body = (
        b'{"model":"m","content":[{"type":"tool_use","input":%b}],"stop_reason":"refusal",'
        b'"usage":{"input_tokens":3},"odd":%b}'
    )
    reading = read([body % (odd_value, odd_value)], JsonMeter(Metrics()))
    assert (reading.model, reading.usage, reading.stop_reason) == ("m", {"input_tokens": 3}, "refusal")
    assert reading.complete and not reading.content_empty


def test_content_that_cannot_be_read_is_content() -> None:
    blocks = b'event: content_block_start\ndata: {"type":"content_block_start","content_block":{"x":%b}}\n\n' % DEEP
    assert not read([started(), blocks, ended("refusal")]).content_empty
    assert read([b'{"content":null,"stop_reason":"refusal","usage":{}}'], JsonMeter(Metrics())).content_empty


def test_half_a_character_is_a_character() -> None:
    halves = [
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"ab\\ud83d"}}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"\\ude00"}}\n\n',
    ]
    metrics = Metrics()
    assert read(halves, StreamMeter(metrics)).text_chars == 4
    assert metrics.value("relay_meter_errors_total", "frame") == 0


def test_only_text_thinking_and_tool_input_count() -> None:
    deltas = [
        {"type": "citations_delta", "citation": {"cited_text": "not counted"}},
        {"type": "signature_delta", "signature": "not counted"},
        {"type": "compaction_delta", "content": "not counted"},
        {"type": "thinking_delta", "thinking": "12"},
        {"type": "input_json_delta", "partial_json": "345"},
        {"type": "text_delta", "text": "6789", "citations": ["not counted"]},
    ]
    assert read([event("content_block_delta", index=0, delta=delta) for delta in deltas]).text_chars == 9


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_last_event_without_its_empty_line_counts(line_end: bytes, missing: int) -> None:
    metrics = Metrics()
    meter = StreamMeter(metrics)
    reading = read([GOLDEN[:-missing].replace(b"\n", line_end)], meter)
    check_golden(reading)
    assert not meter.at_boundary
    assert read([GOLDEN]).complete


def test_a_last_event_cut_in_the_middle_does_not() -> None:
    metrics = Metrics()
    for cut_off in (3, 10, 30, 60):
        reading = read([GOLDEN[:-cut_off]], StreamMeter(metrics))
        assert not reading.complete
    assert metrics.value("relay_meter_errors_total", "frame") == 0


def test_an_error_without_its_empty_line_is_no_error_a_client_sees() -> None:
    error = event("error", error={"type": "overloaded_error"})
    assert read([started(), error[:-1]]).error_type == ""
    assert read([started(), error]).error_type == "overloaded_error"


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
        (block("thinking", thinking="", signature="") + ended("refusal"), False),
        (block("redacted_thinking", data="x") + ended("refusal"), False),
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


@pytest.mark.alone
def test_a_text_event_takes_microseconds() -> None:
    """It is the hot path: 1.5 us on the machine this was written on, 2.7 before it was looked at."""
    meter, chunk = StreamMeter(Metrics()), text("Hello there, how are you today?")
    spent = []
    for _ in range(20):
        started_at = time.thread_time()
        for _ in range(500):
            meter.feed(chunk)
        spent.append((time.thread_time() - started_at) / 500)
    assert min(spent) < 5e-6


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
            assert reading.error_type == ("overloaded_error" if "then_error" in entry["file"] else ""), entry["file"]
    assert seen > 100


def test_corpus_of_streams_that_did_not_end_well(corpus: Path) -> None:
    for path in sorted((corpus / "_observed-errors").glob("*.sse")):
        reading = read([path.read_bytes()])
        assert (reading.error_type, reading.complete, reading.usage) == ("overloaded_error", False, None), path.name
    for path in sorted((corpus / "_derived").glob("*.sse")):
        reading = read([path.read_bytes()])
        assert not reading.complete or "no_end" not in path.name, path.name


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
