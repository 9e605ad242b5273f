"""Published price books on a real Redis: written once, never changed, read by who does not know them; the fake learns alike."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pytest

from libs.common import ids, pricebook, redisclient, rediskeys
from libs.common.balances import Balances
from libs.common.books import Books
from libs.common.directory import Directory
from libs.common.events import ControlChanged, PublishedBook
from libs.common.scripts import Scripts, StoreRefused, StoreUnavailable
from libs.common.upstreams import Upstreams
from tests.books import document, new_version, published
from tests.contract.fakes import MemoryBooks

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
FAR_MS: Final = 4_102_444_700_000  # a day before the last that is taken
"""The Redis is shared: no other test is to go by these prices."""


@dataclass
class Rig:
    redis: Any
    books: Books
    directory: Directory

    async def apply(self, book: PublishedBook) -> str:
        """As it comes from CONTROL."""
        return await self.directory.apply(ControlChanged(entity=book, actor="t", reason="t", at_ms=1), 1)

    async def kept(self, version: str) -> bytes | None:
        """What stands in Redis."""
        value: bytes | None = await self.redis.hget(rediskeys.price_books(), version)
        return value

    def another_process(self) -> Books:
        """Which has heard of nothing yet; what is loaded by version is shared with it here."""
        return Books(Scripts(self.redis))


@pytest.fixture
async def rig(anyio_backend: str, redis_url: str) -> AsyncIterator[Rig]:
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    scripts = Scripts(redis)
    yield Rig(redis, Books(scripts), Directory(redis, Balances(redis, scripts), Upstreams(redis, scripts), scripts))
    await redis.aclose()


async def test_a_book_is_written_once_and_never_changed(rig: Rig) -> None:
    book = published(new_version(), FAR_MS)
    assert await rig.apply(book) == "APPLIED"
    entry = await rig.kept(book.version)
    assert entry == f"{FAR_MS} {book.id} {book.text}".encode()
    assert await rig.apply(book) == "DUPLICATE"
    assert await rig.apply(msgspec.structs.replace(book, note="said better")) == "DUPLICATE"
    for other in (
        msgspec.structs.replace(book, effective_at_ms=FAR_MS + 1),
        msgspec.structs.replace(book, id=ids.new_book_id()),
        msgspec.structs.replace(book, text=document(book.version, times=3)),
        msgspec.structs.replace(book, text=book.text + " "),
    ):
        assert await rig.apply(other) == "TAKEN"
        assert await rig.kept(book.version) == entry


async def test_of_many_at_once_one_is_taken(rig: Rig) -> None:
    version = new_version()
    results = await asyncio.gather(*(rig.apply(published(version, FAR_MS, times=n)) for n in range(1, 9)))
    assert sorted(results) == ["APPLIED", *["TAKEN"] * 7]


async def test_what_is_published_is_found_by_its_time_and_its_version(rig: Rig) -> None:
    at_ms = FAR_MS - secrets.randbelow(10**12) - 2
    before = rig.books.at(at_ms - 1)
    first, second = (published(new_version(), at_ms, id=f"book_{n:032x}", times=n) for n in (2, 3))
    for one in (second, first):
        assert await rig.apply(one) == "APPLIED"
    assert rig.books.find(first.version) is None
    new = {one.book.version: one for one in await rig.books.refresh()}
    assert new[first.version].effective_at_ms == at_ms and new[first.version].id == first.id
    assert await rig.books.refresh() == []
    assert rig.books.at(at_ms - 1) is before
    assert rig.books.at(at_ms).version == second.version  # of two with one time the one that was published later
    found = rig.books.find(first.version)
    assert found is not None and found == pricebook.parse(first.text.encode()) == pricebook.load(first.version)
    other = rig.another_process()
    assert other.at(at_ms).version == pricebook.CURRENT_VERSION
    await other.refresh()
    assert other.at(at_ms).version == second.version


async def test_a_shipped_version_is_taken_unless_it_is_that_very_book(rig: Rig) -> None:
    assert await rig.apply(published(pricebook.CURRENT_VERSION, FAR_MS)) == "TAKEN"
    assert await rig.kept(pricebook.CURRENT_VERSION) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "{}"},
        {"text": ""},
        {"text": "[" * 100_000},
        {"version": "other"},
        {"version": "a b"},
        {"effective_at_ms": -1},
        {"effective_at_ms": 4_102_444_800_000},
    ],
    ids=lambda changes: str(changes)[:30],
)
async def test_what_is_not_sound_is_not_written(rig: Rig, changes: dict[str, Any]) -> None:
    book = msgspec.structs.replace(published(new_version(), FAR_MS), **changes)
    assert await rig.apply(book) == "UNSOUND"
    assert await rig.kept(book.version) is None


async def test_what_is_known_is_not_replaced_by_what_redis_says(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A Redis that was written by hand, or lost and filled anew."""
    version, nonsense, name = new_version(), new_version(), rediskeys.price_books()
    known = pricebook.register(version, document(version))
    await rig.redis.hset(name, version, f"{FAR_MS} book_1 {document(version, times=3)}")
    await rig.redis.hset(name, nonsense, "nonsense")
    try:
        with caplog.at_level(logging.ERROR):
            await rig.books.refresh()
        assert version in caplog.text and nonsense in caplog.text
        assert pricebook.load(version) is known and rig.books.at(FAR_MS).version != version
        assert not pricebook.is_known(nonsense)
        caplog.clear()
        await rig.books.refresh()  # told once
        assert not caplog.text
    finally:
        await rig.redis.hdel(name, version, nonsense)


async def test_the_script_refuses_an_entry_without_a_time(rig: Rig) -> None:
    scripts = Scripts(rig.redis)
    for entry in ("", "soon book_1 {}", "5 {}", "-5 book_1 {}"):
        with pytest.raises(StoreRefused):
            await scripts.call("book_put", 1, rediskeys.price_books(), new_version(), entry)


async def test_real_and_told_learn_alike(rig: Rig) -> None:
    mine, theirs = new_version(), new_version()
    told = MemoryBooks(**{theirs: document(theirs)})
    await rig.apply(published(mine, FAR_MS))
    for books, version in ((rig.books, mine), (told, theirs)):
        await books.learn([pricebook.CURRENT_VERSION])
        assert not pricebook.is_known(version)
        await books.learn(["nobody's", pricebook.CURRENT_VERSION])
        assert pricebook.is_known(version) and not pricebook.is_known("nobody's")
        await books.learn([version, version])


async def test_without_redis_what_is_known_is_learned_all_the_same() -> None:
    redis = redisclient.connect("redis://127.0.0.1:1/0")
    books = Books(Scripts(redis))
    await books.learn([pricebook.CURRENT_VERSION])
    with pytest.raises(StoreUnavailable):
        await books.learn([new_version()])
    await redis.aclose()
