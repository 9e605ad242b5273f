"""The fake upstream answers as the words in a body ask, and the open loop counts from when a request was due."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench import arrivals, traffic, upstream

pytestmark = pytest.mark.anyio
GAP_S = 0.002
STALL_S = 0.4


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[str]:
    server = await asyncio.get_running_loop().create_server(lambda: upstream.Connection(GAP_S), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.sleep(0.05)  # what callers have closed is closed here too


async def ask(url: str, request: bytes, *, stream: bool, pieces: int = 1) -> bytearray:
    """A whole answer, to a request that comes in so many pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    answer, size = bytearray(), -(-len(request) // pieces)
    for at in range(0, len(request), size):
        writer.write(request[at : at + size])
        await writer.drain()
        await asyncio.sleep(0)
    while not traffic.is_whole(answer, stream=stream):
        answer += await reader.read(65536)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("kind", ["sse", "burst", "mix", "stamped"])
async def test_a_stream_has_its_events_and_its_end(kind: traffic.Kind) -> None:
    async with serving() as url:
        request = traffic.requests(kind, url, "/v1/messages", {})[0]
        answer = await ask(url, request, stream=True, pieces=3)
    assert traffic.is_right(answer, stream=True)
    assert answer.count(b"\nevent: ") == traffic.EVENTS
    assert len(re.findall(rb'"t=[0-9.]{17}"', answer)) == (traffic.EVENTS - 5 if kind == "stamped" else 0)


async def test_what_was_read_from_a_cache_is_said() -> None:
    async with serving() as url:
        requests = traffic.requests("mix", url, "/", {})
        answers = await asyncio.gather(*(ask(url, request, stream=True) for request in requests))
        for request, answer in zip(requests, answers, strict=True):
            is_cached = b'"cache_read_input_tokens":%d' % traffic.CACHE_READ_TOKENS in answer
            assert is_cached is (traffic.CACHED.encode() in request)


async def test_a_large_body_is_taken_in_pieces() -> None:
    async with serving() as url:
        (request,) = traffic.requests("body", url, "/", {})
        assert traffic.is_right(await ask(url, request, stream=False, pieces=50), stream=False)


async def test_streams_are_held_until_they_are_released() -> None:
    async with serving() as url:
        (request,) = traffic.requests("held", url, "/", {})
        held = [asyncio.ensure_future(ask(url, request, stream=True)) for _ in range(3)]
        done, _ = await asyncio.wait(held, timeout=20 * GAP_S)
        assert not done
        body = traffic.RELEASE.encode()
        await ask(url, b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body, stream=False)
        for answer in await asyncio.gather(*held):
            assert traffic.is_right(answer, stream=True)


def plan(url: str, kind: traffic.Kind, **fields: Any) -> dict[str, Any]:
    base = {"url": url, "path": "/", "headers": {}, "kind": kind, "rate": 200, "seconds": 1, "seed": 1}
    return base | {"connections": 8} | fields


async def test_requests_that_wait_for_others_are_counted_as_slow() -> None:
    """Server and generator stand still together: what was due meanwhile was late, and no start of a clock hides it."""
    async with serving() as url:
        load = arrivals.Load(plan(url, "json"))
        asyncio.get_running_loop().call_later(0.5, time.sleep, STALL_S)
        await load.run()
    assert (load.answered, load.errors) == (200, 0)
    assert len([first for first in load.first_s if first > STALL_S / 2]) >= 200 * STALL_S / 2 * 0.7


async def test_more_connections_are_opened_when_all_are_busy() -> None:
    async with serving() as url:
        load = arrivals.Load(plan(url, "stamped", rate=100, connections=1))
        await load.run()
    assert (load.answered, load.errors) == (100, 0)
    assert len(load.gap_s) == 100 * (traffic.EVENTS - 6)


async def test_a_connection_that_breaks_is_an_error() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        load = arrivals.Load(plan(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "json", connections=0))
        await load.run()
        await asyncio.sleep(0.2)
    assert load.errors == 1
