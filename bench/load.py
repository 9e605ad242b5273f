"""A closed-loop load of many keep-alive connections: `python -m bench.load PLAN`, where PLAN is a JSON object.

Its fields: url, path, headers, kind, requests, connections. Prints one JSON object: requests, errors (not 200, or a stream
without its end) and how the last of these began, seconds, and the time from request to the last byte (p50, p99, milliseconds).
"""

import asyncio
import functools
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop

from bench import traffic

_WRONG_BYTES: Final = 600


class _Run:
    def __init__(self, requests: Iterator[bytes], *, stream: bool) -> None:
        self.requests = requests
        self.stream = stream
        self.errors = 0
        self.wrong = ""
        self.seconds: list[float] = []


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run, ended: asyncio.Future[None]) -> None:
        self._run = run
        self._ended = ended
        self._answer = bytearray()
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._next()

    def _next(self) -> None:
        request = next(self._run.requests, None)
        if request is None:
            self._transport.close()
            return
        self._answer.clear()
        self._started = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if traffic.is_whole(self._answer, stream=self._run.stream):
            self._run.seconds.append(time.perf_counter() - self._started)
            if not traffic.is_right(self._answer, stream=self._run.stream):
                self._run.errors += 1
                self._run.wrong = self._answer[:_WRONG_BYTES].decode(errors="replace")
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def _main(plan: dict[str, Any]) -> None:
    address = urlsplit(plan["url"])
    requests = traffic.requests(plan["kind"], plan["url"], plan["path"], plan["headers"])
    run = _Run(itertools.islice(itertools.cycle(requests), plan["requests"]), stream=traffic.is_stream(plan["kind"]))
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    ends: list[asyncio.Future[None]] = []
    for _ in range(plan["connections"]):
        ended = loop.create_future()
        ends.append(ended)
        await loop.create_connection(
            functools.partial(_Connection, run, ended), address.hostname or "", address.port or 80
        )
    await asyncio.gather(*ends)
    seconds = time.perf_counter() - started
    times = sorted(run.seconds) or [0.0]
    report = {
        "requests": len(run.seconds),
        "errors": run.errors,
        "wrong": run.wrong,
        "seconds": round(seconds, 3),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[min(len(times) - 1, len(times) * 99 // 100)] * 1000, 2),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(json.loads(sys.argv[1])))
