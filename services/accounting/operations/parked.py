"""Events that no retry could settle: lists them, shows them, gives them another try, or drops them with a reason.

The stream of parked messages is never changed: what was decided about one is a message beside it, on `dlq.resolved`.
"""

import argparse
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, BadRequestError, NotFoundError

from libs.common import clock, events, ids, subjects
from services.accounting import log
from services.accounting.operations.output import Output
from services.accounting.stores import Stores

HELP: Final = "events that no retry could settle: list, show, replay, drop"
_ACK_S: Final = 5.0
_STREAMS: Final = {subjects.DLQ_USAGE: subjects.STREAM_USAGE, subjects.DLQ_CONTROL: subjects.STREAM_CONTROL}
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Resolved(msgspec.Struct, frozen=True):
    """What was decided about a parked message."""

    sequence: int
    """Of the message, in DLQ."""
    action: Literal["replayed", "dropped"]
    actor: str
    reason: str
    at_ms: int


class Refused(Exception):
    """It cannot be done, and why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("action", choices=["list", "show", "replay", "drop"])
    parser.add_argument("sequences", nargs="*", type=int, metavar="NUMBER", help="as `list` shows them")
    parser.add_argument("--actor", default="", help="who decides")
    parser.add_argument("--reason", default="", help="why")


async def run(arguments: argparse.Namespace, stores: Stores, out: Output) -> int:
    """0 if it was done for all of them, 1 if not for some, 2 for missing arguments."""
    if arguments.action == "list":
        return await _list(stores, out)
    if not arguments.sequences:
        out.say("which ones? `parked list` shows their numbers", error="arguments")
        return 2
    if arguments.action != "show" and not (arguments.actor and arguments.reason):
        out.say("--actor and --reason are needed: they are kept with the decision", error="arguments")
        return 2
    done = await _resolved(stores)
    failed = 0
    for sequence in arguments.sequences:
        try:
            await _one(arguments, stores, out, sequence, done)
        except Refused as error:
            out.say(f"{sequence}: {error}", sequence=sequence, error=str(error))
            failed += 1
    return int(bool(failed))


async def _one(
    arguments: argparse.Namespace, stores: Stores, out: Output, sequence: int, done: dict[int, Resolved]
) -> None:
    message = await _message(stores, sequence)
    if arguments.action == "show":
        text = (message.data or b"").decode("utf-8", "replace")
        out.say(text, sequence=sequence, subject=message.subject, payload=text, **_headers(message))
        return
    if (before := done.get(sequence)) is not None:
        raise Refused(f"was {before.action} by {before.actor} at {clock.iso_utc(before.at_ms)}: {before.reason}")
    if arguments.action == "replay":
        await _replay(stores, message)
    action: Literal["replayed", "dropped"] = "replayed" if arguments.action == "replay" else "dropped"
    decided = Resolved(sequence, action, arguments.actor, arguments.reason, clock.unix_ms())
    headers = {"Nats-Msg-Id": f"resolved-{sequence}"}
    payload = msgspec.json.encode(decided)
    await stores.jetstream.publish(
        subjects.DLQ_RESOLVED, payload, timeout=_ACK_S, stream=subjects.STREAM_DLQ, headers=headers
    )
    out.say(f"{sequence}: {action}", sequence=sequence, action=action)


async def _list(stores: Stores, out: Output) -> int:
    done, count = await _resolved(stores), 0
    async for messages in log.read(stores.jetstream, subjects.STREAM_DLQ, "dlq.>", log.BEGINNING):
        for message in messages:
            sequence = message.metadata.sequence.stream
            if message.subject == subjects.DLQ_RESOLVED or sequence in done:
                continue
            count += 1
            reason = (message.headers or {}).get("Relay-Reason", "")
            what = _what(message.subject, message.data)
            when = message.metadata.timestamp.isoformat(timespec="seconds")
            line = f"{sequence}  {when}  {message.subject}  {what or 'cannot be read'}  {reason}"
            out.say(line, sequence=sequence, parked_at=when, subject=message.subject, what=what, reason=reason)
    out.say(f"{count} are parked", parked=count)
    return 0


async def _resolved(stores: Stores) -> dict[int, Resolved]:
    found = {}
    async for messages in log.read(stores.jetstream, subjects.STREAM_DLQ, subjects.DLQ_RESOLVED, log.BEGINNING):
        for message in messages:
            decided = msgspec.json.decode(message.data, type=Resolved)
            found[decided.sequence] = decided
    return found


async def _message(stores: Stores, sequence: int) -> RawStreamMsg:
    try:
        message = await stores.jetstream.get_msg(subjects.STREAM_DLQ, sequence)
    except (NotFoundError, BadRequestError):
        raise Refused("there is no such parked message") from None
    if message.subject not in _STREAMS:
        raise Refused("this is a decision, not a parked message")
    return message


def _headers(message: RawStreamMsg) -> dict[str, Any]:
    return {name.lower().replace("-", "_"): value for name, value in (message.headers or {}).items()}


def _what(subject: str, payload: bytes) -> str:
    """The ids inside, as far as they can be read."""
    try:
        if subject == subjects.DLQ_USAGE:
            found: Sequence[str] = [
                f"{one.request_id}:{one.version} {one.account_id}" for one in events.decode_usage(payload)
            ]
            return ", ".join(found[:3])
        return events.decode_control(payload).entity.id
    except _UNREADABLE:
        return ""


async def _replay(stores: Stores, message: RawStreamMsg) -> None:
    """Publish it again where it came from, under an id of its own: the server would drop a repeated one."""
    payload = await _whole(stores, message)
    headers = {"Nats-Msg-Id": ids.uuid7_hex()}
    try:
        if message.subject == subjects.DLQ_USAGE:
            subject = subjects.usage_subject(ids.partition(events.decode_usage(payload)[0].account_id))
            stream = subjects.STREAM_USAGE
        else:
            subject, stream = await _control_subject(stores, message, payload, headers), subjects.STREAM_CONTROL
    except (*_UNREADABLE, IndexError):
        raise Refused("it cannot be read, so it would be parked again; drop it, or correct it by hand") from None
    try:
        await stores.jetstream.publish(subject, payload, timeout=_ACK_S, stream=stream, headers=headers)
    except APIError as error:
        raise Refused(f"the log does not take it: {error.description}") from None


async def _control_subject(stores: Stores, message: RawStreamMsg, payload: bytes, headers: dict[str, str]) -> str:
    """Only if nothing newer is known of that entity: published again, an old state would be the newest one."""
    entity = events.decode_control(payload).entity
    source = _headers(message).get("relay_sequence")
    if source is None:
        raise Refused("it does not say where it stood in the log, and might undo what came after it")
    kind = str(entity.__struct_config__.tag)
    headers["Nats-Expected-Last-Subject-Sequence"] = source
    return subjects.control_subject(kind, entity.id)


async def _whole(stores: Stores, message: RawStreamMsg) -> bytes:
    """What was too large to be parked whole still stands in the stream it came from, for as long as that keeps it."""
    headers = _headers(message)
    if "relay_cut_from_bytes" not in headers:
        return message.data or b""
    try:
        original = await stores.jetstream.get_msg(_STREAMS[str(message.subject)], int(headers["relay_sequence"]))
    except (NotFoundError, KeyError):
        raise Refused("it was cut when it was parked, and the stream it came from no longer has it") from None
    return original.data or b""
