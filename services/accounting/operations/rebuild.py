"""Restores a Redis that has lost its data, partition by partition, from the log and the archive; verifies; then opens.

1. **Wipe** what is left of the partition. From its marker on, a run that was broken off goes on instead of beginning anew.
2. **Apply** all of CONTROL, which is kept for ever: accounts, members, keys, limits, upstream credentials, price books,
   credits.
3. **Debit the base**: what was archived more than three days ago, summed up by key, member and quarter of an hour, so that the
   budgets of running days, weeks and months come out right in any time zone; older than any such period, by day. Each sum is
   settled like an event, under an id made of what it sums up: once, however often this runs.
4. **Settle** what was archived since, event by event, as accounting would: it may do so at the same time.
5. **Verify** every account against the archive: granted, spent, and what each key and member has spent.
6. **Open** the gate, if Redis is still the one it was.
"""

import argparse
import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from nats.aio.msg import Msg

from libs.common import clock, events, failpoints, ids, rediskeys, subjects
from libs.common.balances import Settlement
from libs.common.events import Account, ControlChanged, Credit, PublishedBook, Repair, UpstreamCredential
from libs.common.scripts import StoreRefused, StoreUnavailable
from services.accounting import log
from services.accounting.operations import audit
from services.accounting.operations.output import Output
from services.accounting.rewinder import without_effect
from services.accounting.rows import account_of
from services.accounting.settlement import REMEMBERED_S
from services.accounting.stores import Stores

HELP: Final = "restore a Redis that has lost its data, from the log and the archive"
_WHO: Final = secrets.token_hex(8)
_CLAIM_MS: Final = 60_000
_BASE_VERSION: Final = 3
_PAGE: Final = 2_000
_BUDGETS_REACH: Final = timedelta(days=35)
_TRIES: Final = 20
_PAUSE_S: Final = 0.5
_UNLINKED_AT_ONCE: Final = 500

