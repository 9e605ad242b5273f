"""A fast fake upstream: JSON at once, or SSE of 62 events. `python -m bench.upstream PORT GAP_MS [CERTIFICATE.pem]`.

Words in a request's body (bench/traffic.py) choose an answer's form: its events a fixed gap apart, or without gaps in bursts,
with the time of their sending in them, or held open until a release is asked for. With a certificate it speaks TLS.
"""

import asyncio
import ssl
import sys
import time
from typing import Final, cast

import uvloop

from bench.traffic import BURST, CACHE_READ_TOKENS, CACHED, EVENTS, HELD, MODEL, RELEASE, STAMPED, content_length

_DELTAS: Final = EVENTS - 5
_BURST_EVENTS: Final = 8
_BURST, _CACHED, _HELD, _RELEASE, _STAMPED = (word.encode() for word in (BURST, CACHED, HELD, RELEASE, STAMPED))


def _usage(output_tokens: int, *, cache_read: int = 0) -> bytes:
    return (
        b'"usage":{"input_tokens":25,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,'
        b'"output_tokens":%d,"service_tier":"standard"}' % (cache_read, output_tokens)
    )


_MESSAGE: Final = b'{"id":"msg_01","type":"message","role":"assistant","model":"%b","content":' % MODEL.encode()
_ANSWER: Final = (
    _MESSAGE
    + b'[{"type":"text","text":"'
    + b"Hello there, this is a reply. " * 24
    + b'"}],"stop_reason":"end_turn","stop_sequence":null,'
    + _usage(150)
    + b"}"
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


def _start(cache_read: int) -> bytes:
    message = _MESSAGE + b'[],"stop_reason":null,"stop_sequence":null,' + _usage(1, cache_read=cache_read) + b"}"
    return (
        _STREAM_HEAD
        + _event(b"message_start", b',"message":' + message)
        + _event(b"content_block_start", b',"index":0,"content_block":{"type":"text","text":""}')
    )


def _delta(text: bytes) -> bytes:
    return _event(b"content_block_delta", b',"index":0,"delta":{"type":"text_delta","text":"%b"}' % text)


_START: Final = _start(0)
_START_CACHED: Final = _start(CACHE_READ_TOKENS)
_DELTA: Final = _delta(b"Hello there, friend")
_END: Final = (
    _event(b"content_block_stop", b',"index":0')
    + _event(b"message_delta", b',"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":150}')
    + _event(b"message_stop", b"")
    + b"0\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One caller."""

    held: Final[set["Connection"]] = set()

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._request = bytearray()
        self._missing = 0
        """Bytes of the request that are known to be still to come."""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self.held.discard(self)

    def data_received(self, data: bytes) -> None:
        self._request += data
        self._missing -= len(data)
        while self._missing <= 0 and (end := self._request.find(b"\r\n\r\n")) >= 0:
            whole = end + 4 + (content_length(self._request[:end]) or 0)
            self._missing = whole - len(self._request)
            if self._missing > 0:
                return
            body = bytes(self._request[end + 4 : whole])
            del self._request[:whole]
            self._missing = 0
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body and b'"stream": true' not in body:
            if _RELEASE in body:
                self._release()
            self._transport.write(_JSON)
            return
        start = _START_CACHED if _CACHED in body else _START
        if _BURST in body:
            self._burst(_DELTAS)
            return
        self._transport.write(start)
        if _HELD in body:
            self._transport.write(_DELTA)
            self.held.add(self)
        else:
            self._next(_DELTAS, self._loop.time(), stamped=_STAMPED in body)

    def _next(self, left: int, due: float, *, stamped: bool) -> None:
        """One event at its time, counted from the first."""
        due += self._gap_s
        self._loop.call_at(due, self._send, left, due, stamped)

    def _send(self, left: int, due: float, stamped: bool) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_delta(b"t=%017.6f" % time.perf_counter()) if stamped else _DELTA)
        if left > 1:
            self._next(left - 1, due, stamped=stamped)
        else:
            self._transport.write(_END)

    def _burst(self, left: int) -> None:
        """As many events as a write takes, and the next ones in the next turn of the loop."""
        if left == _DELTAS:
            self._transport.write(_START)
        now = min(left, _BURST_EVENTS)
        self._transport.write(_DELTA * now if left > now else _DELTA * now + _END)
        if left > now:
            self._loop.call_soon(self._burst, left - now)

    def _release(self) -> None:
        for connection in list(self.held):
            self.held.discard(connection)
            connection._transport.write(_END)


async def _serve(port: int, gap_s: float, certificate: str | None) -> None:
    loop = asyncio.get_running_loop()
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    server = await loop.create_server(lambda: Connection(gap_s), "127.0.0.1", port, backlog=4096, ssl=context)
    print(f"upstream ready {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 1000, sys.argv[3] if len(sys.argv) > 3 else None))
