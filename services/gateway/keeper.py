"""The leases of this process: keeps them while their requests are under way, gives them back, undoes those never used."""

import asyncio
import logging
from typing import Final

from libs.common.leases import Lease, Leases
from libs.common.metrics import Metrics
from libs.common.scripts import StoreRefused, StoreUnavailable, heed

_log: Final = logging.getLogger("relay.leases")
_RENEWED_AFTER: Final = 1 / 3
_LOOKED_AFTER: Final = 1 / 30
"""Of a lease's length: how often leases are renewed, and how often it is seen which ones are due."""
_VOIDS_MAX: Final = 10_000
_CLOSE_S: Final = 1.0


class _Kept:
    __slots__ = ("in_flight", "lease", "renewed_at")

    def __init__(self, lease: Lease, now: float) -> None:
        self.lease = lease
        self.in_flight = True
        self.renewed_at = now


class LeaseKeeper:
    """One per process; one task and no timer per request. Nothing here fails or waits: a lease Redis cannot be told of ends by
    itself, and accounting takes it from there."""

    def __init__(self, leases: Leases, metrics: Metrics, *, lease_seconds: float) -> None:
        self._leases = leases
        self._metrics = metrics
        self._renew_after_s = lease_seconds * _RENEWED_AFTER
        self._look_after_s = lease_seconds * _LOOKED_AFTER
        self._kept: dict[str, _Kept] = {}
        self._voids: dict[str, Lease] = {}
        """Admissions that may have happened although Redis did not answer, and must not count."""
        metrics.gauge("relay_leases_open", lambda: len(self._kept))

    def keep(self, lease: Lease) -> None:
        """From now on it is renewed."""
        self._kept[lease.request_id] = _Kept(lease, asyncio.get_running_loop().time())

    def correct(self, lease: Lease, input_tokens: int) -> None:
        """The true input is known: it takes the place of the estimate in the buckets."""
        kept = self._kept.get(lease.request_id)
        if kept is not None:
            heed(self._leases.renew(lease, input_tokens=input_tokens, in_flight=kept.in_flight))

    def drain(self, lease: Lease) -> None:
        """The caller has left: the hold stays, the slot is free for his next request."""
        kept = self._kept.get(lease.request_id)
        if kept is not None:
            kept.in_flight = False
            heed(self._leases.renew(lease, in_flight=False))

    def finish(self, lease: Lease, *, input_tokens: int, output_tokens: int, cost_nanos: int | None) -> None:
        """The request has ended and its event is on the way."""
        self._kept.pop(lease.request_id, None)
        heed(self._leases.finish(lease, input_tokens=input_tokens, output_tokens=output_tokens, cost_nanos=cost_nanos))

    def void(self, lease: Lease) -> None:
        """An admission of which nobody knows whether it happened shall not have happened. Repeated until Redis says so."""
        if len(self._voids) >= _VOIDS_MAX:
            self._metrics.add("relay_leases_lost_total")
            return
        self._voids[lease.request_id] = lease
        self._try_void(lease)

    async def run(self) -> None:
        """Renew what is due, for ever."""
        while True:
            await asyncio.sleep(self._look_after_s)
            due = asyncio.get_running_loop().time() - self._renew_after_s
            for kept in list(self._kept.values()):
                if kept.renewed_at <= due:
                    self._renew(kept)
            for lease in list(self._voids.values()):
                self._try_void(lease)

    async def close(self) -> None:
        """A last try to undo what must be undone."""
        calls = [self._leases.void(lease) for lease in self._voids.values()]
        for call in calls:
            heed(call)
        if calls:
            await asyncio.wait(calls, timeout=_CLOSE_S)

    def _renew(self, kept: _Kept) -> None:
        kept.renewed_at = asyncio.get_running_loop().time()
        call = self._leases.renew(kept.lease, in_flight=kept.in_flight)
        call.add_done_callback(lambda done: self._renewed(kept.lease.request_id, done))

    def _renewed(self, request_id: str, call: "asyncio.Future[bytes]") -> None:
        if call.cancelled() or call.exception() is not None:  # Redis is away: the next look tries again
            if (kept := self._kept.get(request_id)) is not None:
                kept.renewed_at = 0.0
            return
        if call.result() == b"LOST" and self._kept.pop(request_id, None) is not None:
            self._metrics.add("relay_leases_lost_total")
            _log.warning("the lease of %s is lost; the request goes on and is settled at its end", request_id)

    def _try_void(self, lease: Lease) -> None:
        self._leases.void(lease).add_done_callback(lambda done: self._voided(lease.request_id, done))

    def _voided(self, request_id: str, call: "asyncio.Future[bytes]") -> None:
        if call.cancelled():
            return
        error = call.exception()
        if error is None or isinstance(error, StoreRefused):
            self._voids.pop(request_id, None)
        elif not isinstance(error, StoreUnavailable):
            _log.error("a lease could not be undone", exc_info=error)
