"""What a response says it used: the overlay, the calls to be paid, and everything that is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.usage import (
    AMOUNT_MAX,
    ITERATIONS_MAX,
    ModelCall,
    UsageUnreadable,
    model_calls,
    overlay,
    unknown_amounts,
    web_searches,
)

ANSWERED = "claude-opus-4-8"
ASKED = "claude-fable-5"


def calls(usage: dict[str, Any], *, ttl_1h: bool = False, declined: tuple[str, ...] = ()) -> list[ModelCall]:
    return model_calls(usage, model_asked=ASKED, model_answered=ANSWERED, cache_ttl_1h=ttl_1h, declined_models=declined)


def test_overlay_takes_the_last_value_even_if_it_is_lower() -> None:
    start = {"input_tokens": 2_479, "cache_read_input_tokens": 55_096, "output_tokens": 6, "service_tier": "standard"}
    delta = {"input_tokens": 404_500, "cache_read_input_tokens": 0, "output_tokens": 3, "service_tier": None}
    assert overlay(start, delta) == {
        "input_tokens": 404_500,
        "cache_read_input_tokens": 0,
        "output_tokens": 3,
        "service_tier": "standard",
    }
    assert start["input_tokens"] == 2_479


usages = st.dictionaries(st.sampled_from("abcde"), st.none() | st.integers(0, 9), max_size=5)


@given(usages, usages, usages)
def test_overlay_keeps_the_last_value_that_was_told(
    start: dict[str, Any], one: dict[str, Any], two: dict[str, Any]
) -> None:
    result = overlay(overlay(start, one), two)
    for name in "abcde":
        told = [part[name] for part in (start, one, two) if part.get(name) is not None]
        assert result.get(name) == (told[-1] if told else None)


def test_the_top_level_is_one_call_of_the_answering_model() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}
    (call,) = calls(usage)
    assert call == ModelCall(
        kind="message", model=ANSWERED, input=1, cache_write_5m=4, cache_write_1h=0, cache_read=3, output=2
    )
    assert call.context == 8


@pytest.mark.parametrize(
    ("total", "split", "ttl_1h", "written"),
    [
        (100, None, False, (100, 0)),
        (100, None, True, (0, 100)),
        (100, {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, True, (30, 70)),
        (100, {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}, False, (100, 0)),
        (100, {"ephemeral_5m_input_tokens": 30}, False, (100, 0)),
        (100, {"ephemeral_5m_input_tokens": 30}, True, (30, 70)),
        (100, {"ephemeral_1h_input_tokens": 60}, False, (40, 60)),
        # The total fell in a delta, the split of message_start stayed.
        (0, {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, False, (0, 0)),
        (80, {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, False, (10, 70)),
        (50, {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, False, (0, 50)),
        # No total at all: the split is what we have. Nothing written is priced at zero.
        (None, {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}, False, (30, 70)),
        (None, None, True, (0, 0)),
    ],
)
def test_cache_writes(total: int | None, split: Any, ttl_1h: bool, written: tuple[int, int]) -> None:
    usage = {"cache_creation_input_tokens": total, "cache_creation": split}
    (call,) = calls(usage, ttl_1h=ttl_1h)
    assert (call.cache_write_5m, call.cache_write_1h) == written
    (entry,) = calls({"iterations": [{"type": "message", **usage}]}, ttl_1h=ttl_1h)
    assert (entry.cache_write_5m, entry.cache_write_1h) == written


def test_iterations_are_the_bill_and_the_top_level_is_not() -> None:
    usage = {
        "input_tokens": 229,
        "output_tokens": 5,
        "iterations": [
            {"type": "compaction", "input_tokens": 100, "output_tokens": 131},
            {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 7, "output_tokens": 0},
            {"type": "message", "input_tokens": 229, "output_tokens": 5},
        ],
    }
    assert [(call.kind, call.model, call.input, call.output, call.declined) for call in calls(usage)] == [
        ("compaction", ANSWERED, 100, 131, False),
        ("advisor_message", "claude-opus-4-7", 7, 0, False),
        ("message", ANSWERED, 229, 5, False),
    ]


def hops(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"iterations": [*entries, {"type": "fallback_message", "model": ANSWERED, "output_tokens": 0}]}


def test_fallbacks() -> None:
    """With a fallback an entry without a model is the request's; a silent `message` entry is a hop that declined."""
    spoke = {"type": "message", "output_tokens": 4}
    silent = {"type": "message", "input_tokens": 9, "output_tokens": 0}
    assert [(call.model, call.declined) for call in calls(hops(silent))] == [(ASKED, True), (ANSWERED, False)]
    assert [(call.model, call.declined) for call in calls(hops(spoke))] == [(ASKED, False), (ANSWERED, False)]
    assert [call.declined for call in calls(hops(spoke), declined=(ASKED,))] == [True, False]
    assert [call.declined for call in calls(hops(spoke), declined=(ANSWERED,))] == [False, False]
    # Without a fallback a silent entry is paid: the model did run.
    assert [call.declined for call in calls({"iterations": [silent]}, declined=(ANSWERED,))] == [False]


