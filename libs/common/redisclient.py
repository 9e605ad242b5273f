"""How every service connects to Redis: short time-outs, no retries of its own, so that a refusal comes within 300 ms."""

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CONNECT_S: Final = 0.25
REPLY_S: Final = 0.25
CONNECTIONS_MAX: Final = 64


def connect(url: str) -> Redis:
    """A client with a pool; it connects when first used. Replies are bytes."""
    return Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=REPLY_S,
        retry=Retry(NoBackoff(), 1),  # one: a pooled connection may have been closed while it was idle
        max_connections=CONNECTIONS_MAX,
        decode_responses=False,
    )


async def answers(redis: Redis) -> bool:
    """Whether Redis answers a ping now."""
    try:
        return bool(await redis.ping())
    except (RedisError, OSError, TimeoutError):
        return False
