"""The estimate of input tokens: how near it is to what the API really counted, and what it may never do."""

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import peek as peeking
from services.gateway.peek import peek

_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_ELSEWHERE = re.compile(r'"base64"|"file_id"|"type":"url"|"mcp_servers"|"type":"[a-z0-9_]+_20\d{6}"')
"""What is not text in the body: media, files, and tools of the API's own, which bring text nobody has sent."""
WORDS = st.sampled_from(["role", "type", "source", 'a "role"', '"', "type\\", "x"])
_SPELLINGS = {"compact": {"separators": (",", ":"), "ensure_ascii": False}, "as Python writes it": {}}


class Exchange(NamedTuple):
    name: str
    truth: int
    estimate: int
    text_only: bool

    @property
    def ratio(self) -> float:
        return self.estimate / self.truth


def recorded(corpus: Path, *, spelling: str, usage_at_start: bool) -> list[Exchange]:
    """What the API counted for what was sent stands at the start of a stream; its last word includes what its tools fetched."""
    found = []
    for entry in json.loads((corpus / "index.json").read_bytes()):
        name = entry["file"].rpartition(".")[0]
        meta_file = corpus / f"{name}.meta.json"
        usage = (entry.get("usage_message_start") if usage_at_start else None) or entry.get("expected_usage") or {}
        truth = sum(usage.get(field) or 0 for field in _INPUT)
        if not truth or entry["status"] != 200 or not meta_file.exists():
            continue
        meta = json.loads(meta_file.read_bytes())
        if not meta["path"].partition("?")[0].endswith("/messages") or "request_body" not in meta:
            continue
        compact = json.dumps(meta["request_body"], separators=(",", ":"))
        body = json.dumps(meta["request_body"], **_SPELLINGS[spelling]).encode()  # type: ignore[arg-type]
        text_only = _ELSEWHERE.search(compact) is None
        found.append(Exchange(name, truth, peek(body).input_estimated_tokens, text_only))
    return found


@pytest.mark.parametrize("spelling", _SPELLINGS)
@pytest.mark.parametrize("usage_at_start", [True, False], ids=["first usage", "last usage"])
def test_over_the_recorded_exchanges(corpus: Path, spelling: str, usage_at_start: bool) -> None:
    """The half of them is within 25 %; no request of text is held for less than 60 % of what it is."""
    exchanges = recorded(corpus, spelling=spelling, usage_at_start=usage_at_start)
    errors = [abs(exchange.ratio - 1) for exchange in exchanges]
    texts = [exchange for exchange in exchanges if exchange.text_only]
    least = min(exchange.ratio for exchange in texts)
    print(
        f"{len(exchanges)} exchanges, median error {statistics.median(errors):.1%}; {len(texts)} of text, least {least:.0%}"
    )
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


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("tool_search_tool_bm25_20251119", 200), ("advisor_20260301", 600), ("new_thing_20270101", 1700)],
)
def test_tools_of_the_api_differ_in_what_it_says_of_them(kind: str, tokens: int) -> None:
    plain = estimated(said("x"), tools=[{"type": "t" * len(kind)}])
    assert estimated(said("x"), tools=[{"type": kind}]) - plain == tokens
    assert estimated(said("x"), tools=[{"type": kind}] * 2) - estimated(
        said("x"), tools=[{"type": "t" * len(kind)}] * 2
    ) == (2 * tokens)


def document(**source: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "document", "source": source}]}]


def test_a_text_document_is_text_and_quoting_it_brings_a_prompt_of_its_own() -> None:
    text = document(type="text", media_type="text/plain", data="word " * 1000)
    assert 1200 <= estimated(text) <= 1400
    quoted = document(type="text", media_type="text/plain", data="word " * 1000)
    quoted[0]["content"][0]["citations"] = {"enabled": True}
    assert 500 <= estimated(quoted) - estimated(text) <= 520


def test_what_is_not_in_the_body_is_guessed() -> None:
    assert 800 <= estimated(document(type="url", url="https://example.com/a.pdf")) <= 850
    assert 800 <= estimated(document(type="file", file_id="file_1")) <= 850
    assert estimated(said('{"type":"url"} "file_id" "source"')) < 40


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


@given(st.recursive(WORDS, lambda one: st.lists(one) | st.dictionaries(WORDS, one)), st.sampled_from([None, 1]))
def test_words_are_counted_alike_however_long_the_text_is(value: Any, indent: int | None) -> None:
    talk = json.dumps(value, indent=indent).encode()
    expected = talk.count(b'"role"'), talk.count(b'"type"'), b'"source"' in talk
    assert peeking._words(talk) == expected
    assert peeking._words(talk + b" " * peeking._LISTED_BYTES_MAX) == expected


def test_a_body_without_anything_to_read_is_not_free() -> None:
    assert peek(b'{"model":"m"}').input_estimated_tokens > 0
    assert peek(b'{"model":"m","messages":17,"tools":null,"system":[]}').input_estimated_tokens > 0


@pytest.mark.alone
def test_it_costs_little_even_for_a_large_body() -> None:
    """As a multiple of finding one word, so that no slow machine fails it; a loop over the letters would be at hundreds."""
    text = "Ein Text, größer als üblich. " * 14_000
    raw = json.dumps({"model": "m", "messages": said(text)}, ensure_ascii=False).encode()
    assert fastest(lambda: peek(raw)) < 15 * fastest(lambda: raw.count(b'"role"'))


def fastest(action: Callable[[], object]) -> float:
    spent = []
    for _ in range(30):
        started = time.thread_time()
        action()
        spent.append(time.thread_time() - started)
    return min(spent)
