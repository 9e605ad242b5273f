"""Verifies the audit log: the log of changes itself, entity by entity, and the archive against it.

Each change names the SHA-256 of its entity's change before, and CONTROL numbers all of them without a gap. So a change that was
altered, left out or put in shows: in its own hash in the archive, in the next one's `previous`, or as a number that is missing.
The head is a hash over all of it: whoever keeps one can prove later that nothing before it was touched.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from libs.common import events, subjects
from libs.common.events import Account, ControlChanged
from services.admin.ledger import Ledger, Row

_BATCH: Final = 500
_FETCH_S: Final = 5.0
_FORGOTTEN_S: Final = 60.0
_ARCHIVED: Final = """
SELECT sequence, sha256, kind, entity_id, account_id, entity, actor, reason, toUnixTimestamp64Milli(time) AS time_ms, address,
  previous FROM control FINAL WHERE sequence BETWEEN {first:UInt64} AND {last:UInt64}
"""
_BEYOND: Final = "SELECT sequence FROM control FINAL WHERE sequence > {last:UInt64} ORDER BY sequence LIMIT 1000"


class Verdict(msgspec.Struct):
    """What was found."""

    changes: int = 0
    head: str = hashlib.sha256(b"").hexdigest()
    """Over all changes, in order."""
    last_sequence: int = 0
    unchained: int = 0
    """Changes of before there was a chain."""
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
        hashes, told = {}, {}
        for message in messages:
            sequence, digest = message.metadata.sequence.stream, events.payload_sha256(message.data)
            told[sequence] = _check(verdict, message, sequence, digest, last_of)
            last_of[message.subject] = hashes[sequence] = digest
            verdict.head = hashlib.sha256(f"{verdict.head} {sequence} {digest}".encode()).hexdigest()
            verdict.expected_found = verdict.expected_found or verdict.head == expected
            verdict.changes += 1
            verdict.last_sequence = sequence
        await _compare(verdict, ledger, hashes, told)
        progress(verdict.changes)
    last = (await jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq
    beyond = await ledger.query(_BEYOND, {"last": last})
    verdict.faults += [f"change {row['sequence']} of the archive is not in the log" for row in beyond]
    return verdict


def _check(
    verdict: Verdict, message: Msg, sequence: int, digest: str, last_of: dict[str, str]
) -> ControlChanged | None:
    """The change; None if it cannot be read."""
    if verdict.changes and sequence != verdict.last_sequence + 1:
        verdict.faults.append(f"changes {verdict.last_sequence + 1} to {sequence - 1} are missing in the log")
    try:
        change = events.decode_control(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        verdict.faults.append(f"change {sequence} cannot be read")
        return None
    before = last_of.get(message.subject, "")
    if before in (change.previous, digest):  # the very same change again: one that was parked, and replayed
        return change
    if not change.previous:
        verdict.unchained += 1
    else:
        verdict.faults.append(f"change {sequence} of {change.entity.id} does not follow the one before")
    return change


async def _compare(
    verdict: Verdict, ledger: Ledger, hashes: dict[int, str], told: dict[int, ControlChanged | None]
) -> None:
    rows = await ledger.query(_ARCHIVED, {"first": min(hashes), "last": max(hashes)})
    archived = {int(row["sequence"]): row for row in rows}
    for sequence, digest in hashes.items():
        if sequence not in archived:
            verdict.faults.append(f"change {sequence} is not in the archive")
        elif not _is_same(archived[sequence], digest, told[sequence]):
            verdict.faults.append(f"change {sequence} differs between archive and log")
    verdict.faults += [f"change {one} of the archive is not in the log" for one in archived.keys() - hashes.keys()]


def _is_same(row: Row, digest: str, change: ControlChanged | None) -> bool:
    """Word by word, not by the hash alone: the archive is what people are shown."""
    if change is None:
        return bool(row["sha256"] == digest)
    hashed = ("",) if not change.previous else ()  # changes of before there was a chain have no hash in the archive
    try:
        entity = msgspec.json.decode(row["entity"], type=type(change.entity))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    own = entity.id if isinstance(entity, Account) else getattr(entity, "account_id", "")
    told = (entity.__struct_config__.tag, entity.id, own, change.actor, change.reason, change.address, change.previous)
    names = ("kind", "entity_id", "account_id", "actor", "reason", "address", "previous")
    is_told = told == tuple(row[name] for name in names) and change.at_ms == int(row["time_ms"])
    return is_told and entity == change.entity and row["sha256"] in (digest, *hashed)


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
