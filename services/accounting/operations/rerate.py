"""A price was wrong: prices rows of a time again, from another book, and sends a correction for each that comes out otherwise.

A correction is an event of a higher version with the whole new amount; accounting archives it and settles the difference. What it
replaces stands in it, so that a receipt shows both. What was corrected comes out the same when this runs again.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from libs.common import clock, events, failpoints, ids, money, pricebook, subjects
from libs.common.events import VERSION_CORRECTION_MIN, Correction, UsageRecorded
from libs.common.pricing import Unpriced, price_event
from libs.common.usage import UsageUnreadable
from services.accounting import log
from services.accounting.operations import times
from services.accounting.operations.output import Output
from services.accounting.rows import USAGE_COLUMNS, event_of
from services.accounting.stores import Stores

HELP: Final = "price rows of a time again, and correct those that come out otherwise"
_PAGE: Final = 1_000
_EVENTS_PER_MESSAGE: Final = 100
_ACK_S: Final = 5.0
_ROWS: Final = f"""
SELECT {", ".join(USAGE_COLUMNS)} FROM usage FINAL
WHERE time >= {{start:DateTime64(3)}} AND time < {{end:DateTime64(3)}} AND outcome != 'free'
  AND ({{account:String}} = '' OR account_id = {{account:String}})
  AND ({{model:String}} = '' OR model_answered = {{model:String}} OR model_asked = {{model:String}})
  AND (account_id, time, request_id) > ({{after_account:String}}, {{after:DateTime64(3)}}, {{after_id:String}})
ORDER BY account_id, time, request_id LIMIT {{limit:UInt32}}
"""  # noqa: S608 - our own words


class _Sums:
    def __init__(self) -> None:
        self.rows = 0
        self.corrected = 0
        self.unpriced = 0
        self.by_account: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        """Rows, what they cost, what they cost now."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("--from", dest="start", type=times.time, required=True, metavar="TIME")
    parser.add_argument("--to", dest="end", type=times.time, required=True, metavar="TIME")
    parser.add_argument("--model", default="", metavar="ID", help="only rows that asked for it, or were answered by it")
    parser.add_argument("--account", default="", metavar="ID", help="only rows of this account")
    parser.add_argument("--book", default="", metavar="VERSION", help="default: the one that counts now")
    parser.add_argument("--actor", required=True, help="who corrects; stands in the receipt")
    parser.add_argument("--reason", required=True, help="why; stands in the receipt")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")


async def run(arguments: argparse.Namespace, stores: Stores, out: Output) -> int:
    """0 if all rows could be priced, 1 if some could not, 2 for a book there is none of."""
    await stores.books.refresh()
    arguments.book = arguments.book or stores.books.at(clock.unix_ms()).version
    try:
        pricebook.load(arguments.book)
    except LookupError as error:
        out.say(str(error), error="book")
        return 2
    sums = _Sums()
    place: dict[str, Any] = {"after_account": "", "after": log.BEGINNING, "after_id": ""}
    fixed = {"start": arguments.start, "end": arguments.end, "account": arguments.account, "model": arguments.model}
    while rows := await stores.ledger.query(_ROWS, fixed | place | {"limit": _PAGE}):
        await _page(arguments, stores, out, rows, sums)
        last = dict(zip(USAGE_COLUMNS, rows[-1], strict=True))
        place = {"after_account": last["account_id"], "after": last["time"], "after_id": last["request_id"]}
    for account_id, (count, before, after) in sorted(sums.by_account.items()):
        text = f"{account_id}: {count} rows, {_usd(before)} USD become {_usd(after)} USD, {_usd(after - before)} USD"
        out.say(text, account_id=account_id, rows=count, before_nanos=before, after_nanos=after)
    done = "would be corrected" if arguments.dry_run else "are corrected"
    text = f"{sums.rows} rows looked at, {sums.corrected} {done}, {sums.unpriced} cannot be priced by book {arguments.book}"
    out.say(text, rows=sums.rows, corrected=sums.corrected, unpriced=sums.unpriced, dry_run=arguments.dry_run)
    return int(bool(sums.unpriced))


async def _page(
    arguments: argparse.Namespace, stores: Stores, out: Output, rows: Sequence[Sequence[Any]], sums: _Sums
) -> None:
    corrections: dict[int, list[UsageRecorded]] = defaultdict(list)
    for row in rows:
        sums.rows += 1
        event, before = event_of(row), int(row[USAGE_COLUMNS.index("total_nanos")])
        corrected = _corrected(event, before, arguments)
        try:
            after = price_event(corrected).total_nanos
        except (Unpriced, UsageUnreadable, LookupError) as error:
            sums.unpriced += 1
            out.say(f"{event.request_id}: {error}", request_id=event.request_id, error=str(error))
            continue
        if after != before:
            sums.corrected += 1
            told = sums.by_account[event.account_id]
            told[0], told[1], told[2] = told[0] + 1, told[1] + before, told[2] + after
            corrections[ids.partition(event.account_id)].append(corrected)
    if not arguments.dry_run:
        for partition, found in corrections.items():
            for start in range(0, len(found), _EVENTS_PER_MESSAGE):
                await _publish(stores, partition, found[start : start + _EVENTS_PER_MESSAGE])


def _corrected(event: UsageRecorded, before_nanos: int, arguments: argparse.Namespace) -> UsageRecorded:
    corrects = Correction(
        version=event.version, total_nanos=before_nanos, reason=arguments.reason, actor=arguments.actor
    )
    return msgspec.structs.replace(
        event,
        version=max(VERSION_CORRECTION_MIN, event.version + 1),
        price_book_version=arguments.book,
        corrects=corrects,
    )


async def _publish(stores: Stores, partition: int, batch: Sequence[UsageRecorded]) -> None:
    payload = events.encode_usage(batch)
    headers = {"Nats-Msg-Id": events.payload_id(payload)}
    await stores.jetstream.publish(
        subjects.usage_subject(partition), payload, timeout=_ACK_S, stream=subjects.STREAM_USAGE, headers=headers
    )
    failpoints.reach("corrected_some")


def _usd(nanos: int) -> str:
    return f"-{money.format_usd(-nanos)}" if nanos < 0 else money.format_usd(nanos)
