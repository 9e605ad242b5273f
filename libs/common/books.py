"""Price books published while the relay runs: kept in Redis under their version, once, and known to this process for ever.

A book is known before it counts: who publishes it says from which time on, and everybody looks often enough to have it by then.
"""

import logging
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from libs.common import pricebook, rediskeys
from libs.common.events import PublishedBook
from libs.common.pricebook import PriceBook, Timeline
from libs.common.scripts import Scripts

_log: Final = logging.getLogger("relay.books")
_TIME_MS_MAX: Final = 4_102_444_800_000  # 2100-01-01: what is beyond is no time that a gateway could tell of

PutResult = Literal["APPLIED", "DUPLICATE", "TAKEN", "UNSOUND"]


class Found(msgspec.Struct, frozen=True):
    """A published book this process has just heard of."""

    effective_at_ms: int
    id: str
    book: PriceBook


class Books:
    """All books known here: the shipped one from the beginning of time, the published ones from theirs.

    Other shipped files are found by their version only.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._timeline = Timeline(pricebook.load())
        self._seen: set[str] = set()
        """Versions read from Redis, the refused ones included: what stands there does not change."""

    def at(self, time_ms: int) -> PriceBook:
        """The book that counts at a Unix time. No I/O."""
        return self._timeline.at(time_ms)

    def find(self, version: str) -> PriceBook | None:
        """A book by its version, whether it counts or not. No I/O."""
        return pricebook.load(version) if pricebook.is_known(version) else None

    async def put(self, published: PublishedBook) -> PutResult:
        """Keep a book in Redis. Only APPLIED changes anything. Raises StoreUnavailable.

        TAKEN: another book stands under its version, or under its version another time. UNSOUND: it cannot be read.
        """
        version, text = published.version, published.text
        try:
            book = _sound(published)
        except (ValueError, RecursionError) as error:
            _log.error("published price book %s is not sound: %s", published.id, error)
            return "UNSOUND"
        result: PutResult = "TAKEN"
        if self.find(version) in (None, book):
            entry = f"{published.effective_at_ms} {published.id} {text}"
            reply = await self._scripts.call("book_put", 1, rediskeys.price_books(), version, entry)
            result = reply.decode()
        if result == "TAKEN":
            _log.error("published price book %s is not taken: another stands under version %s", published.id, version)
        return result

    async def refresh(self) -> list[Found]:
        """Read what Redis has and this process has not; those that are new here. Raises StoreUnavailable."""
        reply = await self._scripts.call("book_read", 1, rediskeys.price_books(), *sorted(self._seen))
        found = [self._take(version.decode(), entry) for version, entry in zip(reply[::2], reply[1::2], strict=True)]
        return [one for one in found if one is not None]

    async def learn(self, versions: Iterable[str]) -> None:
        """Read from Redis if one of these is not known. What Redis does not know either stays so. Raises StoreUnavailable."""
        if not all(map(pricebook.is_known, set(versions))):
            await self.refresh()

    def _take(self, version: str, entry: bytes) -> Found | None:
        self._seen.add(version)
        try:
            effective_at_ms, book_id, text = entry.decode().split(" ", 2)
            found = Found(_sound_time(int(effective_at_ms)), book_id, pricebook.register(version, text))
        except (ValueError, RecursionError) as error:
            _log.error("price book %s in Redis is not taken: %s", version, error)
            return None
        self._timeline.add(found.effective_at_ms, found.id, found.book)
        return found


def _sound(published: PublishedBook) -> PriceBook:
    _sound_time(published.effective_at_ms)
    return pricebook.read_published(published.version, published.text)


def _sound_time(effective_at_ms: int) -> int:
    if not 0 <= effective_at_ms < _TIME_MS_MAX:
        raise ValueError(f"it cannot take effect at {effective_at_ms} ms")
    return effective_at_ms
