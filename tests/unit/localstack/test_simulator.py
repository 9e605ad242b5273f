"""The simulator as the official SDK sees it, its invoice, and its form beside recordings of the real API."""

import base64
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from libs.common import pricebook
from libs.localstack.process import Process, free_port, port_answers

KEY = "sk-ant-of-this-test"
MODEL = "claude-sonnet-4-6"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a place",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer", "minimum": 2}, "note": {}},
        "required": ["place", "days"],
    },
}
_ids = itertools.count()


@dataclass
class Sim:
    """A running simulator."""

    url: str
    http: httpx2.Client

    def invoice(self, sim_id: str) -> list[dict[str, Any]]:
        """Its entries for one x-sim-id."""
        return list(self.look("invoice?sim_id=" + sim_id)["entries"])

    def look(self, name: str) -> dict[str, Any]:
        """What it says of itself."""
        return dict(self.http.get("/_sim/" + name).raise_for_status().json())

    def post(self, scenario: str = "", *, sim_id: str = "", stream: bool = False, **body: Any) -> httpx2.Response:
        """A message request; body fields replace the usual ones."""
        whole = {"model": MODEL, "max_tokens": 60, "messages": HELLO, "stream": stream, **body}
        headers = {"x-api-key": KEY, "x-sim-scenario": scenario, "x-sim-id": sim_id}
        return self.http.post("/v1/messages", json=whole, headers=headers)


@contextmanager
def started(logs: Path, *options: str) -> Iterator[Sim]:
    """Run one; it must end by itself when told to."""
    port = free_port()
    command = [sys.executable, "-m", "libs.localstack.simulator", "--port", str(port), *options]
    process = Process.start("simulator", command, log=logs / "simulator.log")
    try:
        process.wait_until(port_answers(port), seconds=20)
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=10) as http:
            yield Sim(url, http)
    finally:
        assert process.stop(seconds=3)
        assert "Traceback" not in process.log_tail()


def new_id() -> str:
    """A fresh x-sim-id."""
    return f"t{next(_ids)}"


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with started(tmp_path_factory.mktemp("simulator"), "--api-key", KEY) as running:
        yield running


@pytest.fixture
def sim_id() -> str:
    return new_id()


@pytest.fixture
def sdk(sim: Sim, sim_id: str) -> Iterator[anthropic.Anthropic]:
    """The official client; every request of it carries the test's x-sim-id."""
    headers = {"x-sim-id": sim_id}
    with anthropic.Anthropic(base_url=sim.url, api_key=KEY, max_retries=0, default_headers=headers) as client:
        yield client


def assert_invoiced(sim: Sim, sim_id: str, usage: Any) -> None:
    """The newest entry has every figure the SDK was told."""
    entry = sim.invoice(sim_id)[-1]
    assert entry["complete"] and entry["ended"] and entry["status"] == 200 and not entry["client_gone"]
    told = {name: value for name, value in usage.model_dump(mode="json").items() if value is not None}
    assert entry["usage_final"] == entry["usage_last_sent"] == told


def test_message(sim: Sim, sdk: anthropic.Anthropic, sim_id: str) -> None:
    message = sdk.messages.create(model=MODEL, max_tokens=12, messages=HELLO)
    (block,) = message.content
    assert block.type == "text" and 40 < len(block.text) <= 48
    assert (message.usage.output_tokens, message.stop_reason, message.model) == (12, "max_tokens", MODEL)
    assert_invoiced(sim, sim_id, message.usage)
    again = sdk.messages.create(model=MODEL, max_tokens=12, messages=HELLO)
    assert again.content == message.content and again.id != message.id


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5-20251001"),
        ("claude-unpriced-1", "claude-unpriced-1"),
    ],
)
def test_models_that_answer(sim: Sim, sdk: anthropic.Anthropic, sim_id: str, asked: str, answered: str) -> None:
    assert sdk.messages.create(model=asked, max_tokens=5, messages=HELLO).model == answered
    (entry,) = sim.invoice(sim_id)
    assert (entry["model_asked"], entry["model_answered"]) == (asked, answered)


