"""Changes of accounts, members, keys, credits, upstreams and price books: published to CONTROL with compare-and-set, then applied
to Redis.

Acknowledged by CONTROL = done. If Redis cannot be reached after that, accounting applies the change when it can.
"""

import logging
import secrets
from typing import Final, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from libs.common import clock, events, subjects
from libs.common.directory import Directory
from libs.common.events import (
    Account,
    ApiKey,
    ControlChanged,
    Credit,
    Entity,
    Member,
    PublishedBook,
    UpstreamCredential,
)
from libs.common.scripts import StoreUnavailable
from services.admin.problems import Conflict, Unavailable

_log: Final = logging.getLogger("relay.control")
_WRONG_SEQUENCE: Final = 10071
_REPLY_S: Final = 2.5
_TRIES: Final = 2
_ERRORS: Final = (nats.errors.Error, APIError, OSError)
_AWAY: Final = "The log of changes does not answer; nothing was changed. Try again."
_UNKNOWN: Final = (
    "The log of changes did not answer in time. The change may have been made or not: read it before you send it again."
)
_KINDS: Final[dict[type[Entity], str]] = {
    Account: "account",
    ApiKey: "key",
    Credit: "credit",
    Member: "member",
    PublishedBook: "pricebook",
    UpstreamCredential: "upstream",
}
_Entity = TypeVar("_Entity", Account, ApiKey, Credit, Member, PublishedBook, UpstreamCredential)


class Control:
    """Reads and writes entities. CONTROL is the source of truth; this service keeps no state."""

    def __init__(self, broker: Client, directory: Directory) -> None:
        self._broker = broker
        self._jetstream = broker.jetstream(timeout=_REPLY_S)
        self._directory = directory

    async def find(self, kind: type[_Entity], entity_id: str) -> tuple[_Entity, int] | None:
        """An entity and its version; None if there is none. Raises Unavailable.

        `entity_id` must be one of our ids in form: it becomes part of a subject.
        """
        if not self._broker.is_connected:
            raise Unavailable(_AWAY)
        try:
            subject = subjects.control_subject(_KINDS[kind], entity_id)
            message = await self._jetstream.get_last_msg(subjects.STREAM_CONTROL, subject)
        except NotFoundError:
            return None
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        entity = events.decode_control(message.data or b"").entity
        assert isinstance(entity, kind)
        return entity, message.seq or 0

    async def list_all(self, kind: type[_Entity]) -> list[tuple[_Entity, int]]:
        """Every entity of a kind of which there are few, each with its version, in the order of their ids.

        One question each. Raises Unavailable.
        """
        if not self._broker.is_connected:
            raise Unavailable(_AWAY)
        subject = subjects.control_subject(_KINDS[kind], ">")
        try:
            info = await self._jetstream.stream_info(subjects.STREAM_CONTROL, subjects_filter=subject)
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        names = sorted(name.rpartition(".")[2] for name in info.state.subjects or {})
        found = [await self.find(kind, name) for name in names]
        return [one for one in found if one is not None]

    async def put(self, entity: Entity, *, version: int, actor: str, reason: str) -> int:
        """Write the next state of an entity whose present version is `version` (0: it must be new). Its new version.

        Raises Conflict if another change came first, Unavailable.
        """
        event = ControlChanged(entity=entity, actor=actor, reason=reason, at_ms=clock.unix_ms())
        sequence = await self._publish(event, version)
        await self._apply(event, sequence)
        return sequence

    async def _publish(self, event: ControlChanged, version: int) -> int:
        if not self._broker.is_connected:
            raise Unavailable(_AWAY)
        subject = subjects.control_subject(_KINDS[type(event.entity)], event.entity.id)
        message_id = f"{event.entity.id}:{secrets.token_hex(8)}"
        headers = {"Nats-Expected-Last-Subject-Sequence": str(version), "Nats-Msg-Id": message_id}
        payload = events.encode_control(event)
        problem = _AWAY
        for _ in range(_TRIES):
            try:
                ack = await self._jetstream.publish(
                    subject, payload, stream=subjects.STREAM_CONTROL, headers=dict(headers)
                )
                return ack.seq
            except APIError as error:
                if error.err_code != _WRONG_SEQUENCE:
                    break
                if problem == _UNKNOWN and (sequence := await self._sequence_of(subject, message_id)):
                    return sequence
                raise Conflict("It was changed by somebody else in the meantime; read it again.") from None
            except (nats.errors.TimeoutError, nats.errors.ConnectionClosedError, OSError):
                problem = _UNKNOWN  # a time-out does not mean "not stored"
            except nats.errors.Error:
                break
        raise Unavailable(problem)

    async def _sequence_of(self, subject: str, message_id: str) -> int | None:
        """Where our change stands, if the newest one is ours: its first sending was stored and the answer got lost.

        nats-server 2.15 compares sequences before it looks for repetitions, so it calls that a wrong sequence.
        """
        try:
            message = await self._jetstream.get_last_msg(subjects.STREAM_CONTROL, subject)
        except _ERRORS:
            raise Unavailable(_UNKNOWN) from None
        return message.seq if (message.headers or {}).get("Nats-Msg-Id") == message_id else None

    async def _apply(self, event: ControlChanged, version: int) -> None:
        try:
            result = await self._directory.apply(event, version)
        except StoreUnavailable:
            _log.warning("Redis is away; accounting will apply %s", event.entity.id)
            return
        if result in ("MISSING", "OVER", "TAKEN", "UNSOUND"):
            _log.warning("%s was not applied (%s); accounting decides", event.entity.id, result)
