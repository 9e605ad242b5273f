"""The simulator's parts by themselves: what it says, how it is spelled and staged, and its server when a handler fails."""

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.localstack.simulator import app, catalogue, delivery, errors, http, invoice, messages, stream, variants
from libs.localstack.simulator.answers import Answer, ordinary, prose
from libs.localstack.simulator.samples import sample
from libs.localstack.simulator.scenarios import Scenario
from libs.localstack.simulator.tokens import InputUsage, text_tokens
from tests.unit.localstack.test_simulator import HELLO, MODEL, new_id

SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b", "a"]},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "array", "items": {"type": "number", "minimum": 5}, "minItems": 2},
    {"enum": ["x", "y"]},
    {"const": 3},
    {"type": ["null", "string"]},
    {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
    {"type": "string", "minLength": 40},
    {
        "type": "object",
        "properties": {"deep": {"type": "object", "properties": {"x": {"type": "array"}}, "required": ["x"]}},
        "required": ["deep"],
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_sample_fulfils_its_schema(schema: Any) -> None:
    jsonschema.validate(sample(schema), schema)  # type: ignore[no-untyped-call]


def test_a_schema_without_end_has_a_sample() -> None:
    endless: dict[str, Any] = {"type": "object", "required": ["next"], "properties": {}}
    endless["properties"]["next"] = endless
    assert json.dumps(sample(endless)).count("next") < 10


@given(st.integers(0, 5000), st.integers(0, 2**32))
def test_prose_has_the_length_that_was_asked_for(tokens: int, seed: int) -> None:
    assert text_tokens(prose(tokens, seed)) == tokens


def answer(**body: Any) -> Answer:
    whole = {"model": MODEL, "messages": HELLO, **body}
    return ordinary(whole, name="x", model=MODEL, max_tokens=100, spent=InputUsage(7, 0, 0, 0), wanted=50)


def test_a_stream_says_what_the_json_says() -> None:
    said = answer(thinking={"type": "adaptive"})
    whole = json.loads(stream.whole(said, extra={}).data)
    deltas: dict[int, str] = {}
    for event in stream.events(said):
        data = json.loads(event.data.partition(b"data: ")[2])
        if data["type"] == "content_block_delta":
            piece = data["delta"].get("text", "") + data["delta"].get("thinking", "")
            deltas[data["index"]] = deltas.get(data["index"], "") + piece
            assert event.chars == len(piece)
    assert list(deltas.values()) == [whole["content"][0]["thinking"], whole["content"][1]["text"]]
    assert whole["usage"]["output_tokens"] == said.said() <= 100


def test_most_scenarios_do_not_change_what_is_said() -> None:
    plain, same = answer(), answer()
    variants.apply(same, Scenario("slow"))
    assert same == plain
    variants.apply(same, Scenario("geo_us"))
    assert same != plain


def test_a_cut_comes_before_the_end() -> None:
    events = stream.events(answer())
    for after in ("0", "3", "100000"):
        staged = delivery.stage(events, Scenario("cut", {"after": after}), "req_1")
        assert staged.broken and staged.events == events[: min(int(after), len(events) - 1)]
    assert delivery.stage(events, Scenario(), "req_1") == delivery.Staged(events)


def test_pages_of_models() -> None:
    names, after = [], ""
    while True:
        page = catalogue.page(limit=7, after=after)
        names += [entry["id"] for entry in page["data"]]
        assert page["last_id"] == names[-1]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert tuple(names) == catalogue.MODELS and len(set(names)) == len(names)
    assert catalogue.answering_model("claude-opus-4-0") == "claude-opus-4-20250514"
    assert catalogue.answering_model("claude-opus-4-0-20250514") is None


def test_an_entry_lays_usage_over_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoice, "ENTRIES_MAX", 2)
    book = invoice.Invoice()
    for number in range(3):
        book.add(invoice.Entry(upstream_request_id=str(number), sim_id="", path="", body_received_sha256=""))
    shown = book.shown()
    assert [entry.upstream_request_id for entry in shown["entries"]] == ["1", "2"] and shown["dropped"] == 1
    (entry, _) = shown["entries"]
    entry.sent_usage({"input_tokens": 9, "output_tokens": 1})
    entry.sent_usage({"input_tokens": 3, "output_tokens": None})
    assert entry.usage_last_sent == {"input_tokens": 3, "output_tokens": 1}
    assert entry.usage_start == {"input_tokens": 9, "output_tokens": 1}
    entry.close("")
    assert entry.usage_final is None


async def exchanged(handler: http.Handler, data: bytes) -> bytes:
    """What a server with this handler sends until it closes."""
    server = http.Server(handler)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.listen("127.0.0.1", 0))
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        server.close()


@pytest.mark.anyio
async def test_a_handler_that_fails_does_not_leave_its_caller_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(request: http.Request, exchange: http.Exchange) -> None:
        raise RuntimeError("a defect")

    assert await exchanged(fails, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert "a defect" in caplog.text


@pytest.mark.anyio
async def test_a_refused_credential_has_an_entry() -> None:
    part = messages.Messages()

    async def handler(request: http.Request, exchange: http.Exchange) -> None:
        await part.answer(request, exchange, "req_1", errors.standard(401))

    data = await exchanged(handler, b"POST /v1/messages HTTP/1.1\r\nx-sim-id: a\r\nconnection: close\r\n\r\n")
    (entry,) = part.invoice.shown("a")["entries"]
    assert data.startswith(b"HTTP/1.1 401 ") and entry.status == 401 and entry.ended


@pytest.mark.anyio
async def test_what_was_received_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_RECEIVED_BYTES_MAX", 10)
    simulator = app.Simulator()
    port = await simulator.server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(3):
        writer.write(b"POST /%d HTTP/1.1\r\ncontent-length: 6\r\n\r\n123456" % number)
    writer.write(b"GET /_sim/%s HTTP/1.1\r\nconnection: close\r\n\r\n" % new_id().encode())
    found = await reader.read()
    writer.close()
    simulator.server.close()
    assert found.count(b"HTTP/1.1 404") == 4
    assert [request.target for request in simulator.received.values()] == [b"/2"]
