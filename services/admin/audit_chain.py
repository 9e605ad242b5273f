"""Verifies the audit log: the log of changes itself, entity by entity, and the archive against it.

Each change names the SHA-256 of its entity's change before, and CONTROL numbers all of them from 1 on without a gap. So a change
that was altered or left out shows: in the archive, whose rows are compared with the log, in the next one's `previous`, or as a
number that is missing. One that was put in shows if its entity was there before; an entity that is new as a whole does not.
The head is a hash over all of it: whoever keeps one can prove later that nothing before it was touched.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from libs.common import clock, events, subjects
from libs.common.events import Account, ControlChanged, Entity
from services.admin.ledger import Ledger, Row

_BATCH: Final = 500
_FETCH_S: Final = 5.0
_FORGOTTEN_S: Final = 60.0
_ARCHIVED: Final = """
SELECT sequence, sha256, kind, entity_id, account_id, entity, actor, reason, time, address, previous FROM control FINAL
WHERE sequence BETWEEN {first:UInt64} AND {last:UInt64}
"""
_NEWEST: Final = "SELECT max(sequence) AS newest FROM control FINAL"
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_entity: Final = msgspec.json.Decoder(Entity)


class Verdict(msgspec.Struct):
    """What was found."""

    changes: int = 0
    head: str = hashlib.sha256(b"").hexdigest()
    """Over all changes, in order."""
    last_sequence: int = 0
    unchained: int = 0
    """Changes of before there was a chain."""
    is_chained: bool = False
    """Whether a change has named one before it: from then on all do."""
    expected_found: bool = False
    """Whether the head that was expected stands at some point of the log."""
    faults: list[str] = []


async def verify(
    jetstream: JetStreamContext, ledger: Ledger, *, expected: str = "", progress: Callable[[int], None] = lambda _: None
) -> Verdict:
    """Read all of CONTROL, and what the archive has of it. Raises errors of NATS, Unavailable."""
    verdict = Verdict()
    last_of: dict[str, str] = {}
    async for messages in _all(jetstream):
        read = {}
        for message in messages:
            sequence, digest = message.metadata.sequence.stream, events.payload_sha256(message.data)
            change = _check(verdict, message, sequence, digest, last_of)
            last_of[message.subject] = digest
            read[sequence] = digest, change
            verdict.head = hashlib.sha256(f"{verdict.head} {sequence} {digest}".encode()).hexdigest()
            verdict.expected_found = verdict.expected_found or verdict.head == expected
            verdict.changes += 1
            verdict.last_sequence = sequence
        await _compare(verdict, ledger, read)
        progress(verdict.changes)
    await _compare_ends(verdict, jetstream, ledger)
    return verdict


def _check(
    verdict: Verdict, message: Msg, sequence: int, digest: str, last_of: dict[str, str]
) -> ControlChanged | None:
    if sequence != verdict.last_sequence + 1:
        verdict.faults.append(f"changes {verdict.last_sequence + 1} to {sequence - 1} are missing in the log")
    try:
        change = events.decode_control(message.data)
    except _UNREADABLE:
        verdict.faults.append(f"change {sequence} cannot be read")
        return None
    before = last_of.get(message.subject, "")
    verdict.is_chained = verdict.is_chained or before == change.previous != ""
    if before in (change.previous, digest):  # the very same change again: one that was parked, and replayed
        return change
    if not change.previous and not verdict.is_chained:
        verdict.unchained += 1
    else:
        verdict.faults.append(f"change {sequence} of {change.entity.id} does not follow the one before")
    return change


async def _compare(verdict: Verdict, ledger: Ledger, read: dict[int, tuple[str, ControlChanged | None]]) -> None:
    rows = await ledger.query(_ARCHIVED, {"first": min(read), "last": max(read)})
    archived = {int(row["sequence"]): row for row in rows}
    for sequence, (digest, change) in read.items():
        if sequence not in archived:
            verdict.faults.append(f"change {sequence} is not in the archive")
        elif archived[sequence]["sha256"] not in ("", digest) or (change and not _is_told(archived[sequence], change)):
            verdict.faults.append(f"change {sequence} differs between archive and log")
    verdict.faults += [f"change {one} of the archive is not in the log" for one in archived.keys() - read.keys()]


def _is_told(row: Row, change: ControlChanged) -> bool:
    """Whether a row says what the change says: the row's hash is that of the message, and says nothing of its columns."""
    try:
        is_same = _entity.decode(row["entity"]) == change.entity
    except _UNREADABLE:
        return False
    entity = change.entity
    account_id = entity.id if isinstance(entity, Account) else getattr(entity, "account_id", "")
    whose = (str(entity.__struct_config__.tag), entity.id, account_id)
    told = (row["actor"], row["reason"], row["address"], row["previous"], clock.to_unix_ms(row["time"]))
    is_same = is_same and whose == (row["kind"], row["entity_id"], row["account_id"])
    return is_same and told == (change.actor, change.reason, change.address, change.previous, change.at_ms)


async def _compare_ends(verdict: Verdict, jetstream: JetStreamContext, ledger: Ledger) -> None:
    """What the archive has was in the log first: it cannot reach further, not even while changes are made."""
    (row,) = await ledger.query(_NEWEST, {})
    last = (await jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq
    if (newest := int(row["newest"])) > last:
        verdict.faults.append(f"changes {last + 1} to {newest} of the archive are missing in the log")


async def _all(jetstream: JetStreamContext) -> AsyncIterator[list[Msg]]:
    last = (await jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=_FORGOTTEN_S
    )
    subscription = await jetstream.pull_subscribe("control.>", stream=subjects.STREAM_CONTROL, config=config)
    try:
        reached = 0
        while reached < last:
            messages = await subscription.fetch(_BATCH, timeout=_FETCH_S)
            reached = messages[-1].metadata.sequence.stream
            yield messages
    finally:
        await subscription.unsubscribe()
