"""Opening connections, as far as it shows without a proxy or TLS (those: tests/integration/test_transport_tls.py)."""

import asyncio

import httpx2
import pytest

from services.gateway.dial import Dialer
from tests.unit.gateway.upstreams import OK, Wire, serving, transport

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("url", ["socks5://proxy:1080", "http://", "proxy:8080"])
def test_a_proxy_that_cannot_be_used_is_refused_at_start(url: str) -> None:
    with pytest.raises(ValueError, match="the proxy to the upstream must be given as http://host:port or https://"):
        Dialer(proxy_url=url, ssl_context=None, timeout_s=1)


async def test_a_request_is_sent_when_there_is_a_connection_and_not_before() -> None:
    answered = asyncio.Event()
    told: list[str] = []

    async def slow(wire: Wire) -> None:
        while True:
            asked = await wire.request()
            assert told[-1] == asked.line.decode().split("/")[1].split(" ")[0]
            await answered.wait()
            wire.send(OK)

    async def get(name: str) -> int:
        request = httpx2.Request("GET", f"{server.url}/{name}", extensions={"sent": lambda: told.append(name)})
        response = await via.handle_async_request(request)
        await response.aread()
        await response.aclose()
        return response.status_code

    async with serving(slow) as server, transport(pool_connections_max=1) as via:
        first = asyncio.get_running_loop().create_task(get("first"))
        while not told:
            await asyncio.sleep(0)
        second = asyncio.get_running_loop().create_task(get("second"))
        for _ in range(100):
            await asyncio.sleep(0)
        assert told == ["first"]
        answered.set()
        assert [await first, await second] == [200, 200]
        assert told == ["first", "second"]


async def test_a_connection_that_is_refused_was_never_sent() -> None:
    told: list[int] = []
    request = httpx2.Request("GET", "http://127.0.0.1:1/", extensions={"sent": lambda: told.append(1)})
    async with transport() as via:
        with pytest.raises(httpx2.ConnectError):
            await via.handle_async_request(request)
    assert told == []
