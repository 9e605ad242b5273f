"""Published price books in accounting, on real stores: events are priced by them, and a lost Redis has them back."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from libs.common import clock, pricebook, rediskeys, subjects
from libs.common.events import PublishedBook, UsageRecorded
from libs.common.gates import Gates
from libs.localstack.stores import start_nats, start_redis
from services.accounting import rewinder
from services.accounting.__main__ import _parser
from services.accounting.operations import parked, rebuild, reconcile, replay, rerate
from services.accounting.stores import open_stores
from tests.books import new_version, published
from tests.e2e.store import Store
from tests.gates import open_all
from tests.integration.accounting_rig import Rig, until
from tests.integration.test_operations import Said
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, changed, recorded

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_redis, tmp_path / "redis")
    yield store
    store.close()


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[Store]:
    store = Store(start_nats, tmp_path / "nats")
    yield store
    store.close()


@pytest.fixture
async def rig(own_redis: Store, own_nats: Store, clickhouse_url: str) -> AsyncIterator[Rig]:
    redis_url = f"redis://127.0.0.1:{own_redis.port}/0"
    async with Rig.over(f"nats://127.0.0.1:{own_nats.port}", redis_url, clickhouse_url) as made:
        await open_all(Gates(made.redis))
        yield made


async def operate(rig: Rig, command: ModuleType, *words: str) -> tuple[int, Said]:
    """A command in stores of its own, as an operator's process has them."""
    said, name = Said(), command.__name__.rpartition(".")[2]
    async with open_stores(rig.config, name="test", connect_s=10) as stores:
        code: int = await command.run(_parser().parse_args([name, *words]), stores, said)
    return code, said


def forget(book: PublishedBook) -> None:
    """As another process, which has never heard of it."""
    pricebook._published.pop(book.version, None)


async def books(rig: Rig) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await rig.redis.hgetall(rediskeys.price_books())
    return found


async def test_events_are_priced_by_the_book_they_name_as_soon_as_it_is_there(rig: Rig) -> None:
    """The event may come first: CONTROL and USAGE are two streams."""
    book = published(new_version(), clock.unix_ms())
    async with rig.worker():
        account_id = await rig.new_account()
        await rig.publish([recorded(account_id, 5, price_book_version=book.version), recorded(account_id, 1)])
        await rig.settled(account_id, 1, ONE_TOKEN_NANOS)
        await rig.change(changed(book))
        await rig.settled(account_id, 2, 11 * ONE_TOKEN_NANOS)
    statement = f"SELECT kind, account_id, entity FROM control FINAL WHERE entity_id = '{book.id}'"
    ((kind, concerned, entity),) = await rig.ledger.query(statement)
    assert (kind, concerned, json.loads(entity)["text"]) == ("pricebook", "", book.text)


async def test_of_two_books_under_one_version_the_second_is_parked(rig: Rig) -> None:
    first = published(new_version(), clock.unix_ms())
    second = published(first.version, clock.unix_ms(), times=3)
    async with rig.worker():
        await rig.change(changed(first))
        await rig.change(changed(second))

        async def told() -> bool:
            return bool(await rig.parked())

        await until(told)
    ((subject, payload, reason),) = await rig.parked()
    assert subject == subjects.DLQ_CONTROL and second.id in payload.decode() and "under a new one" in reason
    assert list(await books(rig)) == [first.version.encode()]
    assert first.id in (await books(rig))[first.version.encode()].decode()
    code, said = await operate(rig, parked, "list")
    assert code == 0 and second.id in said.lines[0]


async def test_a_lost_redis_has_its_books_back(rig: Rig, own_redis: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is priced anew by it, and what comes later is priced as it was admitted."""
    monkeypatch.setattr(rewinder, "REMEMBERED_S", 0)
    wrong = published(new_version(), clock.unix_ms())
    sent = [published(new_version(), clock.unix_ms() + 3_600_000 * n) for n in (0, 1)]
    async with rig.worker():
        account_id = await rig.new_account()
        for one in (*sent, wrong, published(wrong.version, 0, times=3)):
            await rig.change(changed(one))
        await rig.publish([recorded(account_id, 5, price_book_version=sent[0].version)])
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)

        async def applied() -> bool:
            return len(await books(rig)) == 3

        await until(applied)
        before = await books(rig)
    await rig.redis.flushall()
    for one in (*sent, wrong):
        forget(one)
    code, said = await operate(rig, rebuild)
    assert code == 0, said.lines
    assert await books(rig) == before
    async with rig.worker():
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)
        await rig.publish([recorded(account_id, 1, price_book_version=sent[1].version)])
        await rig.settled(account_id, 2, 12 * ONE_TOKEN_NANOS)


async def test_a_young_installation_has_them_back_by_itself(rig: Rig) -> None:
    book = published(new_version(), clock.unix_ms())
    async with rig.worker():
        account_id = await rig.new_account()
        await rig.change(changed(book))
        await rig.publish([recorded(account_id, 5, price_book_version=book.version)])
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)
        before = await books(rig)
    forget(book)
    await rig.redis.flushall()
    async with rig.worker():

        async def restored() -> bool:
            return await Gates(rig.redis).all_open()

        await until(restored)
        assert await books(rig) == before
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)


async def test_operators_commands_know_what_was_published(rig: Rig) -> None:
    book = published(new_version(), clock.unix_ms() - 1)
    async with rig.worker():
        account_id = await rig.new_account()
        await rig.change(changed(book))
        await rig.publish([recorded(account_id, 5)])
        await rig.settled(account_id, 1, 5 * ONE_TOKEN_NANOS)

        async def applied() -> bool:
            return bool(await books(rig))

        await until(applied)
        words = ["--from", "1h", "--to", "0s", "--account", account_id, "--actor", "a", "--reason", "r"]
        for chosen in (["--book", book.version], []):  # the one that counts now is the same
            forget(book)
            code, said = await operate(rig, rerate, *words, *chosen, "--dry-run")
            assert (code, said.fields[-1]["corrected"]) == (0, 1), said.lines
            assert book.version in said.lines[-1]
        forget(book)
        assert (await operate(rig, rerate, *words))[0] == 0
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)
    await _unsettled_are_known_too(rig, account_id, book)


async def _unsettled_are_known_too(rig: Rig, account_id: str, book: PublishedBook) -> None:
    """What is on its way is no drift, and can be replayed, also if it is priced by a book this process has not heard of."""
    event: UsageRecorded = recorded(account_id, 1, price_book_version=book.version)
    await rig.publish([event])
    forget(book)
    replayed: Any = await operate(rig, replay, "--from", "1h", "--account", account_id)
    assert replayed[0] == 0, replayed[1].lines
    await rig.settled(account_id, 2, 12 * ONE_TOKEN_NANOS)
    await rig.publish([recorded(account_id, 2, price_book_version=book.version)])
    await rig.redis.hincrby(rediskeys.account(account_id), "spent", 1)  # a drift, if nothing else explained it
    forget(book)
    code, said = await operate(rig, reconcile, "--account", account_id)
    assert code == 0 and "on their way" in said.lines[0], said.lines
