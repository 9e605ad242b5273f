"""Every scenario does what its line in the table says, to a stream and to JSON, and the invoice says what was sent."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from libs.common.metrics import Metrics
from libs.localstack.simulator import errors
from libs.localstack.simulator.scenarios import SCENARIOS, Scenario, line_of, parse
from services.gateway.meter import JsonMeter, Meter, StreamMeter
from tests.unit.localstack.test_simulator import HELLO, KEY, MODEL, Sim, new_id, started

ORDINARY_END = {"cut", "cut_inside_frame", "cut_json", "reset", "error_event", "no_message_stop", "redirect"}
REFUSED = {"error", "spend_limit", "enforced_spend_limit", "on_hold", "overloaded"}
ANSWERED = sorted(name for name in SCENARIOS if name.partition(":")[0] not in ORDINARY_END | REFUSED)
both = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with started(tmp_path_factory.mktemp("simulator")) as running:
        yield running


class Told:
    """A request under a scenario: what came back, and what the invoice says of it."""

    def __init__(self, sim: Sim, scenario: str, *, stream: bool, **body: Any) -> None:
        self.sim_id = new_id()
        self.answer = sim.post(scenario, sim_id=self.sim_id, stream=stream, **body)
        (self.entry,) = sim.invoice(self.sim_id)
        assert self.entry["scenario"] == scenario and self.entry["ended"]

    @property
    def message(self) -> dict[str, Any]:
        """The JSON answer, or what the stream adds up to."""
        if not self.entry["stream"]:
            return dict(self.answer.json())
        return joined(self.answer.text)

    @property
    def usage(self) -> dict[str, Any]:
        """As the caller was told."""
        return dict(self.message["usage"])


def data_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    lines = text.replace("\r\n", "\n").split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def joined(text: str) -> dict[str, Any]:
    """A message put together by the simplest means."""
    message: dict[str, Any] = {}
    for event in data_of(text):
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append(event["content_block"])
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                message["content"][event["index"]]["text"] += event["delta"]["text"]
            case "message_delta":
                message |= event["delta"]
                if "usage" in event:
                    message["usage"] = {**message["usage"], **event["usage"]}
    return message


def text_of(message: dict[str, Any]) -> str:
    return "".join(block.get("text", "") for block in message["content"])


@both
@pytest.mark.parametrize("name", ANSWERED)
def test_the_invoice_is_what_the_relay_reads(sim: Sim, name: str, stream: bool) -> None:
    """The product's own meter and the invoice agree, whatever the scenario."""
    parameters = {"slow": "gap_ms=1", "silent": "ms=1", "big_event": "size=5000"}.get(name, "tokens=30")
    told = Told(sim, f"{name};{parameters}", stream=stream)
    meter: Meter = StreamMeter(Metrics()) if stream else JsonMeter(Metrics())
    meter.feed(told.answer.content)
    meter.end()
    read, entry = meter.reading, told.entry
    assert entry["complete"] and entry["status"] == 200 and read.complete
    assert read.usage == entry["usage_last_sent"] == entry["usage_final"]
    assert read.usage_start == entry["usage_start"]
    assert (read.model, read.stop_reason) == (entry["model_answered"], entry["stop_reason"])
    assert (read.declined_models, read.content_empty) == (entry["declined_models"], entry["content_empty"])
    assert not stream or read.text_chars == entry["text_chars_sent"]


@both
def test_text(sim: Sim, stream: bool) -> None:
    told = Told(sim, "text;tokens=50", stream=stream)
    assert told.usage["output_tokens"] == 50 and 196 < len(text_of(told.message)) <= 200
    assert Told(sim, "text;tokens=5000", stream=stream).message["stop_reason"] == "max_tokens"


@both
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors(sim: Sim, status: int, kind: str, stream: bool) -> None:
    told = Told(sim, f"error:{status}", stream=stream)
    body = told.answer.json()
    assert told.answer.status_code == told.entry["status"] == status
    assert body["type"] == "error" and body["error"]["type"] == kind and body["error"]["message"]
    assert body["request_id"] == told.answer.headers["request-id"]
    assert (errors.ORGANIZATION_ID in body["error"]["message"]) == (status == 429)
    assert ("retry-after" in told.answer.headers) == (status in (429, 503, 529))
    assert not told.entry["complete"] and told.entry["usage_last_sent"] is None


