"""A closed-loop load of many keep-alive connections: `python -m bench.load URL KEY json|sse REQUESTS CONNECTIONS HEADERS`.

HEADERS is a JSON object of what is sent beside the usual headers, or instead of them. Prints one JSON object: requests, errors
(not 200, or a stream without its end), seconds, and the time from request to the last byte (p50, p99, milliseconds).
"""

import asyncio
import functools
import json
import sys
import time
from typing import cast
from urllib.parse import urlsplit

import uvloop


class _Run:
    def __init__(self, request: bytes, requests: int, *, stream: bool) -> None:
        self.request = request
        self.left = requests
        self.stream = stream
        self.errors = 0
        self.seconds: list[float] = []


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run, ended: asyncio.Future[None]) -> None:
        self._run = run
        self._ended = ended
        self._buffer = bytearray()
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._next()

    def _next(self) -> None:
        if self._run.left <= 0:
            self._transport.close()
            return
        self._run.left -= 1
        self._buffer.clear()
        self._started = time.perf_counter()
        self._transport.write(self._run.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._is_complete():
            self._run.seconds.append(time.perf_counter() - self._started)
            if not self._buffer.startswith(b"HTTP/1.1 200") or self._run.stream is not (
                b'"message_stop"' in self._buffer
            ):
                self._run.errors += 1
            self._next()

    def _is_complete(self) -> bool:
        if self._run.stream:
            return self._buffer.endswith(b"0\r\n\r\n")
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        if at < 0:
            return self._buffer.endswith(b"0\r\n\r\n")
        return len(self._buffer) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _request(host: str, path: str, headers: dict[str, str], *, stream: bool) -> bytes:
    body = json.dumps(
        {
            "model": "claude-sonnet-4-6",
            "max_tokens": 1024,
            "stream": stream,
            "messages": [{"role": "user", "content": "Hello, Claude. " * 60}],
        },
        separators=(",", ":"),
    ).encode()
    head = {"host": host, **headers, "content-type": "application/json", "content-length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def _main(url: str, headers: dict[str, str], kind: str, requests: int, connections: int) -> None:
    address = urlsplit(url)
    stream = kind == "sse"
    run = _Run(_request(address.netloc, address.path, headers, stream=stream), requests, stream=stream)
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    ends: list[asyncio.Future[None]] = []
    for _ in range(connections):
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
        "seconds": round(seconds, 3),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[min(len(times) - 1, len(times) * 99 // 100)] * 1000, 2),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    usual = {"x-api-key": sys.argv[2], "anthropic-version": "2023-06-01", "user-agent": "bench"}
    uvloop.run(
        _main(sys.argv[1], {**usual, **json.loads(sys.argv[6])}, sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    )
