"""Scenarios that change what is said or how it is counted, applied to an ordinary answer."""

import copy
from collections.abc import Callable
from typing import Any, Final

from libs.localstack.simulator.answers import Answer, prose, text_block
from libs.localstack.simulator.invoice import Usage
from libs.localstack.simulator.scenarios import Scenario
from libs.localstack.simulator.tokens import text_tokens

_OTHER_MODEL: Final = "claude-opus-4-8"
_REFUSAL: Final = {"type": "refusal", "category": "cyber", "explanation": "This request was refused due to policy."}
_SEARCH_INPUT_TOKENS: Final = 2500


def apply(answer: Answer, scenario: Scenario) -> None:
    """Change the answer as the scenario wants; most scenarios do not."""
    change = _CHANGES.get(scenario.name)
    if change is not None:
        start, end = answer.usage_start, answer.usage_end
        assert start is not None
        assert end is not None
        change(answer, scenario, start, end)


def _no_usage(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    answer.usage_start = answer.usage_end = None


def _falling_usage(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    start["input_tokens"] += 2000
    start["cache_read_input_tokens"] += 5000


def _big_event(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    answer.piece_chars = scenario.number("size", 1024 * 1024)
    answer.blocks = [text_block("x" * answer.piece_chars)]
    end["output_tokens"] = answer.said()


def _advisor(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    use = {"type": "server_tool_use", "id": f"srvtoolu_{answer.id[4:]}", "name": "advisor", "input": {}}
    result = {
        "type": "advisor_tool_result",
        "tool_use_id": use["id"],
        "content": {"type": "advisor_result", "text": "Ship it.", "stop_reason": "end_turn"},
    }
    answer.blocks = [*answer.blocks, use, result, text_block("Done, as advised.")]
    first, second = _iteration(start, "message", end["output_tokens"]), _iteration({}, "message", 10)
    second["input_tokens"] = start["input_tokens"] + 155
    advice = _iteration({"input_tokens": start["input_tokens"] * 2 + 100}, "advisor_message", 18)
    advice["model"] = scenario.text("model", _OTHER_MODEL)
    end["iterations"] = [first, advice, second]
    end["input_tokens"] = first["input_tokens"] + second["input_tokens"]
    end["output_tokens"] = first["output_tokens"] + second["output_tokens"]


def _compaction(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    answer.blocks = [{"type": "compaction", "content": "Earlier conversation summarized."}, *answer.blocks]
    compaction = _iteration({"input_tokens": 100, "cache_creation_input_tokens": 5096}, "compaction", 131)
    compaction["cache_creation"]["ephemeral_5m_input_tokens"] = 5096
    end["iterations"] = [compaction, _iteration(start, "message", end["output_tokens"])]


def _fallback(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    """The first hop's tokens are billed at its own model; a stream had begun under its name."""
    other = scenario.text("model", _OTHER_MODEL)
    begun = text_block(prose(10, 0))
    answer.blocks = [begun, _handover(answer, other), *answer.blocks]
    answer.model_last = other
    first = _iteration(start, "message", text_tokens(begun["text"]))
    end["iterations"] = [first, {**_iteration(start, "fallback_message", end["output_tokens"]), "model": other}]


def _fallback_declined(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    """The first hop's entry counts a few tokens nobody saw: that it is free is told by the fallback block alone."""
    other = scenario.text("model", _OTHER_MODEL)
    answer.blocks = [_handover(answer, other), *answer.blocks]
    answer.declined_models = [answer.asked]
    declined = {**_iteration(start, "message", 3), "model": answer.model}
    answer.model = other
    end["iterations"] = [declined, {**_iteration(start, "fallback_message", end["output_tokens"]), "model": other}]


def _web_search(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    searches = scenario.number("n", 1)
    blocks: list[dict[str, Any]] = []
    for number in range(searches):
        use = {"type": "server_tool_use", "id": f"srvtoolu_{number:02d}{answer.id[6:]}", "name": "web_search"}
        hit = {"type": "web_search_result", "title": "Harbours of the north", "url": "https://example.com/harbours"}
        blocks += [
            {**use, "input": {"query": f"harbour {number}"}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": use["id"],
                "content": [{**hit, "encrypted_content": "c2VhcmNo", "page_age": None}],
            },
        ]
    answer.blocks = [*blocks, *answer.blocks]
    end["input_tokens"] += _SEARCH_INPUT_TOKENS * searches
    end["output_tokens"] = answer.said()
    end["server_tool_use"] = {"web_search_requests": searches, "web_fetch_requests": 0}


def _refusal_empty(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    answer.blocks = [text_block("")]
    answer.stop_reason, answer.stop_details = "refusal", _REFUSAL
    end["output_tokens"] = 0


def _refusal_mid(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    answer.blocks = [text_block(prose(12, 0))]
    answer.stop_reason, answer.stop_details = "refusal", _REFUSAL
    end["output_tokens"] = answer.said()


def _cache_1h(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    """The split stands in the start alone, as in the recordings."""
    written = scenario.number("tokens", 2000)
    start["cache_creation_input_tokens"] = end["cache_creation_input_tokens"] = written
    start["cache_creation"] = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": written}


def _long_context(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
    start["input_tokens"] = end["input_tokens"] = scenario.number("tokens", 250_000)


def _set(name: str, value: Any) -> "Change":
    def change(answer: Answer, scenario: Scenario, start: Usage, end: Usage) -> None:
        start[name] = value

    return change


def _unknown_class(answer: Answer, _: Scenario, start: Usage, end: Usage) -> None:
    end["hologram_tokens"] = 7


def _iteration(usage: Usage, kind: str, output_tokens: int) -> Usage:
    none = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
    return {
        "input_tokens": usage.get("input_tokens", 0),
        "output_tokens": output_tokens,
        "cache_read_input_tokens": usage.get("cache_read_input_tokens", 0),
        "cache_creation_input_tokens": usage.get("cache_creation_input_tokens", 0),
        "cache_creation": copy.copy(usage.get("cache_creation", none)),
        "type": kind,
    }


def _handover(answer: Answer, other: str) -> dict[str, Any]:
    return {
        "type": "fallback",
        "from": {"model": answer.asked},
        "to": {"model": other},
        "trigger": {"type": "refusal", "category": None},
    }


Change = Callable[[Answer, Scenario, Usage, Usage], None]
_CHANGES: Final[dict[str, Change]] = {
    "no_usage": _no_usage,
    "falling_usage": _falling_usage,
    "big_event": _big_event,
    "advisor": _advisor,
    "compaction": _compaction,
    "fallback": _fallback,
    "fallback_declined": _fallback_declined,
    "web_search": _web_search,
    "refusal_empty": _refusal_empty,
    "refusal_mid": _refusal_mid,
    "geo_us": _set("inference_geo", "us"),
    "batch_tier": _set("service_tier", "batch"),
    "fast": _set("speed", "fast"),
    "cache_1h": _cache_1h,
    "long_context": _long_context,
    "unknown_class": _unknown_class,
}
