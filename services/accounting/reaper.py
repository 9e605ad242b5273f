"""Ends the leases of dead gateways: what stands in a lease becomes its request's event, and settling that frees slot and hold.

1. **Take** leases that nobody has renewed. They are ours for half a minute; if we die, another worker takes them then.
2. **Read** what the gateway left in each: version 1 of its event, the estimated input.
3. **Publish** it to USAGE. From here on it is an event like any other; published twice it is the same event.

Whatever fails is done again in a while. A gateway that lives after all sends version 3, which takes the difference.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError

from libs.common import events, failpoints, ids, subjects
from libs.common.events import VERSION_EXPIRED, UsageRecorded
from libs.common.leases import Expired
from libs.common.metrics import Metrics
from libs.common.scripts import StoreUnavailable

_log: Final = logging.getLogger("relay.reaper")
_GRACE_MS: Final = 1_000
_COUNT: Final = 200
"""Of one partition in one round, and in one message."""
_PATIENCE_S: Final = 15.0
"""How long Redis must have answered without a break: gateways that live renew their leases first."""
_ACK_S: Final = 5.0
_TROUBLE: Final = (StoreUnavailable, nats.errors.Error, APIError, OSError, TimeoutError)


class ExpiredLeases(Protocol):
    """Where leases are."""

    async def reap(self, partition: int, *, grace_ms: int, count: int) -> list[Expired]:
        """Take some. Raises StoreUnavailable."""


class JetStream(Protocol):
    """The part of `nats.js.JetStreamContext` that is used here."""

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        """Publish and wait for the server's acknowledgement."""


class Reaper:
    """See the module's docstring."""

    def __init__(
        self,
        leases: ExpiredLeases,
        jetstream: JetStream,
        metrics: Metrics,
        *,
        every_s: float,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._leases = leases
        self._jetstream = jetstream
        self._metrics = metrics
        self._every_s = every_s
        self._patience_s = patience_s
        self._patient_since: float | None = None
        """None: at start Redis is taken to have been there all along."""

    async def run(self, stopping: asyncio.Event) -> None:
        """A round every so often, until told to stop."""
        while not stopping.is_set():
            try:
                await self.round()
            except _TROUBLE as error:
                if isinstance(error, StoreUnavailable):
                    self._patient_since = asyncio.get_running_loop().time()
                _log.warning("leases are looked at again in %g s: %s", self._every_s, error or type(error).__name__)
            except Exception as error:  # noqa: BLE001 - logged; a loop that ended would end no lease ever again
                _log.error("leases could not be looked at in a way nobody foresaw", exc_info=error)
            try:
                await asyncio.wait_for(stopping.wait(), self._every_s)
            except TimeoutError:
                continue

    async def round(self) -> int:
        """Look at all partitions once; how many leases were ended. Raises StoreUnavailable, errors of NATS, TimeoutError."""
        if self._is_patient():
            await self._leases.reap(0, grace_ms=_GRACE_MS, count=0)  # does Redis answer?
            return 0
        taken = await asyncio.gather(
            *(self._leases.reap(number, grace_ms=_GRACE_MS, count=_COUNT) for number in range(ids.PARTITIONS))
        )
        if any(taken):
            failpoints.reach("lease_taken")
        await asyncio.gather(*(self._publish(number, expired) for number, expired in enumerate(taken) if expired))
        return sum(map(len, taken))

    def _is_patient(self) -> bool:
        if self._patient_since is None:
            return False
        if asyncio.get_running_loop().time() < self._patient_since + self._patience_s:
            return True
        self._patient_since = None
        return False

    async def _publish(self, partition: int, expired: Sequence[Expired]) -> None:
        batch = [event_of(lease) for lease in expired]
        headers = {"Nats-Msg-Id": events.message_id(batch)}
        payload, subject = events.encode_usage(batch), subjects.usage_subject(partition)
        await self._jetstream.publish(subject, payload, timeout=_ACK_S, stream=subjects.STREAM_USAGE, headers=headers)
        failpoints.reach("lease_published")
        self._metrics.add("relay_leases_reaped_total", amount=len(batch))
        _log.warning(
            "%d requests of a gateway that is gone are recorded as expired, %s first", len(batch), batch[0].request_id
        )


def event_of(expired: Expired) -> UsageRecorded:
    """Version 1 of a request's event. What cannot be read costs nothing: the hold must go, and one row must tell of it."""
    try:
        memo = events.decode_event(expired.memo)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        _log.error("the lease of %s holds nothing that can be read", expired.request_id)
        memo = _unknown(expired)
    if (memo.request_id, memo.account_id) != (expired.request_id, expired.account_id):
        _log.error("the lease of %s holds another request", expired.request_id)
        memo = _unknown(expired)
    return msgspec.structs.replace(
        memo,
        version=VERSION_EXPIRED,
        member_id=expired.member_id,
        multiplier_ppm=expired.multiplier_ppm,
    )


def _unknown(expired: Expired) -> UsageRecorded:
    return UsageRecorded(
        request_id=expired.request_id,
        account_id=expired.account_id,
        key_id=expired.key_id,
        path="",
        model_asked="",
        model_answered="",
        stream=False,
        status=0,
        outcome="free",
        usage={},
        price_book_version="",
        multiplier_ppm=0,
    )