_BASE: Final = """
SELECT key_id, member_id, slot, sum(toInt128(total)) FROM (
  SELECT argMax(key_id, version) AS key_id, argMax(member_id, version) AS member_id, argMax(total_nanos, version) AS total,
    if(any(time) >= {near:DateTime64(3)}, toStartOfInterval(any(time), INTERVAL 15 MINUTE), toStartOfDay(any(time))) AS slot
  FROM usage WHERE account_id = {account:String} AND recorded_at < {horizon:DateTime64(3)} GROUP BY request_id
) GROUP BY key_id, member_id, slot ORDER BY slot, key_id, member_id
"""
_RECENT: Final = """
SELECT request_id, version, total_nanos, key_id, member_id, time FROM usage FINAL
WHERE account_id = {account:String} AND recorded_at >= {horizon:DateTime64(3)}
  AND (time, request_id) > ({after:DateTime64(3)}, {after_id:String})
ORDER BY time, request_id LIMIT {limit:UInt32}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("--partition", type=int, action="append", choices=range(ids.PARTITIONS), metavar="0..63")
    parser.add_argument(
        "--close", action="store_true", help="close open partitions first: admission stops, and they are rebuilt too"
    )


async def run(arguments: argparse.Namespace, stores: Stores, out: Output) -> int:
    """0 if every partition asked for is open at the end."""
    states = await stores.gates.states()
    wanted = arguments.partition or range(ids.PARTITIONS)
    lost = {number: states[number].run_id for number in wanted if arguments.close or not states[number].opened_for}
    if not lost:
        out.say("nothing to rebuild: every partition has a gate (--close rebuilds those too)", partitions=0)
        return 0
    try:
        if not await _claim(stores, lost):
            text = "accounting, or another rebuild, is restoring some of these partitions: wait, then look again"
            out.say(text, opened=0)
            return 1
        if arguments.close:
            await asyncio.gather(*(stores.gates.close(number) for number in lost))
        return await _rebuild(stores, lost, out)
    finally:
        with contextlib.suppress(StoreUnavailable):
            await _claim(stores, lost, for_ms=0)


async def _claim(stores: Stores, lost: Iterable[int], *, for_ms: int = _CLAIM_MS) -> bool:
    """Keep accounting from restoring them at the same time: it would settle what is being wiped."""
    mine = await asyncio.gather(*(stores.gates.claim(number, _WHO, for_ms=for_ms) for number in lost))
    return all(mine)


async def _rebuild(stores: Stores, lost: dict[int, str], out: Output) -> int:
    horizons = await _prepare(stores, lost)
    accounts = await _apply_control(stores, set(lost))
    out.progress(f"{len(accounts)} accounts in {len(lost)} partitions")
    started, rows, wrong = time.monotonic(), 0, []
    for number, account_id in enumerate(sorted(accounts), 1):
        rows += await _restore(stores, account_id, horizons[ids.partition(account_id)])
        wrong += await _verified(stores, account_id)
        await _claim(stores, lost)
        if number % 100 == 0 or number == len(accounts):
            rate = rows / max(time.monotonic() - started, 0.001)
            out.progress(f"{number} of {len(accounts)} accounts, {rows} rows, {rate:.0f} rows/s")
    for finding in wrong:
        out.say(str(finding), **msgspec.to_builtins(finding))
    if wrong:
        out.say("not opened: Redis is not what the archive says; see above, and run it again", opened=0)
        return 1
    return await _open(stores, lost, len(accounts), rows, out)


async def _open(stores: Stores, lost: dict[int, str], accounts: int, rows: int, out: Output) -> int:
    opened = 0
    for number, run_id in lost.items():
        await stores.redis.delete(rediskeys.rebuilding(number))
        state = await stores.gates.state(number)
        opened += state.is_open or await stores.gates.open(number, run_id, opened_for=state.opened_for)
    text = f"{accounts} accounts and {rows} rows restored and verified; {opened} of {len(lost)} partitions are open"
    out.say(text, accounts=accounts, rows=rows, opened=opened, partitions=len(lost))
    if opened < len(lost):
        out.say("Redis was restarted meanwhile: run it again", opened=opened)
    return int(opened < len(lost))


async def _prepare(stores: Stores, lost: Iterable[int]) -> dict[int, datetime]:
    """Where what is archived becomes the base, by partition: fixed when its restoring began. What was there is gone then."""
    begun = {number: await stores.redis.get(rediskeys.rebuilding(number)) for number in lost}
    new = {number for number, marker in begun.items() if marker is None}
    if new:
        await _wipe(stores, new, "account:")  # first, so that nobody can settle anything on an old balance meanwhile
        await _wipe(stores, new, "")
    horizon_ms = clock.unix_ms() - REMEMBERED_S * 1000
    for number in new:
        await stores.redis.set(rediskeys.rebuilding(number), str(horizon_ms))
    return {number: clock.from_unix_ms(int(begun[number] or horizon_ms)) for number in begun}


async def _wipe(stores: Stores, partitions: set[int], what: str) -> None:
    tags = {f"{{p{number:02d}}}".encode(): number for number in partitions}
    names: dict[int, list[bytes]] = {number: [] for number in partitions}
    async for name in stores.redis.scan_iter(match=f"{{p[0-9][0-9]}}{what}*", count=1_000):
        if (number := tags.get(name[:5])) is not None and not name.endswith(b"}claim"):
            names[number].append(name)
    for found in names.values():
        for start in range(0, len(found), _UNLINKED_AT_ONCE):
            await stores.redis.unlink(*found[start : start + _UNLINKED_AT_ONCE])


async def _apply_control(stores: Stores, partitions: set[int]) -> set[str]:
    """All of it that concerns these partitions; the accounts that were found."""
    accounts: set[str] = set()
    async for messages in log.read(stores.jetstream, subjects.STREAM_CONTROL, "control.>", log.BEGINNING):
        found = [(one, change) for one in messages if (change := _change(one)) is not None]
        concerned = [(one, change) for one, change in found if _concerns(change, partitions)]
        accounts |= {change.entity.id for _, change in concerned if isinstance(change.entity, Account)}
        books = [(one, change) for one, change in concerned if isinstance(change.entity, PublishedBook)]
        for one, change in books:  # in the log's order: of two under one version the first counts
            await _apply(stores, one, change)
        concerned = [(one, change) for one, change in concerned if not isinstance(change.entity, PublishedBook)]
        applied = await asyncio.gather(*(_apply(stores, one, change) for one, change in concerned))
        for (one, change), result in zip(concerned, applied, strict=True):
            if result == "MISSING":  # its account came in the same batch
                await _apply(stores, one, change)
    return accounts


def _change(message: Msg) -> ControlChanged | None:
    try:
        return events.decode_control(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # it is parked


def _concerns(change: ControlChanged, partitions: set[int]) -> bool:
    entity = change.entity
    return isinstance(entity, PublishedBook | UpstreamCredential) or ids.partition(account_of(change)) in partitions


async def _apply(stores: Stores, message: Msg, change: ControlChanged) -> str:
    if isinstance(change.entity, Repair):
        change = msgspec.structs.replace(change, entity=without_effect(change.entity))
    try:
        result = await stores.directory.apply(change, message.metadata.sequence.stream)
        if result == "OVER" and isinstance(change.entity, Credit) and await stores.ledger.has_credit(change.entity):
            return await stores.balances.take_again(change.entity)  # it was not too much when it came
    except StoreRefused:
        return "REFUSED"  # it was parked when it came
    return result


async def _restore(stores: Stores, account_id: str, horizon: datetime) -> int:
    """Base, then what came since; how many rows and sums were settled."""
    parameters = {"account": account_id, "horizon": horizon, "near": horizon - _BUDGETS_REACH}
    base = [_sum(account_id, *row) for row in await stores.ledger.query(_BASE, parameters)]
    for start in range(0, len(base), _PAGE):
        await _settle(stores, base[start : start + _PAGE])
    count, after, after_id = len(base), log.BEGINNING, ""
    while True:
        place = {"after": after, "after_id": after_id, "limit": _PAGE}
        rows = await stores.ledger.query(_RECENT, parameters | place)
        page = [Settlement(account_id, row[0], row[1], row[2], row[3], row[4]) for row in rows]
        await _remember_base(stores, page, horizon)
        await _settle(stores, page)
        failpoints.reach("rebuilt_some")
        count += len(page)
        if len(rows) < _PAGE:
            return count
        after_id, after = rows[-1][0], rows[-1][5]


def _sum(account_id: str, key_id: str, member_id: str, slot: datetime, total_nanos: int) -> Settlement:
    """A sum as an event of the beginning of its time: the same rows make the same id."""
    time_ms = int(slot.replace(tzinfo=clock.utc_now().tzinfo).timestamp() * 1000)
    name = hashlib.sha256(f"{account_id} {key_id} {member_id} {time_ms}".encode()).hexdigest()[:20]
    return Settlement(account_id, f"req_{time_ms:012x}{name}", _BASE_VERSION, int(total_nanos), key_id, member_id)


async def _remember_base(stores: Stores, page: Sequence[Settlement], horizon: datetime) -> None:
    """Of a request older than the horizon an earlier version may be in the base: only the difference is to be debited."""
    horizon_ms = int(horizon.timestamp() * 1000)
    old = [one for one in page if ids.id_time_ms(one.request_id) < horizon_ms]
    if not old:
        return
    before = await stores.ledger.settled_before(old, horizon_ms)
    for one in old:
        if (found := before.get(one.request_id)) is not None:
            version, cost_nanos = found
            noted = msgspec.structs.replace(one, version=version, cost_nanos=cost_nanos)
            await stores.balances.remember(noted)


async def _settle(stores: Stores, settlements: Sequence[Settlement]) -> None:
    for result in await stores.balances.settle_all(settlements):
        if isinstance(result, StoreRefused):
            raise result


async def _verified(stores: Stores, account_id: str) -> list[audit.Finding]:
    """What is not as the archive says. Accounting may be at work, so that both change: looked at again for a while."""
    findings: list[audit.Finding] = []
    for _ in range(_TRIES):
        findings = [one for one in await audit.look(stores, account_id) if one.number != "held"]
        if not findings:
            break
        await asyncio.sleep(_PAUSE_S)
    return findings