def test_stream(sim: Sim, sdk: anthropic.Anthropic, sim_id: str) -> None:
    with sdk.messages.stream(model=MODEL, max_tokens=400, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert any(ord(character) > 0x2000 for character in text)
    assert message.usage.output_tokens == -(-len(text) // 4) and message.stop_reason == "end_turn"
    assert_invoiced(sim, sim_id, message.usage)
    (entry,) = sim.invoice(sim_id)
    assert entry["text_chars_sent"] == len(text) and entry["stream"]
    whole = sdk.messages.create(model=MODEL, max_tokens=400, messages=HELLO)
    assert whole.content[0].type == "text" and whole.content[0].text == text


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_thinking(sim: Sim, sdk: anthropic.Anthropic, sim_id: str, thinking: Any, display: str) -> None:
    thinking = {**thinking, "display": display}
    with sdk.messages.stream(model=MODEL, max_tokens=2000, messages=HELLO, thinking=thinking) as stream:
        message = stream.get_final_message()
    first, second = message.content
    assert first.type == "thinking" and first.signature and second.type == "text"
    assert bool(first.thinking) == (display != "omitted")
    details = message.usage.output_tokens_details
    assert details is not None and 0 < details.thinking_tokens < message.usage.output_tokens
    assert_invoiced(sim, sim_id, message.usage)
    assert sim.invoice(sim_id)[0]["text_chars_sent"] == len(first.thinking) + len(second.text)


def test_tools(sim: Sim, sdk: anthropic.Anthropic, sim_id: str) -> None:
    ask = {"role": "user", "content": "Please use the get_weather tool, and be quick."}
    given = {
        "role": "user",
        "content": 'use the get_weather tool with {"place": "Hammerfest", "days": [1, {"a": "}"}]}. Thanks',
    }
    cases: list[Any] = [(ask, None), (given, {"place": "Hammerfest", "days": [1, {"a": "}"}]})]
    for prompt, expected in cases:
        messages: list[Any] = [prompt]
        with sdk.messages.stream(model=MODEL, max_tokens=300, messages=messages, tools=[WEATHER]) as stream:
            first = stream.get_final_message()
        (call,) = [block for block in first.content if block.type == "tool_use"]
        assert first.stop_reason == "tool_use" and call.name == "get_weather"
        assert call.input == (expected or {"place": "Oslo", "days": 2})
        assert_invoiced(sim, sim_id, first.usage)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "17 degrees"}]}
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        second = sdk.messages.create(model=MODEL, max_tokens=300, messages=messages, tools=[WEATHER])
        assert second.content[0].type == "text" and "17 degrees" in second.content[0].text
        assert second.stop_reason == "end_turn"


def test_as_claude_code_asks(sim: Sim, sdk: anthropic.Anthropic) -> None:
    """Reminders around the prompt, one tool after the other, and side questions that get harmless answers."""
    write: Any = {"name": "Write", "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}}}
    reminder = {"type": "text", "text": "<system-reminder>\nnever use the get_weather tool\n</system-reminder>"}
    prompt = {
        "type": "text",
        "text": 'First use the Write tool with {"file_path": "a"}, then use the get_weather tool.',
    }
    messages: list[Any] = [{"role": "user", "content": [reminder, prompt, reminder]}]
    inputs = []
    for _ in range(3):
        answer = sdk.messages.create(model=MODEL, max_tokens=300, messages=messages, tools=[WEATHER, write])
        calls = [block for block in answer.content if block.type == "tool_use"]
        inputs += [(call.name, call.input) for call in calls]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "done"} for call in calls]
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": [*results, reminder]},
        ]
    assert inputs == [("Write", {"file_path": "a"}), ("get_weather", {"place": "Oslo", "days": 2})]
    assert answer.stop_reason == "end_turn"
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    titled = sim.post(output_config={"format": {"type": "json_schema", "schema": schema}}).json()
    assert json.loads(titled["content"][0]["text"]) == {"title": "some title"}


def test_tool_choice(sim: Sim) -> None:
    for choice, reason in (
        ({"type": "any"}, "tool_use"),
        ({"type": "none"}, "end_turn"),
        ({"type": "auto"}, "end_turn"),
    ):
        answer = sim.post(max_tokens=300, tools=[WEATHER], tool_choice=choice).json()
        assert answer["stop_reason"] == reason


