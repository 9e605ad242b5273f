"""What an operator runs by hand, on real stores: rebuild, reconcile, replay, parked, rerate; twice, broken off, with nonsense."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
import pytest

from libs.common import clock, failpoints, ids, pricebook, rediskeys, subjects
from libs.common.events import Member, UsageRecorded, encode_control
from libs.common.failpoints import FailpointReached
from libs.common.gates import Gates
from libs.common.limits import Limits
from libs.localstack.stores import start_nats, start_redis
from services.accounting import parking, rewinder
from services.accounting.__main__ import _parser
from services.accounting.operations import parked, rebuild, reconcile, replay, rerate
from services.accounting.operations.output import Output
from services.accounting.stores import Stores, open_stores
from tests.e2e.store import Store
from tests.gates import open_all
from tests.integration.accounting_rig import Rig, until
from tests.unit.accounting.samples import (
    ONE_TOKEN_NANOS,
    account,
    api_key,
    changed,
    credit,
    recorded,
    request_id_at,
)

pytestmark = pytest.mark.anyio
DAY_MS: Final = 86_400_000
BUDGETS: Final = Limits(budget_day_nanos=10**15, budget_week_nanos=10**15, budget_month_nanos=10**15)
GRANTED: Final = 10**13


class Said(Output):
    """Keeps what a command says."""

    def __init__(self) -> None:
        super().__init__(as_json=False)
        self.lines: list[str] = []
        self.fields: list[dict[str, Any]] = []

    def say(self, text: str, **fields: Any) -> None:
        self.lines.append(text)
        self.fields.append(fields)
        msgspec.json.encode(fields)

    def progress(self, text: str) -> None:
        self.lines.append(text)


class Operator:
    """Runs commands as the command line does."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    async def run(self, command: ModuleType, *words: str) -> tuple[int, Said]:
        said = Said()
        name = command.__name__.rpartition(".")[2]
        code: int = await command.run(_parser().parse_args([name, *words]), self.stores, said)
        return code, said


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


