"""Changes of entities: published to CONTROL with compare-and-set, then applied to Redis and to this service's mirror.

Acknowledged by CONTROL = done. If Redis cannot be reached after that, accounting applies the change when it can. Several
entities change in one atomic batch: all of them or none, whoever dies in between (ADR 16).
"""

import asyncio
import base64
import json
import logging
import secrets
from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from libs.common import clock, events, failpoints, subjects
from libs.common.directory import Directory
from libs.common.events import ControlChanged, Entity
from libs.common.scripts import StoreUnavailable
from services.admin.mirror import Mirror
from services.admin.problems import Overtaken, Unavailable, Unprocessable

_log: Final = logging.getLogger("relay.control")
_WRONG_SEQUENCE: Final = 10071
_REPLY_S: Final = 2.5
_TRIES: Final = 2
_ERRORS: Final = (nats.errors.Error, APIError, OSError)
_MESSAGE_API: Final = f"$JS.API.STREAM.MSG.GET.{subjects.STREAM_CONTROL}"
_AWAY: Final = "The log of changes does not answer; nothing was changed. Try again."
_UNKNOWN: Final = (
    "The log of changes did not answer in time. The change may have been made or not: read it before you send it again."
)
_OTHERS: Final = "It was changed by somebody else in the meantime; read it again."
_OTHER_REQUEST: Final = "This Idempotency-Key was used for another request."
_E = TypeVar("_E")


class Found(msgspec.Struct, Generic[_E], frozen=True):
    """An entity as CONTROL has it."""

    entity: _E
    version: int
    """The sequence of its latest change: its ETag."""
    sha256: str
    """Of that change's message: what the next one names as its previous."""


class By(msgspec.Struct, frozen=True, kw_only=True):
    """Whose change it is, for the audit log."""

    actor: str
    address: str
    reason: str
    request: str = ""
    """A hash of what was asked for, where an Idempotency-Key came along."""


Put = tuple[Entity, Found[Any] | None]
"""What an entity is to be, and what it was; None: it must be new."""


