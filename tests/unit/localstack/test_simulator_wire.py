"""What the simulator refuses, what it does with callers who leave or do not read, and how much it can carry."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from libs.localstack.simulator import errors
from tests.unit.localstack.test_simulator import HELLO, KEY, MODEL, Sim, new_id, started

HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    with started(tmp_path_factory.mktemp("simulator")) as running:
        yield running


def address(sim: Sim) -> tuple[str, int]:
    """Host and port."""
    host, port = sim.url.removeprefix("http://").split(":")
    return host, int(port)


def request(*, scenario: str = "text", sim_id: str = "", stream: bool = True, max_tokens: int = 60) -> bytes:
    """A message request as bytes."""
    body = json.dumps({"model": MODEL, "max_tokens": max_tokens, "messages": HELLO, "stream": stream}).encode()
    extra = f"x-sim-scenario: {scenario}\r\nx-sim-id: {sim_id}\r\ncontent-length: {len(body)}\r\n\r\n"
    return HEAD + extra.encode() + body


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


def with_points(number: int, ttl: str = "5m") -> list[dict[str, Any]]:
    control = {"type": "ephemeral", "ttl": ttl}
    return [{"type": "text", "text": "x", "cache_control": control} for _ in range(number)]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"messages": []}, 400, "at least one message"),
        ({"messages": None}, 400, "messages: Field required"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0"),
        ({"max_tokens": None}, 400, "max_tokens: Field required"),
        ({"max_tokens": 0}, 400, "greater than or equal to 1"),
        ({"max_tokens": "5"}, 400, "valid integer"),
        ({"max_tokens": True}, 400, "valid integer"),
        ({"max_tokens": 10**9}, 400, "maximum allowed number"),
        ({"model": None}, 400, "model: Field required"),
        ({"model": "claude-3"}, 404, "model: claude-3"),
        ({"tools": {}}, 400, "tools"),
        ({"tools": [{"name": 1}]}, 400, "tools"),
        ({"stop_sequences": [1]}, 400, "stop_sequences"),
        ({"system": with_points(5)}, 400, "A maximum of 4 blocks with cache_control may be provided. Found 5."),
        ({"system": with_points(1, "2h")}, 400, "ttl"),
        ({"system": with_points(1) + with_points(1, "1h")}, 400, "must not come after"),
        ({"system": with_points(1, "1h") + with_points(3)}, 200, "usage"),
    ],
)
def test_validation(sim: Sim, change: dict[str, Any], status: int, words: str) -> None:
    sim_id = new_id()
    answer = sim.post(sim_id=sim_id, **change)
    assert answer.status_code == sim.invoice(sim_id)[0]["status"] == status and words in answer.text
    if status == 404:
        assert answer.json()["error"] == {"type": "not_found_error", "message": "model: claude-3"}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"a":\xff}', "application/json", 400),
        (b'{"a":' + b"[" * 200_000, "application/json", 400),
        (b"{}", "text/plain", 400),
        (b'"' + b"x" * 32 * 1024 * 1024 + b'"', "application/json", 413),
    ],
    ids=["half", "list", "empty", "utf-8", "deep", "type", "large"],
)
def test_bodies_that_are_refused(sim: Sim, content: bytes, kind: str, status: int) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = sim.http.post(path, content=content, headers={"x-api-key": KEY, "content-type": kind})
        assert answer.status_code == status and answer.json()["error"]["type"] == errors.type_of(status)


def test_what_leaks(sim: Sim) -> None:
    """The headers a relay must drop are on every answer."""
    for answer in (sim.post(), sim.post(stream=True), sim.post("error:429"), sim.http.get("/v1/models")):
        for name in (
            "anthropic-organization-id",
            "set-cookie",
            "cf-ray",
            "server",
            "via",
            "anthropic-ratelimit-tokens-limit",
        ):
            assert name in answer.headers
        assert answer.headers["request-id"].startswith("req_sim")


# -- callers -----------------------------------------------------------------------------------------------------------


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_a_caller_who_leaves(sim: Sim, stream: bool) -> None:
    sim_id, scenario = new_id(), "slow;gap_ms=60000" if stream else "silent;ms=60000"
    before = sim.look("connections")
    with socket.create_connection(address(sim)) as connection:
        connection.sendall(request(scenario=scenario, sim_id=sim_id, stream=stream))
        if stream:
            connection.recv(1)
        wait_for(lambda: sim.look("connections")["busy"] == 1)
        assert sim.look("connections")["streams_running"] == stream
        assert not sim.invoice(sim_id)[0]["ended"]
    wait_for(lambda: bool(sim.invoice(sim_id)[0]["ended"]))
    (entry,) = sim.invoice(sim_id)
    assert entry["client_gone"] and not entry["complete"]
    assert (entry["usage_last_sent"] is not None) == stream
    wait_for(lambda: sim.look("connections")["open"] == before["open"])
    after = sim.look("connections")
    assert (after["busy"], after["streams_running"], after["accepted"]) == (0, 0, before["accepted"] + 1)


def test_a_caller_who_does_not_read_stops_the_writer(sim: Sim) -> None:
    sim_id = new_id()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(address(sim))
        connection.sendall(request(scenario="text;tokens=128000", sim_id=sim_id, max_tokens=128_000))
        wait_for(lambda: bool(sim.invoice(sim_id)) and _sent(sim, sim_id) == _sent(sim, sim_id) > 0)
        assert _sent(sim, sim_id) < 400_000 and sim.look("connections")["streams_running"] == 1
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += connection.recv(1 << 20)
    assert b"message_stop" in answer[-200:] and _sent(sim, sim_id) == 512_000
    assert sim.invoice(sim_id)[0]["complete"]


def _sent(sim: Sim, sim_id: str) -> int:
    return int(sim.invoice(sim_id)[0]["text_chars_sent"])


def test_requests_on_one_connection(sim: Sim) -> None:
    """Pipelined, chunked, with Expect; and nonsense gets a 400."""
    head, _, body = request(stream=False).partition(b"\r\n\r\n")
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with socket.create_connection(address(sim), timeout=10) as connection:
        connection.sendall(head + b"\r\n\r\n" + body + HEAD + b"transfer-encoding: chunked\r\n\r\n" + pieces)
        connection.sendall(b"HEAD /api/hello HTTP/1.1\r\n\r\n" + head + b"\r\nexpect: 100-continue\r\n\r\n")
        seen = b""
        while b"100 Continue" not in seen:
            seen += connection.recv(65536)
        connection.sendall(body)
        while seen.count(b'"type":"message"') < 3:
            seen += connection.recv(65536)
        connection.sendall(b"nonsense\r\n\r\n")
        seen += rest_of(connection)
    assert seen.count(b"HTTP/1.1 200 OK") == 4
    assert seen.endswith(b"content-length: 0\r\nconnection: close\r\n\r\n")


async def converse(sim: Sim, data: bytes, answers: int) -> bytes:
    """Send, and read until so many streams have ended."""
    reader, writer = await asyncio.open_connection(*address(sim))
    writer.write(data)
    seen = b""
    while seen.count(b"event: message_stop") < answers:
        more = await reader.read(1 << 20)
        assert more
        seen += more
    writer.close()
    return seen


@pytest.mark.anyio
async def test_five_hundred_streams(sim: Sim) -> None:
    slow = request(scenario="text;tokens=20;gap_ms=120")
    tasks = [asyncio.ensure_future(converse(sim, slow, 1)) for _ in range(500)]
    running = 0
    async with httpx2.AsyncClient(base_url=sim.url, timeout=20) as http:
        while not all(task.done() for task in tasks):
            running = max(running, (await http.get("/_sim/connections")).json()["streams_running"])
            await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    assert running == 500


@pytest.mark.alone
@pytest.mark.anyio
async def test_a_thousand_requests_take_seconds(sim: Sim) -> None:
    began, sim_id = time.monotonic(), new_id()
    await asyncio.gather(*(converse(sim, request(sim_id=sim_id) * 50, 50) for _ in range(20)))
    entries = sim.invoice(sim_id)
    assert len(entries) == 1000 and all(entry["complete"] for entry in entries)
    assert len({entry["upstream_request_id"] for entry in entries}) == 1000
    assert time.monotonic() - began < 10
