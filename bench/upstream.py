"""A fast fake upstream: JSON at once, or SSE of 62 events a fixed gap apart. `python -m bench.upstream PORT [GAP_MS]`."""

import asyncio
import sys
from typing import Final, cast

import uvloop

from libs.common.runtime import spawn

_DELTAS: Final = 57
_MODEL: Final = b'"model":"claude-sonnet-4-6"'
_ANSWER: Final = (
    b'{"id":"msg_01","type":"message","role":"assistant",'
    + _MODEL
    + b',"content":[{"type":"text","text":"'
    + b"Hello there, this is a reply. " * 24
    + b'"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":0,'
    b'"cache_read_input_tokens":0,"output_tokens":150,"service_tier":"standard"}}'
)
_JSON: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_bench\r\ncontent-length: %d\r\n\r\n"
    % len(_ANSWER)
    + _ANSWER
)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nrequest-id: req_bench\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _event(name: bytes, data: bytes) -> bytes:
    frame = b"event: " + name + b'\ndata: {"type":"' + name + b'"' + data + b"}\n\n"
    return b"%x\r\n" % len(frame) + frame + b"\r\n"


_START: Final = _event(
    b"message_start",
    b',"message":{"id":"msg_01","type":"message","role":"assistant",' + _MODEL + b',"content":[],"stop_reason":null,'
    b'"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,'
    b'"output_tokens":1,"service_tier":"standard"}}',
) + _event(b"content_block_start", b',"index":0,"content_block":{"type":"text","text":""}')
_DELTA: Final = _event(b"content_block_delta", b',"index":0,"delta":{"type":"text_delta","text":"Hello there, friend"}')
_END: Final = (
    _event(b"content_block_stop", b',"index":0')
    + _event(b"message_delta", b',"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":150}')
    + _event(b"message_stop", b"")
    + b"0\r\n\r\n"
)


class _Connection(asyncio.Protocol):
    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            if b'"stream":true' in body or b'"stream": true' in body:
                spawn(self._stream(), name="bench-stream")
            else:
                self._transport.write(_JSON)

    async def _stream(self) -> None:
        self._transport.write(_STREAM_HEAD + _START)
        for _ in range(_DELTAS):
            await asyncio.sleep(self._gap_s)
            if self._transport.is_closing():
                return
            self._transport.write(_DELTA)
        self._transport.write(_END)


async def _serve(port: int, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(gap_s), "127.0.0.1", port, backlog=4096)
    print(f"upstream ready {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.02))
