"""How every service connects to Redis: two short tries, so that a refusal comes within 300 ms.

Two, because a time-out is not always Redis's: a process that was itself stopped for longer than its limit finds every reply late.
And because a pooled connection may have been closed while it was idle.
"""

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TRIES: Final = 2
TRY_S: Final = 0.13
TRY_S_UNHURRIED: Final = 5.0
"""For who keeps no caller waiting: on a machine that is short of CPU, late is better than never."""
CONNECTIONS_MAX: Final = 64


def connect(url: str, *, try_seconds: float = TRY_S) -> Redis:
    """A client with a pool; it connects when first used. Replies are bytes.

    `try_seconds` bounds connecting, and then each reply, of each of the two tries.
    """
    return Redis.from_url(
        url,
        socket_connect_timeout=try_seconds,
        socket_timeout=try_seconds,
        retry=Retry(NoBackoff(), TRIES - 1),
        max_connections=CONNECTIONS_MAX,
        decode_responses=False,
    )


async def answers(redis: Redis) -> bool:
    """Whether Redis answers a ping now."""
    try:
        return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError):
        return False
