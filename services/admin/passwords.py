"""Passwords: argon2id, in a thread and few at a time, and never faster for an address nobody has."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY

from services.admin.problems import Unavailable

_AT_ONCE: Final = 2
"""Each takes 64 MiB and some 30 ms of a core."""
_WAITING_MAX: Final = 64


class Passwords:
    """Hashes and compares."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._nobodys: str | None = None

    async def hash(self, password: str) -> str:
        """With a salt of its own and its parameters. Raises Unavailable when too many wait."""
        async with self._turn():
            return await asyncio.to_thread(self._hasher.hash, password)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= _WAITING_MAX:
            raise Unavailable("Too many people sign in at this moment. Try again.")
        self._waiting += 1
        try:
            async with self._slots:
                yield
        finally:
            self._waiting -= 1

    async def is_right(self, password: str, password_hash: str) -> bool:
        """An empty hash is nobody's: comparing takes as long, and it is never right. Raises Unavailable when too many wait."""
        if not password_hash:
            if self._nobodys is None:
                self._nobodys = await self.hash(secrets.token_urlsafe())
            await self._verify(self._nobodys, password)
            return False
        return await self._verify(password_hash, password)

    async def _verify(self, password_hash: str, password: str) -> bool:
        async with self._turn():
            try:
                return await asyncio.to_thread(self._hasher.verify, password_hash, password)
            except (VerificationError, InvalidHashError):
                return False
