"""Runs what the log holds of a time through accounting's steps again: an archive or a Redis that lost data has it back.

Every step is a no-op for what is there (settlement.py, control.py), so that more may be replayed than was lost.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import msgspec
from nats.aio.msg import Msg

from libs.common import events, ids, subjects
from libs.common.metrics import Metrics
from services.accounting import log
from services.accounting.control import Change, ControlBatch, apply_control
from services.accounting.operations import times
from services.accounting.operations.output import Output
from services.accounting.rollups import Rollups
from services.accounting.settlement import settle_batch
from services.accounting.stores import Stores

HELP: Final = "run usage and control of a time through accounting again"
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("--from", dest="start", type=times.time, required=True, metavar="TIME")
    parser.add_argument("--to", dest="end", type=times.time, metavar="TIME", help="default: now")
    parser.add_argument("--account", metavar="ID", help="only usage of this account")
    parser.add_argument("--dry-run", action="store_true", help="count only")


async def run(arguments: argparse.Namespace, stores: Stores, out: Output) -> int:
    """0 if all of it is settled, 1 if something could not be."""
    metrics, counts = Metrics(), Counter[str]()
    if arguments.account is None:
        await _control(arguments, stores, counts, metrics)
    await _usage(arguments, stores, counts, metrics)
    settled, known = metrics.value("relay_events_settled_total"), metrics.value("relay_events_duplicate_total")
    text = (
        f"{counts['changes']} changes, {counts['events']} events: {settled} were not settled before, {known} were; "
        f"{counts['unsettled']} cannot be settled, {counts['unreadable']} messages cannot be read"
    )
    out.say(text, **counts, settled=settled, known=known, dry_run=arguments.dry_run)
    return int(bool(counts["unsettled"] or counts["unreadable"]))


async def _control(arguments: argparse.Namespace, stores: Stores, counts: Counter[str], metrics: Metrics) -> None:
    batch = ControlBatch(stores.ledger, stores.directory)
    async for messages in log.read(stores.jetstream, subjects.STREAM_CONTROL, "control.>", arguments.start):
        changes = []
        for message in _before(messages, arguments.end):
            try:
                change = events.decode_control(message.data)
            except _UNREADABLE:
                counts["unreadable"] += 1
                continue
            sequence, sha256 = message.metadata.sequence.stream, events.payload_sha256(message.data)
            changes.append(Change(0, sequence, change, sha256))
        counts["changes"] += len(changes)
        if not arguments.dry_run:
            counts["unsettled"] += len(await apply_control(changes, batch, metrics))


async def _usage(arguments: argparse.Namespace, stores: Stores, counts: Counter[str], metrics: Metrics) -> None:
    hours = Rollups(stores.ledger, metrics, every_s=stores.config.rollup_seconds)
    async for messages in log.read(stores.jetstream, subjects.STREAM_USAGE, subjects.USAGE_EVENTS, arguments.start):
        batch = []
        for message in _before(messages, arguments.end):
            try:
                found = events.decode_usage(message.data)
            except _UNREADABLE:
                counts["unreadable"] += 1
                continue
            batch += [event for event in found if arguments.account in (None, event.account_id)]
        counts["events"] += len(batch)
        if not arguments.dry_run:
            await stores.books.learn(event.price_book_version for event in batch)
            unsettled = await settle_batch(batch, stores.ledger, stores.balances, metrics)
            counts["unsettled"] += len(unsettled)
            bad = {one.position for one in unsettled}
            for position, event in enumerate(batch):
                if position not in bad:
                    hours.touched(event.account_id, ids.id_time_ms(event.request_id))
    if not arguments.dry_run:
        await hours.flush()


def _before(messages: Sequence[Msg], end: datetime | None) -> Iterator[Msg]:
    return (message for message in messages if end is None or message.metadata.timestamp < end)
