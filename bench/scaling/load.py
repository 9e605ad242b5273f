"""A load of many keys over keep-alive connections: `python -m bench.scaling.load PLAN`, a Plan as JSON.

With a rate the loop is open: requests are due at their times, and one that waits for a connection waits on its own account.
Without one it is closed: every connection is kept busy. A plan that holds prints `holding` when every connection has had the
beginning of its answer, and goes on when its stdin ends. At the end comes one line, a Report as JSON.
"""

import asyncio
import functools
import hashlib
import random
import sys
import time
from collections import Counter, deque
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import uvloop

from libs.common import apikeys

_END: Final = b"0\r\n\r\n"
_PADDING: Final = "All the words of a long conversation. "


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent."""

    url: str
    requests: int
    connections: int
    rate: float = 0.0
    """Requests a second; 0: as fast as they are answered."""
    key: str = ""
    """Of every request; empty: at random among `keys` of `family`."""
    family: str = ""
    keys: int = 0
    in_turn: bool = False
    """Every key once, in order, instead of at random."""
    path: str = "/v1/messages"
    model: str = "claude-sonnet-4-6"
    events: int = 0
    """Of a stream; 0: a JSON answer."""
    gap_ms: int = 20
    body_bytes: int = 1_000
    seed: int = 6
    hold: bool = False
    """Each connection carries one request, and the rate is that of their beginning: a stream that the upstream holds, or one to a
    path that answers and leaves the connection idle."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    statuses: dict[str, int]
    cut: int
    """Answers that did not come to their end."""
    seconds: float
    p50_ms: float
    p99_ms: float
    """To the last byte; in an open loop from the time a request was due."""
    replicas: dict[str, dict[str, int]]
    """Status → address of the gateway, as nginx names it → answers."""


def key_of(family: str, number: int) -> str:
    """A well-formed key of a bench: always the same one."""
    return apikeys.derived(hashlib.sha256(f"{family} {number}".encode()).digest())


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._body = _body(plan)
        self._host = urlsplit(plan.url).netloc
        chance = random.Random(plan.seed)
        order = range(plan.requests) if plan.in_turn else chance.choices(range(max(plan.keys, 1)), k=plan.requests)
        self._keys = deque([plan.key] * plan.requests if plan.key else [key_of(plan.family, one) for one in order])
        self.idle: list[_Connection] = []
        self.late: deque[float] = deque()
        self.statuses: Counter[str] = Counter()
        self.replicas: dict[str, Counter[str]] = {}
        self.cut = 0
        self.seconds: list[float] = []
        self._begun = 0
        self.all_begun = asyncio.Event()
        """Every connection has had the head of an answer."""
        self.done = asyncio.Event()

    def next_request(self) -> bytes | None:
        if not self._keys:
            return None
        key = self._keys.popleft()
        method = b"POST" if self.plan.path == "/v1/messages" else b"GET"
        head = (
            f" {self.plan.path} HTTP/1.1\r\nhost: {self._host}\r\nx-api-key: {key}\r\nanthropic-version: 2023-06-01\r\n"
            f"content-type: application/json\r\nuser-agent: bench\r\ncontent-length: {len(self._body)}\r\n\r\n"
        )
        return method + head.encode() + self._body

    def answered(self, connection: "_Connection", answer: bytearray, seconds: float, *, whole: bool) -> None:
        self.seconds.append(seconds)
        status = bytes(answer[9:12]).decode()
        self.statuses[status] += 1
        at = answer.find(b"x-replica: ", 0, answer.find(b"\r\n\r\n"))
        if at >= 0:
            replica = bytes(answer[at + 11 : answer.find(b"\r\n", at)]).decode()
            self.replicas.setdefault(status, Counter())[replica] += 1
        if not whole or (self.plan.events and status == "200" and b'"message_stop"' not in answer):
            self.cut += 1
        if len(self.seconds) == self.plan.requests:
            self.done.set()
        elif self.late:
            connection.send(self.late.popleft())
        elif not self.plan.rate:
            connection.send(time.perf_counter())
        elif not self.plan.hold:
            self.idle.append(connection)

    def has_begun(self) -> None:
        self._begun += 1
        if self._begun == self.plan.connections:
            self.all_begun.set()

    async def arrive(self) -> None:
        """The open loop."""
        started = time.perf_counter()
        for number in range(self.plan.requests):
            due = started + number / self.plan.rate
            if (wait_s := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            if self.idle:
                self.idle.pop().send(due)
            else:
                self.late.append(due)

    def report(self, seconds: float) -> Report:
        times = sorted(self.seconds) or [0.0]
        return Report(
            statuses=dict(self.statuses),
            cut=self.cut,
            seconds=round(seconds, 3),
            p50_ms=round(times[len(times) // 2] * 1000, 2),
            p99_ms=round(times[len(times) * 99 // 100] * 1000, 2),
            replicas={status: dict(counts) for status, counts in self.replicas.items()},
        )


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._buffer = bytearray()
        self._length = -1
        """Of the whole answer; 0: chunked, -1: not known yet."""
        self._due = 0.0
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def send(self, due: float) -> None:
        request = self._load.next_request()
        if request is not None:
            self._buffer.clear()
            self._length, self._due, self._busy = -1, due, True
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._length < 0:
            self._read_head()
        if self._is_whole():
            self._busy = False
            self._load.answered(self, self._buffer, time.perf_counter() - self._due, whole=True)

    def _is_whole(self) -> bool:
        if self._length > 0:
            return len(self._buffer) >= self._length
        return self._length == 0 and self._buffer.endswith(_END)

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        self._load.has_begun()
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        self._length = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._busy = False
            self._load.answered(self, self._buffer, time.perf_counter() - self._due, whole=False)


def _body(plan: Plan) -> bytes:
    if plan.path != "/v1/messages":
        return b""
    wish = f"events={plan.events} " + ("held" if plan.hold else f"gap_ms={plan.gap_ms}")
    content = _PADDING * (plan.body_bytes // len(_PADDING) + 1)
    message = {
        "model": plan.model,
        "max_tokens": 1024,
        "stream": plan.events > 0,
        "metadata": {"user_id": wish},
        "messages": [{"role": "user", "content": content[: plan.body_bytes]}],
    }
    return msgspec.json.encode(message)


async def _main(plan: Plan) -> None:
    load = _Load(plan)
    loop = asyncio.get_running_loop()
    address = urlsplit(plan.url)
    made = functools.partial(_Connection, load)
    for _ in range(plan.connections):
        _, connection = await loop.create_connection(made, address.hostname or "", address.port or 80)
        load.idle.append(connection)
    started = time.perf_counter()
    if plan.rate:
        await load.arrive()
    else:
        connections, load.idle = load.idle, []
        for connection in connections:
            connection.send(time.perf_counter())
    if plan.hold:
        await load.all_begun.wait()
        print("holding", flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
    await load.done.wait()
    print(msgspec.json.encode(load.report(time.perf_counter() - started)).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=Plan)))
