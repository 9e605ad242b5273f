"""Compares every account in Redis with the archive and the log, and says what drifts. `--fix` brings it back, by an entry each.

What accounting still has in hand differs for a moment: such an account is looked at again, and what the log explains is no drift.
"""

import argparse
import asyncio
from collections import defaultdict
from typing import Final

import msgspec
from nats.js.errors import NotFoundError

from libs.common import clock, events, ids, subjects
from libs.common.events import ControlChanged, Repair, UsageRecorded
from services.accounting import log
from services.accounting.operations import audit
from services.accounting.operations.audit import Finding
from services.accounting.operations.output import Output
from services.accounting.settlement import price_batch
from services.accounting.stores import Stores

HELP: Final = "compare every balance in Redis with the archive and the log"
_TRIES: Final = 5
_PAUSE_S: Final = 1.0
_ACK_S: Final = 5.0
_ACCOUNTS: Final = """
SELECT DISTINCT entity_id FROM control WHERE kind = 'account' UNION DISTINCT SELECT DISTINCT account_id FROM usage ORDER BY 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("--account", action="append", metavar="ID", help="only these")
    parser.add_argument("--fix", action="store_true", help="publish a repair entry for each number that drifts")
    parser.add_argument("--actor", default="", help="who repairs")
    parser.add_argument("--reason", default="", help="why")


async def run(arguments: argparse.Namespace, stores: Stores, out: Output) -> int:
    """0 without drift, or with all of it repaired; 1 with drift; 2 for --fix without actor and reason."""
    if arguments.fix and not (arguments.actor and arguments.reason):
        out.say("--fix needs --actor and --reason: both stand in the audit log for ever", error="arguments")
        return 2
    accounts = arguments.account or [row[0] for row in await stores.ledger.query(_ACCOUNTS)]
    drift = await _drifting(stores, accounts, out)
    for finding in drift:
        out.say(str(finding), **msgspec.to_builtins(finding))
    repaired = 0
    if drift and arguments.fix:
        repaired = await _fix(stores, drift, arguments.actor, arguments.reason)
        drift = await _drifting(stores, sorted({one.account_id for one in drift}), out)
        for finding in drift:
            out.say(f"still: {finding}", **msgspec.to_builtins(finding))
    text = f"{len(accounts)} accounts, {len(drift)} numbers drift, {repaired} entries of repair"
    out.say(text, accounts=len(accounts), drift=len(drift), repaired=repaired)
    return int(bool(drift))


async def _drifting(stores: Stores, accounts: list[str], out: Output) -> list[Finding]:
    """What still differs when accounting has had time to finish, and no event on its way explains it."""
    found: list[Finding] = []
    for number in range(_TRIES):
        found = [one for account_id in accounts for one in await audit.look(stores, account_id)]
        accounts = sorted({one.account_id for one in found})
        if not found:
            return []
        if number < _TRIES - 1:
            await asyncio.sleep(_PAUSE_S)
    on_their_way = await _on_their_way(stores, set(accounts))
    moving = {account_id for account_id in accounts if on_their_way[account_id]}
    for account_id in sorted(moving):
        text = f"{account_id}: {on_their_way[account_id]} events are still on their way; no drift is told before they are settled"
        out.say(text, account_id=account_id, events_on_their_way=on_their_way[account_id])
    return [one for one in found if one.account_id not in moving]


async def _on_their_way(stores: Stores, accounts: set[str]) -> dict[str, int]:
    """Events that accounting has not acknowledged, by account."""
    count: dict[str, int] = defaultdict(int)
    info = await stores.jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
    if not info.num_pending and not info.num_ack_pending:
        return count
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    since = log.BEGINNING
    if floor:
        try:
            since = (await stores.jetstream.get_msg(subjects.STREAM_USAGE, floor)).time or since
        except NotFoundError:
            since = log.BEGINNING
    async for messages in log.read(stores.jetstream, subjects.STREAM_USAGE, subjects.USAGE_EVENTS, since):
        for message in messages:
            if message.metadata.sequence.stream > floor:
                for event in await _settleable(stores, message.data):
                    if event.account_id in accounts:
                        count[event.account_id] += 1
    return count


async def _settleable(stores: Stores, payload: bytes) -> list[UsageRecorded]:
    """What has no price, or cannot be read, is on its way to nowhere but the parked events."""
    try:
        found = events.decode_usage(payload)
        await stores.books.learn(event.price_book_version for event in found)
        entries, _ = price_batch(found)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return [entry.event for entry in entries]


async def _fix(stores: Stores, drift: list[Finding], actor: str, reason: str) -> int:
    """One entry for each owner; how many."""
    by_owner: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for one in drift:
        if one.number != "account":  # what Redis does not know at all is for `rebuild`
            by_owner[one.account_id, one.owner][one.number] = one.expected - one.redis
    for (account_id, owner), changes in by_owner.items():
        repair = Repair(
            id=ids.new_repair_id(),
            account_id=account_id,
            key_id="" if owner.startswith("memb_") else owner,
            member_id=owner if owner.startswith("memb_") else "",
            balance_nanos=changes.get("balance", 0),
            granted_nanos=changes.get("granted", 0),
            spent_nanos=changes.get("spent", 0),
            held_nanos=changes.get("held", 0),
            reason=reason,
            created_at_ms=clock.unix_ms(),
        )
        await _publish(stores, ControlChanged(entity=repair, actor=actor, reason=reason, at_ms=clock.unix_ms()))
    return len(by_owner)


async def _publish(stores: Stores, change: ControlChanged) -> None:
    """Acknowledged, it is true; then it is applied here, and once more, without effect, by accounting."""
    subject = subjects.control_subject("repair", change.entity.id)
    headers = {"Nats-Msg-Id": change.entity.id, "Nats-Expected-Last-Subject-Sequence": "0"}
    payload = events.encode_control(change)
    ack = await stores.jetstream.publish(
        subject, payload, timeout=_ACK_S, stream=subjects.STREAM_CONTROL, headers=headers
    )
    await stores.directory.apply(change, ack.seq)
