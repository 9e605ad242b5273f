"""Sessions of people who have signed in: in Redis alone, so they may be lost, and then people sign in again."""

import hashlib
import secrets
from typing import Final

import msgspec
from redis.exceptions import RedisError

from libs.common import clock, rediskeys
from libs.common.redisclient import RedisClient
from services.admin.problems import TooMany, Unavailable

PREFIX: Final = "rss_"
SECONDS: Final = 12 * 3600
_AWAY: Final = "Sessions cannot be looked up right now. Try again."
_WINDOW_S: Final = 900


class Session(msgspec.Struct, frozen=True):
    """Who, and since when."""

    owner_id: str
    began_at_ms: int
    address: str
    password: str = ""
    """Names the password it began with: with another one it is over, whatever the clocks say."""


class Sessions:
    """See the module's docstring."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def begin(self, owner_id: str, address: str, password_hash: str) -> tuple[str, Session]:
        """A session's token, kept nowhere, and the session. Raises Unavailable."""
        token = PREFIX + secrets.token_urlsafe(32)
        session = Session(owner_id, clock.unix_ms(), address, password_name(password_hash))
        try:
            await self._redis.set(rediskeys.session(sha256(token)), msgspec.json.encode(session), ex=SECONDS)
        except (RedisError, OSError):
            raise Unavailable(_AWAY) from None
        return token, session

    async def find(self, token_sha256: str) -> Session | None:
        """A session that has not ended. Raises Unavailable."""
        try:
            value = await self._redis.get(rediskeys.session(token_sha256))
        except (RedisError, OSError):
            raise Unavailable(_AWAY) from None
        return msgspec.json.decode(value, type=Session) if value else None

    async def end(self, token_sha256: str) -> None:
        """Sign out. Raises Unavailable."""
        try:
            await self._redis.delete(rediskeys.session(token_sha256))
        except (RedisError, OSError):
            raise Unavailable(_AWAY) from None

    async def count_try(self, what: str, who: str, tries_max: int) -> None:
        """Count a try of what can be guessed. Raises TooMany beyond `tries_max` in a quarter of an hour, Unavailable."""
        key = rediskeys.tries(what, hashlib.sha256(who.encode()).hexdigest()[:32])
        try:
            tries = int(await self._redis.incr(key))
            if tries == 1:
                await self._redis.expire(key, _WINDOW_S)
            left_s = int(await self._redis.ttl(key)) if tries > tries_max else 0
            if left_s == -1:  # died between the two
                await self._redis.expire(key, _WINDOW_S)
        except (RedisError, OSError):
            raise Unavailable(_AWAY) from None
        if tries > tries_max:
            raise TooMany("Too many tries. Wait, then try again.", **{"retry-after": str(max(left_s, 1))})

    async def forget_tries(self, what: str, who: str) -> None:
        """It was the right one. Raises Unavailable."""
        try:
            await self._redis.delete(rediskeys.tries(what, hashlib.sha256(who.encode()).hexdigest()[:32]))
        except (RedisError, OSError):
            raise Unavailable(_AWAY) from None


def password_name(password_hash: str) -> str:
    """What a session keeps of the password it began with: nothing to guess it by; of none, nothing."""
    return sha256(password_hash) if password_hash else ""


def sha256(token: str) -> str:
    """What is kept of a token: 64 hex digits. Enough for 256 random bits."""
    return hashlib.sha256(token.encode()).hexdigest()
