"""The meter on answers that are read as a whole: JSON, and codings that nobody asked for."""

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from libs.common.metrics import Metrics
from services.gateway import meter as meter_module
from services.gateway.meter import GzipMeter, JsonMeter, Reading, StreamMeter
from tests.unit.gateway.streams import GOLDEN, check_golden, read


def test_json_answer() -> None:
    body = (
        b'{"model":"claude-opus-4-7","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn",'
        b'"usage":{"input_tokens":3,"output_tokens":1}}   '
    )
    reading = read([body[:50], body[50:]], JsonMeter(Metrics()))
    assert reading.usage == {"input_tokens": 3, "output_tokens": 1} and reading.complete
    assert not read([body[:50]], JsonMeter(Metrics())).complete


@pytest.mark.parametrize(
    ("content", "empty"),
    [
        ([], True),
        ([{"type": "text", "text": ""}], True),
        ([{"type": "text", "text": "No"}], False),
        ([{"type": "thinking", "thinking": "hm", "signature": "x"}], False),
        ([{"type": "tool_use", "input": {}}], False),
        ([{"type": "text", "text": ""}, {"type": "text", "text": ""}], False),
        (["odd"], False),
    ],
)
def test_refusal_content_of_a_json_answer(content: list[Any], empty: bool) -> None:
    body = json.dumps(
        {"model": "m", "content": content, "stop_reason": "refusal", "usage": {"input_tokens": 1}}
    ).encode()
    reading = read([body], JsonMeter(Metrics()))
    assert reading.content_empty is empty and reading.complete


def test_a_json_answer_over_the_limit_is_counted_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "JSON_BYTES_MAX", 100_000)
    metrics = Metrics()
    meter = JsonMeter(metrics)
    for _ in range(300):
        meter.feed(b" " * 1_000)
        assert sys.getsizeof(meter._body) < 250_000
    meter.end()
    assert not meter.reading.complete
    assert metrics.value("relay_meter_errors_total", "oversized") == 1
    whole = JsonMeter(metrics)
    body = b'{"usage":{}}'.ljust(100_000)
    for at in range(len(body)):
        whole.feed(body[at : at + 1])
        assert sys.getsizeof(whole._body) < 250_000
    whole.end()
    assert whole.reading.usage == {}


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_coding_that_nobody_asked_for(pack: Callable[[bytes], bytes], size: int) -> None:
    packed = pack(GOLDEN)
    chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
    check_golden(read(chunks, GzipMeter(StreamMeter(Metrics()), Metrics())))
    answer = b'{"usage":{"input_tokens":1},"x":"' + b"y" * 300_000 + b'"}'
    reading = read([pack(answer), b"more", b"and more"], GzipMeter(JsonMeter(Metrics()), Metrics()))
    assert reading.usage == {"input_tokens": 1}


class Biggest:
    """An inner meter that only looks at the sizes it is fed."""

    def __init__(self) -> None:
        self.reading = Reading()
        self.most = self.total = 0

    def feed(self, chunk: bytes) -> None:
        self.most = max(self.most, len(chunk))
        self.total += len(chunk)

    def end(self) -> None:
        pass


@pytest.mark.alone
def test_a_zip_bomb_is_unpacked_in_small_pieces_and_only_so_far() -> None:
    bomb = gzip.compress(b"\0" * (80 * 1024 * 1024), 1)
    metrics, inner = Metrics(), Biggest()
    started_at = time.thread_time()
    read([bomb], GzipMeter(inner, metrics))
    assert time.thread_time() - started_at < 2
    assert inner.most <= 64 * 1024
    assert inner.total == meter_module.PLAIN_BYTES_MAX
    assert metrics.value("relay_meter_errors_total", "oversized") == 1


def test_what_is_no_gzip_is_counted_once() -> None:
    metrics = Metrics()
    packed = gzip.compress(GOLDEN)
    reading = read([packed[:40], b"\xff" * 100, b"\xff" * 100], GzipMeter(StreamMeter(Metrics()), metrics))
    assert not reading.complete
    assert metrics.value("relay_meter_errors_total", "gzip") == 1


@pytest.mark.parametrize("size", [1, 2, 7, 50, 100_000])
def test_a_coding_of_several_members(size: int) -> None:
    comment = b": " + b"x" * 300_000 + b"\n\n"
    packed = gzip.compress(comment) + gzip.compress(GOLDEN[:100]) + gzip.compress(GOLDEN[100:])
    chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
    reading = read(chunks, GzipMeter(StreamMeter(Metrics()), Metrics()))
    assert reading.usage == read([GOLDEN], StreamMeter(Metrics())).usage