class Control:
    """Reads and writes entities. CONTROL is the source of truth."""

    def __init__(self, broker: Client, directory: Directory, mirror: Mirror) -> None:
        self._broker = broker
        self._jetstream = broker.jetstream(timeout=_REPLY_S)
        self._directory = directory
        self._mirror = mirror

    async def find(self, kind: type[_E], entity_id: str) -> Found[_E] | None:
        """An entity as it is now; None if there is none. Raises Unavailable.

        `entity_id` must be one of our ids in form: it becomes part of a subject.
        """
        self._check_connected()
        try:
            message = await self._jetstream.get_last_msg(subjects.STREAM_CONTROL, _subject(kind, entity_id))
        except NotFoundError:
            return None
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        payload = message.data or b""
        return _found(kind, payload, message.seq or 0)

    async def first(self, kind: type[_E], entity_id: str, request: str) -> _E | None:
        """An entity as it was made, if it was made by this very request. Raises Unprocessable if by another, Unavailable."""
        self._check_connected()
        question = json.dumps({"seq": 1, "next_by_subj": _subject(kind, entity_id)}).encode()
        try:
            reply = json.loads((await self._broker.request(_MESSAGE_API, question, timeout=_REPLY_S)).data)
        except (*_ERRORS, ValueError):
            raise Unavailable(_AWAY) from None
        if error := reply.get("error"):
            if error.get("code") == 404:
                return None
            raise Unavailable(_AWAY)
        event = events.decode_control(base64.b64decode(reply["message"]["data"]))
        if event.request != request:
            raise Unprocessable(_OTHER_REQUEST)
        assert isinstance(event.entity, kind)
        return event.entity

    async def list_all(self, kind: type[_E]) -> list[Found[_E]]:
        """Every entity of a kind of which there are few, in the order of their ids. One question each. Raises Unavailable."""
        self._check_connected()
        subject = _subject(kind, ">")
        try:
            info = await self._jetstream.stream_info(subjects.STREAM_CONTROL, subjects_filter=subject)
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        names = sorted(name.rpartition(".")[2] for name in info.state.subjects or {})
        found = await asyncio.gather(*(self.find(kind, name) for name in names))
        return [one for one in found if one is not None]

    async def put(self, entity: _E, *, over: Found[Any] | None, by: By) -> Found[_E]:
        """Write the next state of an entity. Raises Overtaken if another change came first, Unavailable."""
        (found,) = await self.put_all([(entity, over)], by=by)  # type: ignore[list-item] # the kinds of Entity
        return found

    async def put_all(self, puts: Sequence[Put], *, by: By) -> list[Found[Any]]:
        """Write all of them or none. Raises Overtaken if another change of any of them came first, Unavailable."""
        self._check_connected()
        changes = [
            ControlChanged(
                entity=entity,
                actor=by.actor,
                reason=by.reason,
                at_ms=clock.unix_ms(),
                address=by.address,
                request=by.request,
                previous=over.sha256 if over else "",
            )
            for entity, over in puts
        ]
        payloads = [events.encode_control(change) for change in changes]
        failpoints.reach("control_publishing")
        last = await self._publish(puts, payloads)
        failpoints.reach("control_published")
        found = []
        for number, (change, payload) in enumerate(zip(changes, payloads, strict=True), last - len(puts) + 1):
            await self._apply(change, number)
            self._mirror.take(payload, number)
            found.append(Found(change.entity, number, events.payload_sha256(payload)))
        return found

    async def _publish(self, puts: Sequence[Put], payloads: Sequence[bytes]) -> int:
        """The sequence of the last one; a batch has consecutive ones."""
        problem = _AWAY
        batch = secrets.token_hex(16)
        for _ in range(_TRIES):
            try:
                reply = await self._send(batch, puts, payloads)
            except (nats.errors.TimeoutError, nats.errors.ConnectionClosedError, TimeoutError, OSError):
                problem = _UNKNOWN  # a time-out does not mean "not stored"
                continue
            except nats.errors.Error:
                break
            if error := reply.get("error"):
                if problem == _UNKNOWN and (sequence := await self._sequence_of(puts[-1][0], batch)):
                    return sequence
                if error.get("err_code") == _WRONG_SEQUENCE:
                    raise Overtaken(_OTHERS)
                _log.error("CONTROL does not take a change: %s", error.get("description"))
                break
            return int(reply["seq"])
        raise Unavailable(problem)

    async def _send(self, batch: str, puts: Sequence[Put], payloads: Sequence[bytes]) -> dict[str, Any]:
        for number, ((entity, over), payload) in enumerate(zip(puts, payloads, strict=True), 1):
            subject = _subject(type(entity), entity.id)
            headers = {
                "Nats-Expected-Stream": subjects.STREAM_CONTROL,
                "Nats-Expected-Last-Subject-Sequence": str(over.version if over else 0),
                "Nats-Msg-Id": f"{batch}:{number}",
            }
            if len(puts) > 1:
                headers |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if number < len(puts):
                await self._broker.publish(subject, payload, headers=headers)
                continue
            if len(puts) > 1:
                headers["Nats-Batch-Commit"] = "1"
            answer = await self._broker.request(subject, payload, timeout=_REPLY_S, headers=headers)
            return dict(json.loads(answer.data))
        raise AssertionError("nothing to change")

    async def _sequence_of(self, entity: Entity, batch: str) -> int | None:
        """Where our change stands, if the newest one is ours: its first sending was stored and the answer got lost.

        nats-server 2.15 compares the sequence of a single message before it looks for repetitions, so it calls that a wrong
        sequence; of a batch it says that its message ids are there already.
        """
        try:
            message = await self._jetstream.get_last_msg(subjects.STREAM_CONTROL, _subject(type(entity), entity.id))
        except _ERRORS:
            raise Unavailable(_UNKNOWN) from None
        return message.seq if (message.headers or {}).get("Nats-Msg-Id", "").startswith(f"{batch}:") else None

    async def _apply(self, event: ControlChanged, version: int) -> None:
        try:
            result = await self._directory.apply(event, version)
        except StoreUnavailable:
            _log.warning("Redis is away; accounting will apply %s", event.entity.id)
            return
        if result in ("MISSING", "OVER", "TAKEN", "UNSOUND"):
            _log.warning("%s was not applied (%s); accounting decides", event.entity.id, result)

    def _check_connected(self) -> None:
        if not self._broker.is_connected:
            raise Unavailable(_AWAY)


def _found(kind: type[_E], payload: bytes, sequence: int) -> Found[_E]:
    entity = events.decode_control(payload).entity
    assert isinstance(entity, kind)
    return Found(entity, sequence, events.payload_sha256(payload))


def _subject(kind: type[Any], entity_id: str) -> str:
    return subjects.control_subject(str(kind.__struct_config__.tag), entity_id)