@pytest.fixture
async def operator(rig: Rig) -> AsyncIterator[Operator]:
    async with open_stores(rig.config, name="test", connect_s=10) as stores:
        yield Operator(stores)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation too old to be restored from its log alone."""
    monkeypatch.setattr(rewinder, "REMEMBERED_S", 0)


async def history(rig: Rig, chance: random.Random) -> list[str]:
    """Accounts in odd time zones, with members, keys, budgets and credits, and requests of now, days and weeks ago."""
    accounts, sent = [], []
    for zone in ("Asia/Kathmandu", "America/New_York", "UTC"):
        account_id = ids.new_account_id()
        accounts.append(account_id)
        await rig.change(changed(account(account_id, time_zone=zone, limits=BUDGETS)))
        member = Member(id=ids.new_member_id(), account_id=account_id, name="m", created_at_ms=0, limits=BUDGETS)
        await rig.publish_bytes(*_control("member", member))
        for owner in ("", member.id):
            key = api_key(account_id, member_id=owner, limits=BUDGETS)
            await rig.change(changed(key))
            for _ in range(15):
                age_ms = chance.choice([0, 0, chance.randrange(DAY_MS), 3 * DAY_MS + chance.randrange(30 * DAY_MS)])
                sent.append(_request(account_id, key.id, owner, clock.unix_ms() - age_ms, chance))
            edge_ms = _month_began_ms(zone)
            sent += [_request(account_id, key.id, owner, edge_ms + aside, chance) for aside in (-300_000, 300_000)]
        for _ in range(3):
            await rig.change(changed(credit(account_id, GRANTED // 3)))
    sent += [msgspec.structs.replace(one, version=one.version + 1, usage={"input_tokens": 7}) for one in sent[::7]]
    chance.shuffle(sent)
    for event in sent:
        await rig.publish([event])
    return accounts


def _month_began_ms(zone: str) -> int:
    now = clock.utc_now().astimezone(ZoneInfo(zone))
    return int(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


def of(accounts: list[str]) -> list[str]:
    """Only these: the archive is shared with tests that had a Redis of their own."""
    return [word for account_id in accounts for word in ("--account", account_id)]


def _control(kind: str, entity: Any) -> tuple[str, bytes, str]:
    return subjects.control_subject(kind, entity.id), encode_control(changed(entity)), subjects.STREAM_CONTROL


def _request(account_id: str, key_id: str, member_id: str, time_ms: int, chance: random.Random) -> UsageRecorded:
    return recorded(
        account_id,
        request_id=request_id_at(time_ms),
        usage={"input_tokens": chance.randrange(1, 10**6), "output_tokens": 0},
        key_id=key_id,
        member_id=member_id,
        version=chance.randint(1, 3),
    )


async def age_archive(rig: Rig) -> None:
    """Rows of requests of long ago were archived long ago: the base of a rebuild."""
    await rig.ledger.run(
        "ALTER TABLE usage UPDATE recorded_at = time + INTERVAL 1 SECOND WHERE time < now() - INTERVAL 80 HOUR"
        " SETTINGS mutations_sync = 1"
    )


async def money_of(rig: Rig, accounts: list[str]) -> dict[bytes, dict[bytes, bytes]]:
    """Everything in Redis that money or limits rest on: all accounts, members, keys, credits, and key hashes."""
    found: dict[bytes, dict[bytes, bytes]] = {}
    async for name in rig.redis.scan_iter():
        kind = name.partition(b"}")[2].partition(b":")[0]
        if kind in (b"account", b"member", b"key", b"credits"):
            fields = await rig.redis.hgetall(name)
            found[name] = {key: value for key, value in fields.items() if key not in (b"held", b"buckets")}
        elif name.startswith(b"keyhash:"):
            found[name] = {b"": await rig.redis.get(name)}
    assert len(found) >= 5 * len(accounts)
    return found


async def at_rest(rig: Rig, accounts: list[str]) -> None:
    """Until ledger and balances agree."""

    async def agree() -> bool:
        for account_id in accounts:
            balance, (rows, total) = await rig.balance(account_id), await rig.archived(account_id)
            if balance is None or not rows or balance.spent != total or balance.granted != GRANTED // 3 * 3:
                return False
        info = await rig.jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
        return bool(info.num_pending == info.num_ack_pending == 0)

    await until(agree)


async def lost(rig: Rig) -> list[str]:
    """A history, an old archive, and a Redis that knows nothing any more."""
    async with rig.worker():
        accounts = await history(rig, random.Random(5))
        await at_rest(rig, accounts)
    await age_archive(rig)
    return accounts


@pytest.mark.usefixtures("old")
async def test_a_rebuilt_redis_is_the_one_that_was_lost(rig: Rig, operator: Operator) -> None:
    accounts = await lost(rig)
    before = await money_of(rig, accounts)
    await rig.redis.flushall()
    assert not await Gates(rig.redis).all_open()
    async with rig.worker():  # accounting is at work all the time
        code, said = await operator.run(rebuild)
        assert code == 0, said.lines
        assert await Gates(rig.redis).all_open()
        assert await money_of(rig, accounts) == before
        for account_id in accounts:  # everything comes again, and changes nothing
            state = (await rig.jetstream.stream_info(subjects.STREAM_USAGE)).state
            assert state.messages and account_id
        code, said = await operator.run(replay, "--from", "1h")
        assert code == 0, said.lines
        assert await money_of(rig, accounts) == before
        assert (await operator.run(reconcile, *of(accounts)))[0] == 0
    code, said = await operator.run(rebuild)
    assert code == 0 and "nothing to rebuild" in said.lines[0]
    code, said = await operator.run(rebuild, "--close")
    assert code == 0, said.lines
    assert await money_of(rig, accounts) == before


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("broken_off_at", [1, 3])
async def test_a_rebuild_that_was_broken_off_goes_on(rig: Rig, operator: Operator, broken_off_at: int) -> None:
    accounts = await lost(rig)
    before = await money_of(rig, accounts)
    await rig.redis.flushall()
    with failing("rebuilt_some", broken_off_at), pytest.raises(FailpointReached):
        await operator.run(rebuild)
    assert not await Gates(rig.redis).all_open()
    code, said = await operator.run(rebuild)
    assert code == 0, said.lines
    assert await money_of(rig, accounts) == before


@contextlib.contextmanager
def failing(name: failpoints.Name, number: int) -> Iterator[None]:
    failpoints.arm_all(f"{name}=error@{number}")
    yield
    failpoints.disarm()


@pytest.mark.usefixtures("old")
async def test_an_archive_that_lacks_rows_is_filled_from_the_log(rig: Rig, operator: Operator) -> None:
    async with rig.worker():
        accounts = await history(rig, random.Random(6))
        await at_rest(rig, accounts)
        before = [await rig.archived(one) for one in accounts]
    await rig.ledger.run(f"ALTER TABLE usage DELETE WHERE account_id = '{accounts[0]}' SETTINGS mutations_sync = 1")
    code, said = await operator.run(reconcile, *of(accounts))
    assert code == 1 and any(accounts[0] in line and "spent" in line for line in said.lines)
    code, said = await operator.run(replay, "--from", "1h", "--dry-run")
    assert code == 0 and await rig.archived(accounts[0]) == (0, 0)
    code, said = await operator.run(replay, "--from", "1h")
    assert code == 0, said.lines
    assert [await rig.archived(one) for one in accounts] == before
    assert (await operator.run(reconcile, *of(accounts)))[0] == 0


async def test_what_drifts_is_found_and_repaired_by_an_entry(rig: Rig, operator: Operator) -> None:
    async with rig.worker():
        accounts = await history(rig, random.Random(7))
        await at_rest(rig, accounts)
        assert (await operator.run(reconcile, *of(accounts)))[0] == 0
        key_id = (await rig.ledger.query(f"SELECT any(key_id) FROM usage WHERE account_id = '{accounts[2]}'"))[0][0]
        await rig.redis.hincrby(rediskeys.account(accounts[0]), "balance", -5)
        await rig.redis.hincrby(rediskeys.account(accounts[1]), "spent", 7)
        await rig.redis.hincrby(rediskeys.account(accounts[1]), "held", 11)
        await rig.redis.hincrby(rediskeys.api_key(accounts[2], key_id), "spent", -3)
        code, said = await operator.run(reconcile, *of(accounts))
        found = {
            (one["account_id"], one["owner"], one["number"], one["redis"] - one["expected"]) for one in said.fields[:-1]
        }
        assert code == 1
        assert found == {
            (accounts[0], "", "balance", -5),
            (accounts[1], "", "spent", 7),
            (accounts[1], "", "held", 11),
            (accounts[2], key_id, "spent", -3),
        }
        assert (await operator.run(reconcile, *of(accounts), "--fix"))[0] == 2
        code, said = await operator.run(reconcile, *of(accounts), "--fix", "--actor", "test", "--reason", "planted")
        assert code == 0 and said.fields[-1]["repaired"] == 3, said.lines
        assert (await operator.run(reconcile, *of(accounts)))[0] == 0

        async def archived() -> bool:
            rows = await rig.ledger.query(
                "SELECT count() FROM control FINAL WHERE kind = 'repair' AND reason = 'planted'"
            )
            return int(rows[0][0]) >= 3

        await until(archived)
        assert (await operator.run(reconcile, *of(accounts)))[0] == 0


async def test_a_wrong_price_is_corrected_once_and_the_receipt_knows_both(
    rig: Rig, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pricebook.load
    dearer = msgspec.structs.replace(
        real(), version="dearer", rows={name: _doubled(row) for name, row in real().rows.items()}
    )
    monkeypatch.setattr(
        pricebook, "load", lambda version="2026-11-22": dearer if version == "dearer" else real(version)
    )
    words = ["--from", "1h", "--to", "0s", "--book", "dearer", "--actor", "ann", "--reason", "list was wrong"]
    async with rig.worker():
        account_id = await rig.new_account()
        words += ["--account", account_id]
        for _ in range(30):
            await rig.publish([recorded(account_id, 10)])
        await rig.settled(account_id, 30, 300 * ONE_TOKEN_NANOS)
        code, said = await operator.run(rerate, *words, "--dry-run")
        assert code == 0 and said.fields[-1]["corrected"] == 30
        await rig.settled(account_id, 30, 300 * ONE_TOKEN_NANOS)
        monkeypatch.setattr(rerate, "_EVENTS_PER_MESSAGE", 10)
        with failing("corrected_some", 2), pytest.raises(FailpointReached):
            await operator.run(rerate, *words)
        await asyncio.gather(operator.run(rerate, *words), operator.run(rerate, *words))
        await rig.settled(account_id, 30, 600 * ONE_TOKEN_NANOS)
        code, said = await operator.run(rerate, *words)
        assert code == 0 and said.fields[-1]["corrected"] == 0
        statement = (
            "SELECT DISTINCT version, total_nanos, corrects_version, corrects_total_nanos, correction_reason, correction_actor"
            f" FROM usage FINAL WHERE account_id = '{account_id}'"
        )
        (row,) = await rig.ledger.query(statement)
        assert tuple(row) == (4, 20 * ONE_TOKEN_NANOS, 3, 10 * ONE_TOKEN_NANOS, "list was wrong", "ann")
        assert (await operator.run(reconcile, "--account", account_id))[0] == 0
    code, said = await operator.run(rerate, *words[:4], "--book", "1999", "--actor", "a", "--reason", "b")
    assert code == 2 and "1999" in said.lines[0]


def _doubled(row: Any) -> Any:
    rates = msgspec.structs.replace(row.rates, input=row.rates.input * 2)
    return msgspec.structs.replace(row, rates=rates)


async def test_what_is_parked_can_be_seen_tried_again_and_dropped(
    rig: Rig, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pricebook.load
    monkeypatch.setitem(parking._AGE_S_MIN, "book", parking._AGE_S_MIN["poison"])  # a day, else
    async with rig.worker():
        account_id = await rig.new_account()
        await rig.publish([recorded(account_id, 10, price_book_version="later")])
        await rig.publish_bytes("usage.v1.p00", b"no event", subjects.STREAM_USAGE)
        await rig.change(changed(credit(account_id, 9 * 10**17)))

        async def three_parked() -> bool:
            return bool((await operator.run(parked, "list"))[1].fields[-1]["parked"] == 3)

        await until(three_parked, 120)
        code, said = await operator.run(parked, "list")
        numbers = {one["subject"] + ":" + one["what"]: one["sequence"] for one in said.fields[:-1]}
        assert code == 0 and len(numbers) == 3
        usage = next(number for what, number in numbers.items() if account_id in what)
        unreadable, over = numbers["dlq.usage:"], next(n for what, n in numbers.items() if "dlq.control" in what)
        code, said = await operator.run(parked, "show", str(unreadable))
        assert code == 0 and said.lines == ["no event"]
        who = ["--actor", "ann", "--reason", "why not"]
        assert (await operator.run(parked, "drop", str(unreadable)))[0] == 2
        code, said = await operator.run(parked, "replay", str(unreadable), *who)
        assert code == 1 and "cannot be read" in said.lines[0]
        assert (await operator.run(parked, "drop", str(unreadable), *who))[0] == 0
        code, said = await operator.run(parked, "replay", str(unreadable), *who)
        assert code == 1 and "dropped by ann" in said.lines[0]
        monkeypatch.setattr(pricebook, "load", lambda version="2026-11-22": real())
        assert (await operator.run(parked, "replay", str(usage), *who))[0] == 0
        await rig.settled(account_id, 1, 10 * ONE_TOKEN_NANOS)
        assert (await operator.run(parked, "drop", str(over), *who))[0] == 0
        assert (await operator.run(parked, "list"))[1].fields[-1]["parked"] == 0
        code, said = await operator.run(parked, "replay", "999", *who)
        assert code == 1 and "no such parked message" in said.lines[0]


async def test_an_old_state_is_not_put_over_a_newer_one(rig: Rig, operator: Operator) -> None:
    """A change of an entity is published again only if nothing newer of it is known."""
    account_id = ids.new_account_id()
    first = await rig.change(changed(account(account_id, name="old")))
    await rig.change(changed(account(account_id, name="new")))
    headers = {"Relay-Reason": "test", "Relay-Sequence": str(first)}
    payload = encode_control(changed(account(account_id, name="old")))
    ack = await rig.jetstream.publish(subjects.DLQ_CONTROL, payload, headers=headers)
    code, said = await operator.run(parked, "replay", str(ack.seq), "--actor", "a", "--reason", "b")
    assert code == 1 and "does not take it" in said.lines[0]
