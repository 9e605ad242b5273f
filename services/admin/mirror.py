"""Entities in memory, as CONTROL last told of them: what lists, signing in and alert rules are answered from.

A mirror of each process: it reads the latest change of each entity at start, then follows. What this process has changed itself
is in it at once; what another replica has changed, some milliseconds later. Whoever changes an entity reads it from CONTROL
itself. Credits and codes are not here: there may be millions. A mirror that has not heard from the log for half a minute says so:
nobody is let in by it then, for who was dismissed in the meantime is still there.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from typing import Any, Final, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import events, subjects
from libs.common.entities import AlertRule, Channel, Incident, Operator, ServiceToken
from libs.common.events import Account, ApiKey, Member, UpstreamCredential

_log: Final = logging.getLogger("relay.mirror")
KINDS: Final[tuple[type[Any], ...]] = (
    Account, Member, ApiKey, Operator, ServiceToken, Channel, AlertRule, Incident,
    UpstreamCredential,
)  # fmt: skip
_TAGS: Final = {str(kind.__struct_config__.tag) for kind in KINDS}
_BATCH: Final = 500
_FETCH_S: Final = 5.0
_FORGOTTEN_S: Final = 60.0
_AGAIN_S: Final = 0.5
_SILENT_S: Final = 30.0
"""Some three fetches without an answer."""
_ERRORS: Final = (nats.errors.Error, APIError, OSError, TimeoutError)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_E = TypeVar("_E")


class Mirror:
    """See the module's docstring."""

    def __init__(self, broker: Client) -> None:
        self._broker = broker
        self._sequence = 0
        self._entities: dict[type[Any], dict[str, tuple[int, Any]]] = {kind: {} for kind in KINDS}
        self._of_account: dict[tuple[type[Any], str], set[str]] = defaultdict(set)
        self._by_hash: dict[str, str] = {}
        """SHA-256 of a service token → its id."""
        self._heard_s: float | None = None
        """Monotonic: when the log answered last; None: never."""
        self.whole = asyncio.Event()
        """Set when it has read all there was when it began."""

    @property
    def is_whole(self) -> bool:
        """Whether it has read all there was when it began."""
        return self.whole.is_set()

    @property
    def is_fresh(self) -> bool:
        """Whether it has heard from the log of late."""
        return self._heard_s is None or time.monotonic() - self._heard_s <= _SILENT_S

    def _look(self, waiting: int) -> None:
        self._heard_s = time.monotonic()
        if waiting == 0:
            self.whole.set()

    def get(self, kind: type[_E], entity_id: str) -> _E | None:
        """An entity; None if there is none."""
        found = self._entities[kind].get(entity_id)
        return found[1] if found else None

    def version(self, kind: type[Any], entity_id: str) -> int:
        """The sequence of its latest change; 0 if there is none."""
        found = self._entities[kind].get(entity_id)
        return found[0] if found else 0

    def of_account(self, kind: type[_E], account_id: str) -> list[_E]:
        """Those of an account (empty: of none), in the order of their ids."""
        entities = self._entities[kind]
        return [entities[name][1] for name in sorted(self._of_account[kind, account_id])]

    def all(self, kind: type[_E]) -> list[_E]:
        """All of a kind, in the order of their ids."""
        entities = self._entities[kind]
        return [entities[name][1] for name in sorted(entities)]

    def token(self, sha256: str) -> ServiceToken | None:
        """The service token with that hash."""
        return self.get(ServiceToken, self._by_hash.get(sha256, ""))

    def take(self, payload: bytes, sequence: int) -> None:
        """One change, whoever brings it; an old one changes nothing."""
        try:
            entity = events.decode_control(payload).entity
        except _UNREADABLE:
            return  # accounting parks it
        kind = type(entity)
        if kind not in self._entities or self.version(kind, entity.id) >= sequence:
            return
        self._entities[kind][entity.id] = (sequence, entity)
        self._of_account[kind, getattr(entity, "account_id", "")].add(entity.id)
        if isinstance(entity, ServiceToken):
            self._by_hash[entity.sha256] = entity.id

    async def run(self) -> None:
        """Follow CONTROL for ever."""
        while True:
            try:
                await self._follow()
            except _ERRORS as error:
                _log.info("the log of changes is followed again: %s", error or type(error).__name__)
            await asyncio.sleep(_AGAIN_S)

    async def _follow(self) -> None:
        subscription = await self._subscribe()
        try:
            waiting = (await subscription.consumer_info()).num_pending or 0
            self._look(waiting)
            expected = 0
            while True:
                messages = await _fetch(subscription, waiting)
                for message in messages:
                    expected += 1
                    if message.metadata.sequence.consumer != expected:
                        return  # one was lost on the way: from the last one that was taken, again
                    self.take(message.data, message.metadata.sequence.stream)
                    self._sequence = message.metadata.sequence.stream
                if messages:
                    waiting = messages[-1].metadata.num_pending or 0
                else:  # silence, or a server that was restarted and has forgotten us: then this raises
                    waiting = (await subscription.consumer_info()).num_pending or 0
                self._look(waiting)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):  # it was forgotten already
                await subscription.unsubscribe()

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        jetstream = self._broker.jetstream()
        start = (
            ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._sequence + 1)
            if self._sequence
            else ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT)
        )
        start.ack_policy = AckPolicy.NONE
        start.inactive_threshold = _FORGOTTEN_S
        start.filter_subjects = [subjects.control_subject(tag, "*") for tag in sorted(_TAGS)]
        name = self._broker.new_inbox().rpartition(".")[2]
        start.name = name
        await jetstream.add_consumer(subjects.STREAM_CONTROL, start)
        return await jetstream.pull_subscribe_bind(consumer=name, stream=subjects.STREAM_CONTROL)


async def _fetch(subscription: JetStreamContext.PullSubscription, waiting: int) -> list[Msg]:
    try:
        return await subscription.fetch(min(max(waiting, 1), _BATCH), timeout=_FETCH_S)
    except (nats.errors.TimeoutError, TimeoutError):
        return []