def test_an_error_can_be_worded(sim: Sim) -> None:
    told = Told(sim, "error:400;message=prompt is too long: 3333404 tokens > 200000 maximum", stream=False)
    assert told.answer.json()["error"]["message"] == "prompt is too long: 3333404 tokens > 200000 maximum"


@pytest.mark.parametrize(
    ("scenario", "status", "words"),
    [
        ("spend_limit", 400, "You have reached your specified API usage limits"),
        ("enforced_spend_limit", 429, "enforced_spend_limit_reached"),
        ("on_hold", 403, "organization_on_hold"),
    ],
)
def test_the_operators_troubles(sim: Sim, scenario: str, status: int, words: str) -> None:
    told = Told(sim, scenario, stream=True)
    assert told.answer.status_code == status and words in told.answer.text


@pytest.mark.parametrize("scenario", ["error:429", "spend_limit", "on_hold", "overloaded", "error:401"])
def test_so_many_times_and_then_an_answer(sim: Sim, scenario: str) -> None:
    sim_id = new_id()
    statuses = [sim.post(f"{scenario};times=2", sim_id=sim_id).status_code for _ in range(4)]
    assert all(status >= 400 for status in statuses[:2]) and statuses[2:] == [200, 200]
    assert sim.post(f"{scenario};times=1", sim_id=new_id()).status_code >= 400


def test_a_scenario_for_one_api_key_only(sim: Sim) -> None:
    sim_id, other = new_id(), new_id()
    assert sim.post(f"error:401;key={KEY[-6:]}", sim_id=sim_id).status_code == 401
    assert sim.post("error:401;key=another", sim_id=other).status_code == 200
    assert sim.post("error:500;key=another;times=1", sim_id=other).status_code == 200
    assert sim.post(f"error:500;key={KEY[-6:]};times=1", sim_id=other).status_code == 500  # what passed did not count
    assert {entry["api_key_end"] for entry in sim.invoice(sim_id) + sim.invoice(other)} == {KEY[-4:]}


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1/models"])
def test_free_paths_have_scenarios_too(sim: Sim, path: str) -> None:
    headers = {"x-api-key": KEY, "x-sim-scenario": "error:529;times=1", "x-sim-id": new_id()}
    method, json = ("GET", None) if path.endswith("models") else ("POST", {"model": MODEL, "messages": HELLO})
    assert [sim.http.request(method, path, headers=headers, json=json).status_code for _ in range(2)] == [529, 200]


def test_an_error_can_say_when_to_come_back(sim: Sim) -> None:
    assert sim.post("error:500").headers.get("retry-after") is None
    for scenario in ("error:429;retry_after=33", "error:500;retry_after=33", "overloaded;retry_after=33"):
        assert sim.post(scenario, sim_id=new_id()).headers["retry-after"] == "33"


def test_overloaded_for_a_while(sim: Sim) -> None:
    sim_id = new_id()
    statuses = [sim.post("overloaded;times=2", sim_id=sim_id).status_code for _ in range(4)]
    assert statuses == [529, 529, 200, 200]
    assert [entry["status"] for entry in sim.invoice(sim_id)] == statuses


@both
def test_slow(sim: Sim, stream: bool) -> None:
    began = time.monotonic()
    Told(sim, "slow;gap_ms=20;first_ms=100;tokens=20", stream=stream)
    assert time.monotonic() - began >= (0.1 + 0.02 * (10 if stream else 3)) * 0.9


@both
def test_silent(sim: Sim, stream: bool) -> None:
    began = time.monotonic()
    Told(sim, "silent;ms=150", stream=stream)
    assert time.monotonic() - began >= 0.15


class Broken:
    """What came before a connection broke."""

    def __init__(self, sim: Sim, scenario: str, *, stream: bool) -> None:
        sim_id, self.body = new_id(), b""
        body = {"model": MODEL, "max_tokens": 60, "messages": HELLO, "stream": stream}
        headers = {"x-api-key": KEY, "x-sim-scenario": scenario, "x-sim-id": sim_id}
        with pytest.raises(httpx2.TransportError) as caught:
            self._read(sim, body, headers)
        self.error = caught.value
        assert not isinstance(self.error, httpx2.TimeoutException)
        (self.entry,) = sim.invoice(sim_id)
        assert not self.entry["complete"] and self.entry["usage_final"] is None and not self.entry["client_gone"]

    def _read(self, sim: Sim, body: dict[str, Any], headers: dict[str, str]) -> None:
        with sim.http.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
            for chunk in answer.iter_raw():
                self.body += chunk


