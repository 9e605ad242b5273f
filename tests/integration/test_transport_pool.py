"""The pool of the transport: its limits, who waits, who leaves, and what is left behind. On both event loops."""

import asyncio
import gc
import random
from typing import Any

import httpx2
import pytest

from services.gateway.transport import TransportConfig, UpstreamTransport
from tests.unit.gateway.upstreams import ENDLESS, OK, Wire, answering, ask, echo, fetch, read, serving, transport, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The services run uvloop; its transports differ from asyncio's where it hurts."""
    return "asyncio", {"use_uvloop": request.param}


async def test_different_origins_do_not_share() -> None:
    async with serving(echo) as one, serving(echo) as two, transport() as via:
        assert await fetch(via, one.url, b"1") == b"1"
        assert await fetch(via, two.url, b"2") == b"2"
        assert via.stats.idle == 2
    assert one.bodies == [b"1"]
    assert two.bodies == [b"2"]


async def test_idle_connections_are_limited_in_number() -> None:
    async with serving(echo) as server, transport(pool_idle_connections_max=1) as via:
        responses = [await ask(via, server.url, b"x") for _ in range(3)]
        for response in responses:
            assert await read(response) == b"x"
        assert via.stats.open == via.stats.idle == 1


async def test_idle_connections_are_limited_in_time_and_the_timer_ends_with_them() -> None:
    async with serving(echo) as server, transport(pool_idle_s=0.04) as via:
        assert via._sweeper is None
        await fetch(via, server.url)
        assert via._sweeper is not None
        await until(lambda: via.stats.open == 0)
        await server.tasks[0]
        await until(lambda: via._sweeper is None)
        await fetch(via, server.url)
        assert len(server.wires) == 2


async def test_an_idle_connection_that_the_upstream_closes_frees_its_place_at_once() -> None:
    async with serving(answering(OK, close=True)) as server, transport(pool_idle_s=60) as via:
        await fetch(via, server.url)
        await until(lambda: via.stats.open == 0)
        assert await fetch(via, server.url) == b"ok"


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_leaving_while_the_head_is_awaited() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        await wire.left()

    async with serving(handler) as server, transport() as via:
        tasks = len(asyncio.all_tasks())
        asking = asyncio.get_running_loop().create_task(ask(via, server.url, b"x"))
        await until(lambda: bool(server.bodies))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert via.stats.open == 0
        await server.tasks[0]
        assert len(asyncio.all_tasks()) == tasks


async def test_leaving_inside_a_body() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(ENDLESS)
        wire.chunk(b"a")
        await wire.left()

    async with serving(handler) as server, transport() as via:
        response = await ask(via, server.url)
        reading = asyncio.get_running_loop().create_task(read(response))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert via.stats.open == 0
        await server.tasks[0]


async def test_a_request_leaves_no_cycle_behind() -> None:
    """Garbage that only the collector finds costs every request."""
    async with serving(echo) as server, transport() as via:
        await fetch(via, server.url, b"x")
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                response = await ask(via, server.url, b"x")
                await read(response)
                del response
            left = sum(type(one).__name__ == "Answer" for one in gc.get_objects())
        finally:
            gc.enable()
    assert left == 0


