"""The server around the connections: how it is set up, and whom the sweep looks at."""

import asyncio

import pytest

from services.gateway.cycle import BodyBudget
from services.gateway.edge import RelayServer, make_server
from services.gateway.framing import ServerLimits
from tests.unit.gateway.connections import Connections, settle, waits
from tests.unit.gateway.test_connection import GET

pytestmark = pytest.mark.anyio


def made(**limits: float) -> RelayServer:
    return make_server(
        waits,
        host="127.0.0.1",
        port=0,
        limits=ServerLimits(**limits),  # type: ignore[arg-type]
        body_budget=BodyBudget(1),
        shutdown_seconds=7,
    )


def test_uvicorn_adds_nothing_and_trusts_nobody() -> None:
    config = made().config
    config.load()
    assert not config.proxy_headers and not config.access_log and not config.encoded_headers
    assert config.ws_protocol_class is None
    assert config.timeout_graceful_shutdown is not None and config.timeout_graceful_shutdown > 7


@pytest.mark.parametrize(("limits", "seconds"), [({}, 1.0), ({"head_seconds": 0.2}, 0.05)])
def test_the_sweep_is_as_fine_as_the_shortest_limit(limits: dict[str, float], seconds: float) -> None:
    assert made(**limits)._sweep_seconds == pytest.approx(seconds)


async def test_whom_the_sweep_looks_at() -> None:
    """Those whose time is up, and those whose leaving nobody would notice; not the others."""
    server = made(head_seconds=0.2)
    connections = Connections(waits, ServerLimits(head_seconds=0.2, keep_alive_seconds=50))
    made_so = [connections.new() for _ in range(5)]
    late, idle, waiting, left, unread = made_so
    server.server_state.connections = connections.state.connections
    late[0].data_received(b"GET /")
    for protocol, _ in (waiting, left, unread):
        protocol.data_received(GET)
    await settle()
    left[0].eof_received()
    left[1].get_extra_info("socket").error = 104
    unread[0].data_received(GET * 5_000)
    unread[1].get_extra_info("socket").error = 104
    server._sweep()
    assert (left[1].aborted, unread[1].aborted, late[1].output) == (True, True, b"")
    async with asyncio.timeout(5):
        while not late[1].output:  # the sweep repeats itself
            await asyncio.sleep(0.01)
    assert late[1].output.startswith(b"HTTP/1.1 408 ")
    assert not idle[1].closed and not waiting[1].closed
    assert server._timer is not None
    server._timer.cancel()
    for _, transport in made_so:
        transport.abort()
    await settle()
    assert not connections.state.connections and not connections.state.tasks