def test_cut(sim: Sim) -> None:
    """The usage of message_start is the last that was sent; the texts count as far as they went."""
    broken = Broken(sim, "cut;after=5", stream=True)
    events = data_of(broken.body.decode())
    assert len(events) == 5 and broken.body.endswith(b"\n\n")
    assert broken.entry["usage_last_sent"] == events[0]["message"]["usage"]
    assert broken.entry["text_chars_sent"] == sum(len(event["delta"]["text"]) for event in events[3:])
    assert not broken.entry["stop_reason"]
    last = Broken(sim, "cut;after=1000", stream=True)
    assert data_of(last.body.decode())[-1]["type"] == "message_delta"
    assert last.entry["usage_last_sent"]["output_tokens"] == 60
    assert Broken(sim, "cut;after=0", stream=True).entry["usage_last_sent"] is None


def test_cut_cleanly(sim: Sim) -> None:
    told = Told(sim, "cut;after=4;clean=1", stream=True)
    assert len(data_of(told.answer.text)) == 4 and not told.entry["complete"]
    told = Told(sim, "cut;clean=1", stream=False)
    assert told.answer.status_code == 200 and told.answer.text.startswith("{") and not told.entry["complete"]
    with pytest.raises(ValueError):
        told.answer.json()


@pytest.mark.parametrize("scenario", ["cut_inside_frame;after=4", "cut_json;after=4"])
def test_cut_inside_a_frame(sim: Sim, scenario: str) -> None:
    broken = Broken(sim, scenario, stream=True)
    whole, _, torn = broken.body.rpartition(b"\n\n")
    assert len(data_of(whole.decode())) == 4 and torn.startswith(b"event: content_block_delta")


@pytest.mark.parametrize("scenario", ["cut", "cut_inside_frame", "cut_json"])
def test_cut_inside_json(sim: Sim, scenario: str) -> None:
    broken = Broken(sim, scenario, stream=False)
    assert broken.body.startswith(b"{") and broken.entry["usage_last_sent"] is None and broken.entry["status"] == 200


@both
def test_reset(sim: Sim, stream: bool) -> None:
    broken = Broken(sim, "reset", stream=stream)
    assert isinstance(broken.error, httpx2.ReadError) and not broken.body and broken.entry["status"] == 0


def test_error_event(sim: Sim) -> None:
    told = Told(sim, "error_event;after=4;type=api_error;message=Internal", stream=True)
    *_, last = events = data_of(told.answer.text)
    assert len(events) == 5 and last["error"] == {"details": None, "type": "api_error", "message": "Internal"}
    assert last["request_id"] == told.answer.headers["request-id"]
    assert not told.entry["complete"] and told.entry["usage_last_sent"] == events[0]["message"]["usage"]
    as_json = Told(sim, "error_event", stream=False)
    assert as_json.answer.status_code == 529 and as_json.answer.json()["error"]["type"] == "overloaded_error"


def test_no_message_stop(sim: Sim) -> None:
    told = Told(sim, "no_message_stop", stream=True)
    assert data_of(told.answer.text)[-1]["type"] == "message_delta" and not told.entry["complete"]
    assert told.entry["usage_last_sent"]["output_tokens"] == 60


@both
def test_usage_that_is_missing_or_falls(sim: Sim, stream: bool) -> None:
    assert "usage" not in Told(sim, "no_usage", stream=stream).message
    told = Told(sim, "falling_usage", stream=stream)
    if stream:
        started_at = told.entry["usage_start"]
        assert started_at["input_tokens"] > told.usage["input_tokens"]
        assert started_at["cache_read_input_tokens"] > told.usage["cache_read_input_tokens"] == 0


