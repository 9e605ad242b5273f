"""Lines to a real Redis: replies in order, each call its own error, and no reply ever reaches another exchange."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as Late

from libs.common import redisclient
from libs.common.redislines import Lines
from libs.localstack.process import free_port
from libs.localstack.stores import start_redis
from tests.e2e.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_redis, tmp_path)
    yield store
    store.close()


async def test_replies_come_in_order_and_an_error_is_one_calls_own(server: Store) -> None:
    url = f"redis://127.0.0.1:{server.port}/0"
    client: Any = redisclient.connect(url, try_seconds=redisclient.TRY_S_UNHURRIED)
    lines = Lines(client)
    replies = await lines.exchange([("SET", "a", "1"), ("LPUSH", "a", "x"), ("GET", "a"), ("NO SUCH",)])
    assert (replies[0], replies[2]) == (b"OK", b"1")
    assert isinstance(replies[1], ResponseError) and isinstance(replies[3], ResponseError)
    many = await asyncio.gather(*(lines.exchange([("ECHO", str(number))]) for number in range(50)))
    assert [one for (one,) in many] == [str(number).encode() for number in range(50)]
    await client.aclose()


async def test_a_server_that_was_restarted_is_asked_again(server: Store) -> None:
    client: Any = redisclient.connect(f"redis://127.0.0.1:{server.port}/0")
    lines = Lines(client)
    await asyncio.gather(*(lines.exchange([("PING",)]) for _ in range(5)))
    server.kill()
    with pytest.raises((Lost, Late, OSError)):
        await lines.exchange([("PING",)])
    server.give_back()
    assert await lines.exchange([("PING",)]) == [b"PONG"]
    await client.aclose()


@pytest.mark.alone
async def test_a_frozen_server_is_given_up_after_two_tries(server: Store) -> None:
    client: Any = redisclient.connect(f"redis://127.0.0.1:{server.port}/0")
    lines = Lines(client)
    await lines.exchange([("PING",)])
    server.freeze()
    started = time.monotonic()
    with pytest.raises(Late):
        await lines.exchange([("PING",)])
    assert 0.2 < time.monotonic() - started < 0.6
    server.give_back()
    assert await lines.exchange([("ECHO", "mine")]) == [b"mine"]
    await client.aclose()


async def test_who_gives_up_leaves_no_reply_for_the_next(server: Store) -> None:
    client: Any = redisclient.connect(f"redis://127.0.0.1:{server.port}/0")
    lines = Lines(client)
    await lines.exchange([("PING",)])
    for number in range(30):
        task = asyncio.ensure_future(lines.exchange([("ECHO", f"given up {number}")]))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await lines.exchange([("ECHO", f"mine {number}")]) == [f"mine {number}".encode()]
    await client.aclose()


async def test_nobody_there() -> None:
    client: Any = redisclient.connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises((Lost, OSError)):
        await Lines(client).exchange([("PING",)])
    await client.aclose()