def test_a_declined_model_is_known_with_or_without_its_date() -> None:
    dated = {"type": "message", "model": "claude-haiku-4-5-20251001", "output_tokens": 4}
    alias = {"type": "message", "model": "claude-haiku-4-5", "output_tokens": 4}
    for entry in (dated, alias):
        for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001"):
            assert calls(hops(entry), declined=(name,))[0].declined
        assert not calls(hops(entry), declined=("claude-haiku-5-5",))[0].declined


@pytest.mark.parametrize("value", [-1, 1.0, 0.5, True, False, "5", "", [], [1], {}, AMOUNT_MAX + 1, 2**200])
@pytest.mark.parametrize(
    "name", ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
)
def test_amounts_that_are_no_counts(name: str, value: Any) -> None:
    for usage in (
        {name: value},
        {"iterations": [{"type": "message", name: value}]},
        hops({"type": "message", name: value}),
    ):
        with pytest.raises(UsageUnreadable, match=name):
            calls(usage)


@pytest.mark.parametrize(
    "usage",
    [
        {"iterations": {}},
        {"iterations": "x"},
        {"iterations": 0},
        {"iterations": False},
        {"iterations": [None]},
        {"iterations": [[]]},
        {"iterations": [{}]},
        {"iterations": [{"type": None}]},
        {"iterations": [{"type": ["message"]}]},
        {"iterations": [{"type": {"message": 1}}]},
        {"iterations": [{"type": True}]},
        {"iterations": [{"type": "hologram"}]},
        {"iterations": [{"type": "message", "model": 5}]},
        {"iterations": [{"type": "message", "model": ["claude-opus-5"]}]},
        {"iterations": [{"type": "message", "model": {}}]},
        {"iterations": [{"type": "message", "model": False}]},
        {"iterations": [{"type": "message", "cache_creation": 7}]},
        {"iterations": [{"type": "message", "cache_creation": {"ephemeral_1d_input_tokens": 7}}]},
        {"iterations": [{"type": "message", "image_tokens": 7}]},
        {"iterations": [{"type": "message"}] * (ITERATIONS_MAX + 1)},
        {"cache_creation": []},
        {"cache_creation": "x"},
        {"cache_creation": {"ephemeral_1d_input_tokens": 7}},
        {"cache_creation": {"ephemeral_5m_input_tokens": "7"}},
        {"server_tool_use": []},
        {"server_tool_use": 3},
        {"server_tool_use": {"code_execution_seconds": 3}},
        {"image_tokens": 7},
        {"image_tokens": 0.5},
        {"video": {"seconds": {"hd": [0, 3]}}},
        {"premium": True},
    ],
)
def test_what_no_rule_covers(usage: dict[str, Any]) -> None:
    with pytest.raises(UsageUnreadable):
        calls(usage)


@pytest.mark.parametrize(
    "more",
    [
        {"image_tokens": 0},
        {"image_tokens": None},
        {"mood": "fine"},
        {"video": {"seconds": 0, "kind": "none", "parts": [0, None, {}]}},
        {"output_tokens_details": {"thinking_tokens": 261}},
        {"fallback_credit": {"status": {"type": "redeemed"}}},
        {"server_tool_use": {"web_fetch_requests": 5, "code_execution_seconds": 0}},
        {"iterations": None},
        {"iterations": []},
    ],
)
def test_what_is_no_amount_or_zero_does_not_matter(more: dict[str, Any]) -> None:
    assert calls({"input_tokens": 3, **more}) == calls({"input_tokens": 3})


def test_unknown_amounts_are_named_with_their_place() -> None:
    usage = {
        "image_tokens": 1,
        "cache_creation": {"forever": 2},
        "server_tool_use": {"dice": 3},
        "iterations": [{"type": "dream", "sheep": 4}],
    }
    assert sorted(unknown_amounts(usage)) == ["dice", "forever", "image_tokens", "iterations[dream]", "sheep"]


def test_deep_nesting_is_no_trouble() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(UsageUnreadable, match="deep"):
        calls({"deep": deep})


def test_web_searches() -> None:
    assert web_searches({}) == web_searches({"server_tool_use": None}) == web_searches({"server_tool_use": {}}) == 0
    assert web_searches({"server_tool_use": {"web_search_requests": 10, "web_fetch_requests": 4}}) == 10
    odds: list[Any] = [[], "x", 5, False, {"web_search_requests": -1}, {"web_search_requests": "1"}]
    for odd in odds:
        with pytest.raises(UsageUnreadable):
            web_searches({"server_tool_use": odd})