def wire(sim: Sim, scenario: str, *, stream: bool) -> bytes:
    """An answer as it comes out of a bare socket."""
    body = json.dumps({"model": MODEL, "max_tokens": 60, "messages": HELLO, "stream": stream}).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nx-api-key: k\r\ncontent-type: application/json\r\nx-sim-scenario: {scenario}\r\n"
    with dialled(sim) as connection:
        connection.sendall(head.encode() + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def dialled(sim: Sim) -> socket.socket:
    host, port = sim.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def chunks(answer: bytes) -> list[bytes]:
    """The HTTP chunks of its body, which must end as the protocol says."""
    rest = answer.partition(b"\r\n\r\n")[2]
    found: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            assert rest == b"\r\n"
            return found
        found.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


def test_how_a_stream_is_written(sim: Sim) -> None:
    ordinary = chunks(wire(sim, "text", stream=True))
    assert all(chunk.endswith(b"\n\n") for chunk in ordinary) and len(ordinary) > 10
    size = sum(map(len, ordinary))
    single = chunks(wire(sim, "one_byte", stream=True))
    assert {len(chunk) for chunk in single} == {1} and abs(len(single) - size) < 200
    sevens = chunks(wire(sim, "split_utf8;size=3", stream=True))
    assert {len(chunk) for chunk in sevens[:-1]} == {3}
    assert any(not _is_text(chunk) for chunk in sevens)
    assert len(chunks(wire(sim, "coalesced", stream=True))) == 1
    crlf = b"".join(chunks(wire(sim, "crlf", stream=True)))
    assert crlf.count(b"\n") == crlf.count(b"\r\n") > 20
    assert json.loads(wire(sim, "one_byte", stream=False).partition(b"\r\n\r\n")[2])["usage"]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@both
def test_what_nobody_knows(sim: Sim, stream: bool) -> None:
    told = Told(sim, "unknown_event", stream=stream)
    assert "hologram" in told.answer.text
    assert Told(sim, "unknown_class", stream=stream).usage["hologram_tokens"] == 7


@both
def test_big_things(sim: Sim, stream: bool) -> None:
    told = Told(sim, "big_event", stream=stream)
    assert len(text_of(told.message)) == 1024 * 1024 and told.usage["output_tokens"] == 262_144
    if stream:
        assert max(len(line) for line in told.answer.text.split("\n")) > 1024 * 1024
    assert len(Told(sim, "big_header;size=9000", stream=stream).answer.headers["x-big"]) == 9000


@both
def test_wire_scenarios(sim: Sim, stream: bool) -> None:
    told = Told(sim, "gzip", stream=stream)
    assert told.answer.headers["content-encoding"] == "gzip" and told.message["usage"]
    told = Told(sim, "redirect", stream=stream)
    assert told.answer.status_code == 302 and told.answer.headers["location"].startswith("https://elsewhere.invalid")
    assert told.entry["status"] == 302 and not told.entry["complete"]
    assert Told(sim, "close", stream=stream).answer.headers["connection"] == "close"
    assert Told(sim, "early_hints", stream=stream).message["usage"]
    hinted = wire(sim, "early_hints", stream=stream)
    assert hinted.startswith(b"HTTP/1.1 103 ") and hinted.count(b"HTTP/1.1 200 ") == 1
    zipped = wire(sim, "gzip", stream=stream)
    assert b"usage" in gzip.decompress(b"".join(chunks(zipped))) and b"usage" not in zipped


# -- how a scenario is chosen, and what is refused ---------------------------------------------------------------------


def test_a_body_can_choose_and_the_header_wins(sim: Sim) -> None:
    chosen = {"user_id": "sim:error:500"}
    assert sim.post(metadata=chosen).status_code == 500
    assert sim.post("error:404", metadata=chosen).status_code == 404
    assert sim.post(metadata={"user_id": "somebody"}).status_code == 200
    assert line_of("", {"metadata": {"user_id": "sim:text;tokens=3"}}) == "text;tokens=3"
    assert parse("error:529; message=a=b") == Scenario("error", {"status": "529", "message": "a=b"})


def test_an_unknown_scenario_is_an_error(sim: Sim) -> None:
    told = Told(sim, "errror:500", stream=False)
    assert told.answer.status_code == 400 and "errror" in told.answer.text
    assert set(sim.look("scenarios")["scenarios"]) == set(SCENARIOS)


def test_no_scenario_is_left_out_here() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_simulator*.py"))
    for name in SCENARIOS:
        assert f'"{name.partition(":")[0]}' in text
