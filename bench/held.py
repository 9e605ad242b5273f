"""Streams that stay open: `python -m bench.held PLAN` (a JSON object: url, path, headers, kind, count, upstream_url).

Prints `open` when each of them has begun, waits until its input ends, has the upstream end them all, and prints one JSON
object: requests, errors and how the last of these began.
"""

import asyncio
import json
import sys
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop

from bench import traffic

_AT_ONCE: Final = 50
"""Opened together, so that no proxy is judged by how it takes a thousand in one moment."""
_GIVE_UP_S: Final = 60
_WRONG_BYTES: Final = 600


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes, *, stream: bool) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._stream = stream
        self.answer = bytearray()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.answer += data
        if not self.begun.done() and (not self._stream or b"message_start" in self.answer):
            self.begun.set_result(None)
        if traffic.is_whole(self.answer, stream=self._stream):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_result(None)


async def _open(url: str, request: bytes, *, stream: bool) -> _Stream:
    address, loop = urlsplit(url), asyncio.get_running_loop()
    _, opened = await loop.create_connection(
        lambda: _Stream(request, stream=stream), address.hostname or "", address.port or 80
    )
    await asyncio.wait_for(opened.begun, _GIVE_UP_S)
    return opened


async def _main(plan: dict[str, Any]) -> None:
    (request,) = traffic.requests(plan["kind"], plan["url"], plan["path"], plan["headers"])
    streams: list[_Stream] = []
    while len(streams) < plan["count"]:
        some = min(_AT_ONCE, plan["count"] - len(streams))
        try:
            streams += await asyncio.gather(*(_open(plan["url"], request, stream=True) for _ in range(some)))
        except TimeoutError:
            sys.exit(f"no more than {len(streams)} have begun after {_GIVE_UP_S} s")
    print("open", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    body = json.dumps({"text": traffic.RELEASE}).encode()
    release = b"POST / HTTP/1.1\r\nhost: upstream\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    await _open(plan["upstream_url"], release, stream=False)
    await asyncio.wait_for(asyncio.gather(*(stream.ended for stream in streams)), _GIVE_UP_S)
    wrong = [stream.answer for stream in streams if not traffic.is_right(stream.answer, stream=True)]
    last = wrong[-1][:_WRONG_BYTES].decode(errors="replace") if wrong else ""
    print(json.dumps({"requests": len(streams), "errors": len(wrong), "wrong": last}), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(json.loads(sys.argv[1])))
