"""Opens Redis for tests that run no accounting worker: what accounting does in a new installation."""

import asyncio

from libs.common import redisclient
from libs.common.gates import Gates


def open_gates(redis_url: str) -> None:
    """All partitions of the server, or the servers, as they run now."""
    asyncio.run(_open(redis_url))


async def _open(redis_url: str) -> None:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    try:
        await open_all(Gates(redis))
    finally:
        await redis.aclose()


async def open_all(gates: Gates) -> None:
    """From where a loop runs already."""
    for number, state in enumerate(await gates.states()):
        assert await gates.open(number, state.run_id, opened_for=state.opened_for)