def test_stop_sequence(sim: Sim) -> None:
    text = sim.post(max_tokens=100).json()["content"][0]["text"]
    answer = sim.post(max_tokens=100, stop_sequences=["§", text[30:40]]).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", text[30:40])
    assert answer["content"][0]["text"] == text[:30] and answer["usage"]["output_tokens"] == 8


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_caching(sim: Sim, sdk: anthropic.Anthropic, sim_id: str, ttl: Any) -> None:
    text = f"{ttl} {sim_id} " + "A long instruction. " * 600
    system: list[Any] = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}]
    with sdk.messages.stream(model=MODEL, max_tokens=20, messages=HELLO, system=system) as stream:
        wrote = stream.get_final_message().usage
    assert_invoiced(sim, sim_id, wrote)
    read = sdk.messages.create(model=MODEL, max_tokens=20, messages=HELLO, system=system).usage
    assert_invoiced(sim, sim_id, read)
    other = sdk.messages.create(model="claude-opus-4-7", max_tokens=20, messages=HELLO, system=system).usage
    written = wrote.cache_creation_input_tokens
    assert written and written > 3000 and wrote.cache_read_input_tokens == 0 and wrote.cache_creation is not None
    split = (wrote.cache_creation.ephemeral_5m_input_tokens, wrote.cache_creation.ephemeral_1h_input_tokens)
    assert split == ((written, 0) if ttl == "5m" else (0, written))
    assert (read.cache_read_input_tokens, read.cache_creation_input_tokens) == (written, 0)
    assert read.input_tokens == wrote.input_tokens and other.cache_read_input_tokens == 0
    counted = sdk.messages.count_tokens(model=MODEL, messages=HELLO, system=system).input_tokens
    assert counted == read.input_tokens + written


def test_vision_and_count_tokens(sim: Sim, sdk: anthropic.Anthropic) -> None:
    data = base64.b64encode(bytes(20_000)).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}
    text = {"type": "text", "text": "What is this?"}

    def count(*content: Any) -> int:
        messages: list[Any] = [{"role": "user", "content": list(content)}]
        counted = sdk.messages.count_tokens(model=MODEL, messages=messages).input_tokens
        message = sdk.messages.create(model=MODEL, max_tokens=10, messages=messages)
        assert message.usage.input_tokens == counted and message.content
        return counted

    alone = count(text)
    assert 1600 <= count(image, text) - alone <= 1650
    assert 1600 <= count(result, text) - alone <= 1700
    assert sim.invoice("no such id") == []


def test_models(sim: Sim, sdk: anthropic.Anthropic) -> None:
    listed = list(sdk.models.list(limit=1000))
    assert [model.id for model in sdk.models.list(limit=4)] == [model.id for model in listed]
    ids = {model.id for model in listed}
    assert len(ids) == len(listed) and {MODEL, "claude-unpriced-1", "claude-haiku-4-5-20251001", "claude-opus-4"} <= ids
    for model in listed:
        assert type(model.max_tokens) is int and type(model.max_input_tokens) is int
    assert sdk.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError):
        sdk.models.retrieve("claude-3")
    assert sim.http.get("/v1/models?limit=0", headers={"x-api-key": KEY}).status_code == 400


