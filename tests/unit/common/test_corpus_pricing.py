"""Recorded responses of the real API: billable lines as the index says, and prices as the fold and the issue say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.common.pricing import is_free_refusal
from libs.common.usage import model_calls, overlay
from tests.unit.common.receipts import BOOK, MICRO, folded, receipt

CLASSES = ("model", "input", "cache_write_5m", "cache_write_1h", "cache_read", "output")


def entries(corpus: Path) -> Iterator[dict[str, Any]]:
    yield from (entry for entry in json.loads((corpus / "index.json").read_bytes()) if "billable" in entry)


def asked_for_1h(corpus: Path, file: str) -> bool:
    meta = (corpus / file).with_suffix(".meta.json")
    return meta.exists() and '"ttl":"1h"' in json.dumps(json.loads(meta.read_bytes()), separators=(",", ":"))


def recorded_usage(body: bytes, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """(model, usage) of a recording, read without the product's meter."""
    if not stream:
        message = json.loads(body)
        return message["model"], message["usage"]
    model, usage = "", {}
    for line in body.decode().splitlines():
        event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
        if event.get("type") == "message_start":
            model, usage = event["message"]["model"], event["message"]["usage"]
        elif event.get("type") == "message_delta":
            usage = overlay(usage, event.get("usage") or {})
    return model, usage


def test_billable_lines(corpus: Path) -> None:
    seen = 0
    for entry in entries(corpus):
        seen += 1
        calls = model_calls(
            entry["expected_usage"],
            model_asked=entry["model"],
            model_answered=entry["model"],
            cache_ttl_1h=asked_for_1h(corpus, entry["file"]),
        )
        lines = [{"type": call.kind, **{name: getattr(call, name) for name in CLASSES}} for call in calls]
        assert lines == entry["billable"], entry["file"]
    assert seen > 100


def test_price_equals_the_fold(corpus: Path) -> None:
    priced = 0
    for entry in entries(corpus):
        usage, model, ttl_1h = entry["expected_usage"], entry["model"], asked_for_1h(corpus, entry["file"])
        if BOOK.find(model) is not None:
            priced += 1
            total = receipt(usage, model, ttl_1h=ttl_1h).total_nanos
            assert total == folded(usage, model, ttl_1h=ttl_1h), entry["file"]
            assert total > 0, entry["file"]
    assert priced > 80


def test_batch_results_cost_half(corpus: Path) -> None:
    index = json.loads((corpus / "index.json").read_bytes())
    results = [result for entry in index for result in entry.get("batch_results", ())]
    assert results
    for result in results:
        usage, model = result["usage"], result["model"]
        whole = receipt({**usage, "service_tier": "standard"}, model).total_nanos
        assert receipt(usage, model).total_nanos * 2 == whole


def test_an_empty_refusal_is_free(corpus: Path) -> None:
    """The index lists its usage too; that it is free is pricing's rule."""
    found = {
        entry["file"].rsplit("/", 1)[1]: entry for entry in entries(corpus) if entry.get("stop_reason") == "refusal"
    }
    empty = found["refusal_response.sse"]
    said = b"text_delta" in (corpus / empty["file"]).read_bytes()
    assert is_free_refusal(empty["stop_reason"], content_empty=not said)
    spoke = found["stream-a-refusal.sse"]
    assert b"thinking_delta" in (corpus / spoke["file"]).read_bytes()
    assert not is_free_refusal(spoke["stop_reason"], content_empty=False)


@pytest.mark.parametrize(
    ("file", "micros"),
    [
        ("pydantic__pydantic-ai/test_anthropic_compaction_usage_with_cache.0.json", 209_637),
        ("pydantic__pydantic-ai/test_anthropic_advisor_tool_stream.0.sse", 19_437),
        ("pydantic__pydantic-ai/test_pause_turn_web_search_streaming_vcr.0.sse", 1_327_645),
        ("DataDog__dd-trace-py/anthropic_completion_cache_write_1h_ttl.0.json", 13_887),
    ],
)
def test_hand_computed_figures(corpus: Path, file: str, micros: int) -> None:
    """The arithmetic stands in test_pricing.py."""
    model, usage = recorded_usage((corpus / file).read_bytes(), stream=file.endswith(".sse"))
    assert receipt(usage, model).total_nanos == micros * MICRO
    assert folded(usage, model) == micros * MICRO
