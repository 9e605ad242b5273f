"""A fake upstream that answers as the request's body says: `python -m bench.scaling.upstream PORT`.

`events=E gap_ms=G` in a body with `"stream":true`: a stream of E events, G milliseconds apart. `events=E held`: the first two of
them, and the rest when somebody asks for `GET /release`. Without `"stream":true`: one JSON answer, at once.
"""

import asyncio
import re
import sys
from typing import Final, cast

import uvloop

from libs.common.runtime import spawn

EDGE_EVENTS: Final = 5
"""Of a stream, besides its deltas: message_start, content_block_start; content_block_stop, message_delta, message_stop."""
_WISH: Final = re.compile(rb"events=(\d+) (?:gap_ms=(\d+)|held)")
_MODEL: Final = b'"model":"claude-sonnet-4-6"'
_USAGE: Final = (
    b'"usage":{"input_tokens":25,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":%d,'
    b'"service_tier":"standard"}'
)
_HEAD: Final = b"HTTP/1.1 200 OK\r\nrequest-id: req_bench\r\n"


def _event(name: bytes, data: bytes = b"") -> bytes:
    frame = b"event: " + name + b'\ndata: {"type":"' + name + b'"' + data + b"}\n\n"
    return b"%x\r\n" % len(frame) + frame + b"\r\n"


def _json() -> bytes:
    text = b"Hello there, this is a reply. " * 24
    answer = (
        b'{"id":"msg_01","type":"message","role":"assistant",' + _MODEL + b',"content":[{"type":"text","text":"' + text
        + b'"}],"stop_reason":"end_turn","stop_sequence":null,' + _USAGE % 150 + b"}"
    )  # fmt: skip
    return _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer


_JSON: Final = _json()
_START: Final = (
    _HEAD
    + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    + _event(
        b"message_start",
        b',"message":{"id":"msg_01","type":"message","role":"assistant",' + _MODEL + b',"content":[],'
        b'"stop_reason":null,"stop_sequence":null,' + _USAGE % 1 + b"}",
    )
    + _event(b"content_block_start", b',"index":0,"content_block":{"type":"text","text":""}')
)
_DELTA: Final = _event(b"content_block_delta", b',"index":0,"delta":{"type":"text_delta","text":"Hello there, friend"}')
_END: Final = (
    _event(b"content_block_stop", b',"index":0')
    + _event(b"message_delta", b',"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":150}')
    + _event(b"message_stop")
    + b"0\r\n\r\n"
)


class _Connection(asyncio.Protocol):
    def __init__(self, released: asyncio.Event) -> None:
        self._released = released
        self._buffer = bytearray()
        self._missing = 0
        """Bytes of the request that are known to be still on their way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._missing -= len(data)
        if self._missing > 0:
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self._missing = end + 4 + length - len(self._buffer)
        if self._missing > 0:
            return
        body = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get /release"):
            self._released.set()  # wakes those who wait now
            self._released.clear()
        wish = _WISH.search(body) if b'"stream":true' in body else None
        if wish is None:
            self._transport.write(_JSON)
            return
        gap_ms = wish.group(2)
        gap_s = None if gap_ms is None else int(gap_ms) / 1000
        spawn(self._stream(int(wish.group(1)) - EDGE_EVENTS, gap_s), name="bench-stream")

    async def _stream(self, deltas: int, gap_s: float | None) -> None:
        self._transport.write(_START)
        if gap_s is None:
            await self._released.wait()
        for _ in range(deltas):
            if gap_s is not None:
                await asyncio.sleep(gap_s)
            if self._transport.is_closing():
                return
            self._transport.write(_DELTA)
        self._transport.write(_END)


async def _serve(port: int) -> None:
    released = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(released), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