def test_every_priced_model_is_there(sim: Sim) -> None:
    (*_, newest) = sorted((Path(pricebook.__file__).parent / "pricebooks").glob("*.json"))
    book = json.loads(newest.read_text())
    ids = {model["id"] for model in sim.http.get("/v1/models?limit=1000", headers={"x-api-key": KEY}).json()["data"]}
    assert {row["id"] for row in book["models"]} < ids


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY, "authorization": "Bearer other"}, 200),
        ({"x-api-key": "other", "authorization": f"Bearer {KEY}"}, 401),
        ({"authorization": KEY}, 401),
        ({}, 401),
    ],
)
def test_credentials(sim: Sim, headers: dict[str, str], status: int) -> None:
    body = {"model": MODEL, "max_tokens": 5, "messages": HELLO}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = sim.http.post(path, json=body, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["type"] == "authentication_error"
    assert sim.http.get("/v1/models", headers=headers).status_code == status


def test_hello_and_unknown_paths(sim: Sim) -> None:
    assert sim.http.head("/api/hello").status_code == 200 and sim.http.get("/api/hello").content
    for method, path in (
        ("HEAD", "/"),
        ("GET", "/v1/messages"),
        ("POST", "/v1/complete"),
        ("GET", "/v1/organizations/me"),
    ):
        answer = sim.http.request(method, path, headers={"x-api-key": KEY})
        assert answer.status_code == 404 and (method == "HEAD" or answer.json()["error"]["type"] == "not_found_error")


def test_what_was_received(sim: Sim, sim_id: str) -> None:
    body = (
        b'{"model":"claude-sonnet-4-6", "max_tokens":5,"messages":[{"role":"user","content":"\\ud800 \xe4\xbd\xa0"}] }'
    )
    headers = [
        ("X-Api-Key", KEY),
        ("Content-Type", "application/json"),
        ("x-sim-id", sim_id),
        ("X-Twice", "a"),
        ("X-TWICE", "b"),
    ]
    answer = sim.http.post("/v1/messages?beta=true", content=body, headers=headers)
    seen = sim.look("requests/" + answer.headers["request-id"])
    assert base64.b64decode(seen["body"]) == body and seen["target"] == "/v1/messages?beta=true"
    assert [pair for pair in seen["headers"] if pair[0].lower() == "x-twice"] == [["X-Twice", "a"], ["X-TWICE", "b"]]
    (entry,) = sim.invoice(sim_id)
    assert (
        entry["body_received_sha256"] == seen["sha256"] and entry["upstream_request_id"] == answer.headers["request-id"]
    )
    assert sim.http.get("/_sim/requests/req_unknown").status_code == 404


def test_without_a_key_any_will_do_and_reset_forgets(tmp_path: Path) -> None:
    with started(tmp_path, "--gap-ms", "1") as sim:
        assert sim.post(stream=True).status_code == 200
        assert sim.http.post("/v1/messages", json={}).status_code == 401
        assert len(sim.look("invoice")["entries"]) == 2
        sim.http.post("/_sim/reset")
        assert sim.look("invoice") == {"entries": [], "dropped": 0}


def shape(value: Any) -> Any:
    """Names in order, and kinds of values."""
    if isinstance(value, dict):
        return [(name, value[name] if name == "type" else shape(value[name])) for name in value]
    return type(value).__name__


def grammar(stream: str) -> list[Any]:
    """(event, shape of its data), repetitions once."""
    frames = [frame.split("\n") for frame in stream.strip().split("\n\n")]
    shapes = [(lines[0], shape(json.loads(lines[1].removeprefix("data: ")))) for lines in frames]
    return [key for key, _ in itertools.groupby(shapes)]


def test_streams_have_the_form_of_recordings(sim: Sim, corpus: Path) -> None:
    def recorded(name: str) -> list[Any]:
        (path,) = corpus.glob(f"*/{name}*.sse")
        return grammar(path.read_text())

    text = recorded("chat_streaming_responses_anthropic_claude-haiku-4-5_supports")
    assert grammar(sim.post(stream=True, max_tokens=1000).text) == text
    thoughts = recorded("chat_with_extended_thinking_anthropic_claude-haiku-4-5_streams")
    assert grammar(sim.post(stream=True, max_tokens=1000, thinking={"type": "adaptive"}).text) == thoughts
    prompt = [{"role": "user", "content": "use the get_weather tool"}]
    ours = grammar(sim.post(stream=True, max_tokens=1000, messages=prompt, tools=[WEATHER]).text)
    theirs = recorded("test_anthropic_native_tool_search_streaming")
    assert ours[-5:-2] == theirs[-5:-2] and ours[-4][0] == "event: content_block_delta"


def test_json_has_the_form_of_a_recording(sim: Sim, corpus: Path) -> None:
    (path,) = corpus.glob(
        "*/chat_tool_choice_and_calls_control_anthropic_claude-haiku-4-5_respects_choice_none*.0.json"
    )
    assert shape(sim.post().json()) == shape(json.loads(path.read_bytes()))
    assert sim.post().content.endswith(b" }")
