"""Scenarios that change how an answer is counted: iterations, searches, refusals, tiers and amounts."""

from collections.abc import Iterator

import pytest

from tests.unit.localstack.test_simulator import MODEL, Sim, started
from tests.unit.localstack.test_simulator_scenarios import Told, both, text_of


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with started(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@both
def test_advisor(sim: Sim, stream: bool) -> None:
    usage = Told(sim, "advisor;model=claude-opus-5", stream=stream).usage
    first, advice, second = usage["iterations"]
    assert [entry["type"] for entry in usage["iterations"]] == ["message", "advisor_message", "message"]
    assert advice["model"] == "claude-opus-5" and advice["input_tokens"] and "model" not in first
    for name in ("input_tokens", "output_tokens"):
        assert usage[name] == first[name] + second[name], "the advisor is left out of the top level"


@both
def test_compaction(sim: Sim, stream: bool) -> None:
    told = Told(sim, "compaction", stream=stream)
    compaction, message = told.usage["iterations"]
    assert compaction["type"] == told.message["content"][0]["type"] == "compaction"
    assert compaction["cache_creation_input_tokens"] == 5096 and not told.usage["cache_creation_input_tokens"]
    assert message["output_tokens"] == told.usage["output_tokens"] == 60


@both
def test_fallback(sim: Sim, stream: bool) -> None:
    told = Told(sim, "fallback;model=claude-opus-5", stream=stream)
    said, block, more = told.message["content"]
    first, second = told.usage["iterations"]
    assert said["text"] and more["text"] and block["type"] == "fallback"
    assert (block["from"]["model"], block["to"]["model"]) == (MODEL, "claude-opus-5")
    assert first["output_tokens"] == 10 and (second["type"], second["model"]) == ("fallback_message", "claude-opus-5")
    assert told.message["model"] == told.entry["model_answered"] == (MODEL if stream else "claude-opus-5")
    assert told.entry["declined_models"] == []


@both
def test_fallback_declined(sim: Sim, stream: bool) -> None:
    told = Told(sim, "fallback_declined", stream=stream)
    assert told.message["content"][0]["type"] == "fallback" and told.message["model"] == "claude-opus-4-8"
    assert told.entry["declined_models"] == [MODEL]
    assert told.usage["iterations"][0]["output_tokens"] > 0


@both
def test_web_search(sim: Sim, stream: bool) -> None:
    told = Told(sim, "web_search;n=3", stream=stream)
    assert told.usage["server_tool_use"] == {"web_search_requests": 3, "web_fetch_requests": 0}
    kinds = [block["type"] for block in told.message["content"]]
    assert kinds == ["server_tool_use", "web_search_tool_result"] * 3 + ["text"]
    assert told.usage["input_tokens"] > 7500
    if stream:
        assert told.entry["usage_start"]["input_tokens"] < 100


@both
def test_refusals(sim: Sim, stream: bool) -> None:
    told = Told(sim, "refusal_empty", stream=stream)
    assert told.entry["content_empty"] and not text_of(told.message) and told.usage["output_tokens"] == 0
    assert told.message["stop_reason"] == told.message["stop_details"]["type"] == "refusal"
    told = Told(sim, "refusal_mid", stream=stream)
    assert not told.entry["content_empty"] and text_of(told.message) and told.entry["stop_reason"] == "refusal"


@both
def test_how_it_was_served(sim: Sim, stream: bool) -> None:
    usual = Told(sim, "text", stream=stream).usage
    assert (usual["inference_geo"], usual["service_tier"], usual.get("speed")) == ("global", "standard", None)
    assert Told(sim, "geo_us", stream=stream).usage["inference_geo"] == "us"
    assert Told(sim, "batch_tier", stream=stream).usage["service_tier"] == "batch"
    assert Told(sim, "fast", stream=stream).usage["speed"] == "fast"
    assert Told(sim, "text", stream=stream, speed="fast", inference_geo="us").usage["speed"] == "fast"


@both
def test_amounts(sim: Sim, stream: bool) -> None:
    usage = Told(sim, "cache_1h;tokens=3000", stream=stream).usage
    assert usage["cache_creation_input_tokens"] == usage["cache_creation"]["ephemeral_1h_input_tokens"] == 3000
    assert usage["output_tokens"] == 60
    assert Told(sim, "long_context", stream=stream).usage["input_tokens"] == 250_000
