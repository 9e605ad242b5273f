"""The estimate of input tokens: how near it is to what the API really counted, and what it may never do."""

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.peek import peek

_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_ELSEWHERE = ('"base64"', '"type": "image"', '"type": "document"', '"file_id"', "mcp_servers", "_20")
"""What is not text in the body: media, files, and tools of the API's own, which bring text nobody has sent."""


class Exchange(NamedTuple):
    name: str
    truth: int
    estimate: int
    text_only: bool

    @property
    def ratio(self) -> float:
        return self.estimate / self.truth


def recorded(corpus: Path) -> list[Exchange]:
    found = []
    for entry in json.loads((corpus / "index.json").read_bytes()):
        name = entry["file"].rpartition(".")[0]
        meta_file = corpus / f"{name}.meta.json"
        usage = entry.get("usage_message_start") or entry.get("expected_usage") or {}
        truth = sum(usage.get(field) or 0 for field in _INPUT)
        if not truth or entry["status"] != 200 or not meta_file.exists():
            continue
        meta = json.loads(meta_file.read_bytes())
        if not meta["path"].partition("?")[0].endswith("/messages") or "request_body" not in meta:
            continue
        text = json.dumps(meta["request_body"], ensure_ascii=False)
        compact = json.dumps(meta["request_body"], ensure_ascii=False, separators=(",", ":"))
        text_only = not any(mark in text for mark in _ELSEWHERE)
        found.append(Exchange(name, truth, peek(compact.encode()).input_estimated_tokens, text_only))
    return found


def test_over_the_recorded_exchanges(corpus: Path) -> None:
    """The half of them is within 25 %; no request of text is held for less than 60 % of what it is."""
    exchanges = recorded(corpus)
    errors = [abs(exchange.ratio - 1) for exchange in exchanges]
    texts = [exchange for exchange in exchanges if exchange.text_only]
    print(f"{len(exchanges)} exchanges, median error {statistics.median(errors):.1%}; {len(texts)} of text")
    assert len(exchanges) > 100 and len(texts) > 60
    assert statistics.median(errors) <= 0.25
    assert [exchange for exchange in texts if exchange.ratio < 0.6] == []


def estimated(messages: Any, **fields: Any) -> int:
    body = {"model": "m", "messages": messages} | fields
    return peek(json.dumps(body, ensure_ascii=False).encode()).input_estimated_tokens


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@given(st.text(max_size=300), st.text(max_size=300))
def test_more_text_is_never_fewer_tokens(text: str, more: str) -> None:
    assert 0 < estimated(said(text)) <= estimated(said(text + more))


def test_text_beyond_ascii_is_not_counted_like_english() -> None:
    english, chinese = "word " * 1000, "汉" * 1000
    assert 1200 <= estimated(said(english)) <= 1400
    assert 1200 <= estimated(said(chinese)) <= 1400


def test_tools_bring_a_prompt_of_their_own() -> None:
    tool = {"name": "t", "description": "d" * 280, "input_schema": {"type": "object"}}
    assert 500 < estimated(said("x"), tools=[tool]) - estimated(said("x")) < 700
    assert estimated(said("x"), tools=[]) == estimated(said("x"))
    assert estimated(said("x"), tools=[{"type": "web_search_20250305", "name": "web_search"}]) > 2000


def image(size: int, *, begin: str = "A") -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": begin + "A" * size}
    return [{"role": "user", "content": [{"type": "image", "source": source}]}]


def test_an_image_is_not_counted_by_its_bytes() -> None:
    assert estimated(image(8_500)) < 200
    assert 1600 <= estimated(image(500_000)) <= 1700
    assert estimated(image(5_000_000)) == estimated(image(500_000))
    assert estimated(image(500_000) + image(500_000)) > 3200


def test_an_image_as_php_writes_it_is_the_same() -> None:
    body = json.dumps({"model": "m", "messages": image(300_000, begin="/" * 1000)}).encode()
    slashed = body.replace(b"/", rb"\/")
    assert peek(slashed).input_estimated_tokens == peek(body).input_estimated_tokens


def test_a_pdf_is_counted_by_its_pages() -> None:
    one, ten = (estimated(image(size, begin="JVBERi")) for size in (1_000, 901_000))
    assert 2000 < one < 2200
    assert ten - one == 9 * 2000


def test_the_order_of_a_sources_fields_does_not_matter() -> None:
    source = {"data": "A" * 100_000, "media_type": "image/png", "type": "base64"}
    assert estimated([{"role": "user", "content": [{"source": source, "type": "image"}]}]) < 1700


def test_a_body_without_anything_to_read_is_not_free() -> None:
    assert peek(b'{"model":"m"}').input_estimated_tokens > 0
    assert peek(b'{"model":"m","messages":17,"tools":null,"system":[]}').input_estimated_tokens > 0


def test_it_costs_little_even_for_a_large_body() -> None:
    body = json.dumps({"model": "m", "messages": said("Ein Text, größer als üblich. " * 14_000)}, ensure_ascii=False)
    raw = body.encode()
    peek(raw)
    started = time.perf_counter()
    for _ in range(10):
        peek(raw)
    assert (time.perf_counter() - started) / 10 < 0.01
