"""Changes of accounts, keys and credits: published to CONTROL with compare-and-set, then applied to Redis.

Acknowledged by CONTROL = done. If Redis cannot be reached after that, accounting applies the change when it can.
"""

import logging
from typing import Final, TypeVar

import msgspec
import nats.errors
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from libs.common import clock, events, subjects
from libs.common.balances import StoreUnavailable
from libs.common.directory import Directory
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity
from services.admin.problems import Conflict, Unavailable

_log: Final = logging.getLogger("relay.control")
_WRONG_SEQUENCE: Final = 10071
_ERRORS: Final = (nats.errors.Error, APIError, OSError, TimeoutError)
_AWAY: Final = "The log of changes does not answer; nothing was changed. Try again."
_KINDS: Final[dict[type[Entity], str]] = {Account: "account", ApiKey: "key", Credit: "credit"}
_Entity = TypeVar("_Entity", Account, ApiKey, Credit)


class Stored(msgspec.Struct, frozen=True):
    """The present state of an entity and its version."""

    entity: Entity
    version: int


class Control:
    """Reads and writes entities. CONTROL is the source of truth; this service keeps no state."""

    def __init__(self, jetstream: JetStreamContext, directory: Directory) -> None:
        self._jetstream = jetstream
        self._directory = directory

    async def find(self, kind: type[_Entity], entity_id: str) -> tuple[_Entity, int] | None:
        """An entity and its version; None if there is none. Raises Unavailable."""
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

    async def put(self, entity: Entity, *, version: int, actor: str, reason: str) -> int:
        """Write the next state of an entity whose present version is `version` (0: it must be new). Its new version.

        Raises Conflict if another change came first, Unavailable.
        """
        event = ControlChanged(entity=entity, actor=actor, reason=reason, at_ms=clock.unix_ms())
        subject = subjects.control_subject(_KINDS[type(entity)], entity.id)
        headers = {"Nats-Expected-Last-Subject-Sequence": str(version)}
        try:
            ack = await self._jetstream.publish(
                subject, events.encode_control(event), stream=subjects.STREAM_CONTROL, headers=headers
            )
        except APIError as error:
            if error.err_code == _WRONG_SEQUENCE:
                raise Conflict("It was changed by somebody else in the meantime; read it again.") from None
            raise Unavailable(_AWAY) from None
        except _ERRORS:
            raise Unavailable(_AWAY) from None
        await self._apply(event, ack.seq)
        return ack.seq

    async def _apply(self, event: ControlChanged, version: int) -> None:
        try:
            result = await self._directory.apply(event, version)
        except StoreUnavailable:
            _log.warning("Redis is away; accounting will apply %s", event.entity.id)
            return
        if result in ("MISSING", "OVER"):
            _log.warning("%s was not applied (%s); accounting decides", event.entity.id, result)