async def test_closing_while_active() -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        if wire.number == 0:
            wire.send(ENDLESS)
        await wire.left()

    async with serving(handler) as server:
        via = UpstreamTransport(TransportConfig(pool_connections_max=2))
        loop = asyncio.get_running_loop()
        streaming = await ask(via, server.url)
        reading = loop.create_task(read(streaming))
        asking = loop.create_task(ask(via, server.url, b"x"))
        await until(lambda: len(server.bodies) == 2)
        waiting = loop.create_task(ask(via, server.url))
        await until(lambda: bool(via._waiters))
        await via.aclose()
        results = await asyncio.gather(reading, asking, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [httpx2.ReadError, httpx2.ReadError, httpx2.ConnectError]
        assert via.stats.open == 0
        with pytest.raises(httpx2.ConnectError):
            await ask(via, server.url)
        await asyncio.gather(*server.tasks)


# -- at the limit ------------------------------------------------------------------------------------------------------


async def test_who_waits_gets_the_connection_that_becomes_free_in_the_order_of_coming() -> None:
    async with serving(echo) as server, transport(pool_connections_max=1) as via:
        first = await ask(via, server.url, b"first")
        done: list[bytes] = []

        async def wait(body: bytes) -> None:
            done.append(await fetch(via, server.url, body))

        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(wait(b"%d" % number)) for number in range(5)]
        await until(lambda: len(via._waiters) == 5)
        await read(first)
        late = loop.create_task(wait(b"late"))  # comes when one is being handed over
        await asyncio.gather(*waiting, late)
    assert done == [b"0", b"1", b"2", b"3", b"4", b"late"]
    assert len(server.wires) == 1


@pytest.mark.parametrize("clean", [True, False])
async def test_what_was_given_to_one_who_leaves_goes_to_the_next(clean: bool) -> None:
    async with serving(echo) as server, transport(pool_connections_max=1) as via:
        first = await ask(via, server.url, b"x" * 1_000_000)
        loop = asyncio.get_running_loop()
        leaving, staying = (loop.create_task(fetch(via, server.url, b"%d" % number)) for number in range(2))
        await until(lambda: len(via._waiters) == 2)
        if clean:
            async for _ in first.stream:  # type: ignore[union-attr]
                pass
        await first.aclose()  # gives it to `leaving`
        leaving.cancel()
        assert await staying == b"1"
        assert leaving.cancelled()
        assert via.stats.open == via.stats.idle == 1


async def test_waiting_for_a_place_has_a_time_limit() -> None:
    async with serving(echo) as server, transport(pool_connections_max=1, connect_timeout_s=0.05) as via:
        first = await ask(via, server.url, b"x")
        with pytest.raises(httpx2.PoolTimeout):
            await ask(via, server.url)
        assert not via._waiters
        await read(first)
        assert via.stats.open == via.stats.idle == 1
        assert await fetch(via, server.url, b"y") == b"y"


async def test_at_the_limit_an_idle_connection_to_elsewhere_goes() -> None:
    async with serving(echo) as one, serving(echo) as two, transport(pool_connections_max=1) as via:
        await fetch(via, one.url)
        assert await fetch(via, two.url, b"2") == b"2"
        assert via.stats.open == 1
        first = await ask(via, two.url, b"3")
        waiting = asyncio.get_running_loop().create_task(fetch(via, one.url, b"4"))
        await until(lambda: bool(via._waiters))
        await read(first)
        assert await waiting == b"4"
        assert via.stats.open == 1


async def test_the_limit_holds_and_nobody_is_forgotten_in_a_crowd() -> None:
    """Requests that end well, break, or are cancelled at any moment, at a limit of three."""
    chance = random.Random(7)
    most = 0

    async def handler(wire: Wire) -> None:
        nonlocal most
        while True:
            await wire.request()
            await asyncio.sleep(chance.random() * 0.002)
            if chance.random() < 0.2:
                wire.reset()
                return
            wire.send(OK)

    async def one() -> None:
        nonlocal most
        await asyncio.sleep(chance.random() * 0.05)
        try:
            async with asyncio.timeout(chance.choice([chance.random() * 0.02, 4])):
                await fetch(via, server.url, b"x")
        except (httpx2.TransportError, TimeoutError):
            pass
        finally:
            most = max(most, via.stats.open)

    async with serving(handler) as server, transport(pool_connections_max=3) as via:
        await asyncio.gather(*(one() for _ in range(300)))
        assert most == 3
        assert not via._waiters
        assert not via._active
        assert via.stats.open == via.stats.idle <= 3
