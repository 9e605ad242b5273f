"""The upstream credentials as this gateway knows them now: which one a request goes to, and what is held against each.

What this gateway sees takes effect here at once and is told to Redis; what others have seen comes from Redis every second. While
Redis is away, the pool goes on with what it knows. A request costs no call to Redis, unless its credential has a cap or is being
tried again after a failure.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import httpx2

from libs.common import clock, scripts
from libs.common.config import GatewayConfig
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from libs.common.scripts import StoreUnavailable
from libs.common.sealing import Sealer
from libs.common.upstreams import CLOSED, Kind, Seen, Stored, Upstreams, rate_ms
from services.gateway import credentials, selection
from services.gateway.credentials import Way
from services.gateway.upstream import Upstream

_log: Final = logging.getLogger("relay.pool")
_REFRESH_S: Final = 1.0
_ACCOUNTS_MAX: Final = 10_000
_BUSY_S: Final = 1.0
"""When a slot may become free, or a try may have ended: nobody knows; ask again then."""
_TROUBLES: Final[dict[str, str]] = {
    "auth": "it is refused (401, 403): is its API key still good?",
    "hold": "its organization is on hold or disabled",
    "spend": "its spend limit or credit is used up",
    "rate": "its rate limit is reached",
    "server": "the upstream fails again and again",
    "connect": "the upstream cannot be reached",
}


class Credential:
    """One way upstream, and what is known of it."""

    __slots__ = (
        "account_id", "breaker", "changes", "id", "in_flight", "in_flight_max", "reports", "trouble", "upstream", "way",
        "weight",
    )  # fmt: skip

    def __init__(self, way: Way, upstream: Upstream) -> None:
        self.way = way
        self.upstream = upstream
        self.id = way.name.id
        self.weight = way.weight
        self.in_flight_max = way.in_flight_max
        self.account_id = way.account_id
        self.in_flight = 0
        """Of this gateway."""
        self.breaker = CLOSED
        self.trouble = ""
        """What the operator was told last."""
        self.changes = 0
        """Counts what this gateway has found out itself."""
        self.reports = 0
        """On their way to Redis."""

    def __repr__(self) -> str:
        return f"Credential({self.id}, {self.breaker.kind or 'closed'}, {self.in_flight} in flight)"


class Pool:
    """See the module's docstring. `transport_for`: the way through a proxy, "" for none. Raises ConfigError."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        transport_for: Callable[[str], httpx2.AsyncBaseTransport],
        metrics: Metrics,
        upstreams: Upstreams | None = None,
        sealer: Sealer | None = None,
    ) -> None:
        self._static = credentials.from_environment(config)
        self._keyless = credentials.without_a_key(config)
        self._lease_s = float(config.lease_seconds)
        self._period_s = min(_REFRESH_S, self._lease_s / 4)
        self._transport_for = transport_for
        self._transports: dict[str, httpx2.AsyncBaseTransport] = {}
        self._metrics = metrics
        self._store = upstreams
        self._sealer = sealer or Sealer("")
        self._stored: list[Stored] | None = None
        self._credentials: list[Credential] = []
        self._dedicated: frozenset[str] = frozenset()
        self._unusable: frozenset[Way] = frozenset()
        self._choices: dict[str, list[Credential]] = {}
        """By account: what it may use, the one it sticks to first."""
        self._slots: dict[tuple[str, str], float] = {}
        """Slots taken in Redis, by credential and request → when they are to be renewed."""
        self._empty = False
        self._clock_ms = clock.unix_ms() - _monotonic_ms()
        """Redis's clock less our monotonic one."""
        self._install([])
        metrics.gauge("relay_upstream_credentials", lambda: len(self._credentials))
        metrics.gauge(
            "relay_upstream_open_breakers", lambda: sum(one.breaker.until_ms > 0 for one in self._credentials)
        )

    # -- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, account_id: str, barred: Collection[Credential] = ()) -> Credential | None:
        """Where a request of the account goes; None if nothing is free to take it. `barred` ones do not count."""
        options = self._choices.get(account_id) or self._options(account_id)
        if options and self._is_free(options[0]) and options[0] not in barred:
            return options[0]
        free = [one for one in options[1:] if one not in barred and self._is_free(one)]
        return selection.least_loaded(free, account_id) if free else None

    def count(self, account_id: str) -> int:
        """How many credentials the account may use, whatever their state. None at all: the operator is told."""
        count = len(self._options(account_id))
        if not count and not self._empty:
            self._empty = True
            self._metrics.add("relay_upstream_alarms_total", "none")
            _log.error("there is no upstream credential that %s may use", account_id)
        return count

    def last_resort(self, account_id: str, barred: Collection[Credential] = ()) -> Credential | None:
        """Where a request goes when nothing is free: to one that is out only for failures in a row. The upstream may be well
        again at any moment, and a caller is better served by a try than by a refusal. One that answers with errors comes before
        one that cannot be reached; the least loaded would be the one that fails fastest."""
        out = [one for one in self._options(account_id) if one not in barred and one.breaker.is_passing]
        return min(out, key=lambda one: (one.breaker.kind == "connect", one.breaker.until_ms), default=None)

    def wait_s(self, account_id: str, barred: Collection[Credential] = ()) -> float | None:
        """How long a request should wait at least for one of those that may yet take it; None if none will."""
        now = self.now_ms()
        waits = [
            0.0 if one.breaker.is_passing or self._is_free(one) else _BUSY_S
            for one in self._options(account_id)
            if one not in barred and (one.breaker.is_passing or one.breaker.state(now) != "open")
        ]
        return min(waits) if waits else None

    def back_in_s(self, account_id: str) -> float | None:
        """Seconds until one may be well again: what a caller is told; None if there is none."""
        now = self.now_ms()
        return min((max(one.breaker.until_ms - now, 0) / 1000 for one in self._options(account_id)), default=None)

    async def enter(self, credential: Credential, request_id: str, *, anyway: bool = False) -> bool:
        """Begin a request there; False if it has to go elsewhere. What was begun is to be left. `anyway`: as a last resort,
        whatever its breaker says."""
        credential.in_flight += 1
        if credential.in_flight_max is None and not credential.breaker.until_ms:
            return True
        try:
            entered = await self._take_slot(credential, request_id) and (anyway or await self._take_probe(credential))
        except BaseException:
            self.leave(credential, request_id)
            raise
        if not entered:
            self.leave(credential, request_id)
        return entered

    def leave(self, credential: Credential, request_id: str) -> None:
        """The request has ended there."""
        credential.in_flight -= 1
        if credential.in_flight_max is not None and self._slots.pop((credential.id, request_id), 0) and self._store:
            scripts.heed(self._store.release(credential.id, request_id))

    # -- finding out -------------------------------------------------------------------------------------------------

    def failed(
        self, credential: Credential, kind: Kind, *, retry_after_s: float | None = None, trouble: Kind | None = None
    ) -> None:
        """Hold a failure against a credential. `trouble` is what the operator is told of it, whatever its breaker does."""
        now = self.now_ms()
        credential.breaker = credential.breaker.failed(kind, now, rate_ms=rate_ms(retry_after_s))
        if trouble or credential.breaker.until_ms > now:
            self._alarm(credential, trouble or credential.breaker.kind)
        if self._store is not None:
            self._report(credential, self._store.failed(credential.way.name, kind, retry_after_s=retry_after_s))

    def succeeded(self, credential: Credential) -> None:
        """It works: nothing to do, unless something is held against it."""
        if credential.breaker is CLOSED and not credential.trouble:
            return
        if credential.breaker.until_ms > self.now_ms() and not credential.breaker.is_passing:  # it was sent before that
            return
        if credential.trouble:
            credential.trouble = ""
            _log.warning("upstream %s works again", credential.id)
        if credential.breaker is not CLOSED:
            credential.breaker = CLOSED
            if self._store is not None:
                self._report(credential, self._store.succeeded(credential.way.name))

    def now_ms(self) -> int:
        """By Redis's clock."""
        return _monotonic_ms() + self._clock_ms

    # -- sharing -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow Redis until cancelled."""
        away = False
        while True:
            try:
                await self.refresh()
                away = False
            except StoreUnavailable as error:
                if not away:
                    _log.warning("upstream credentials stay as they are while Redis is away: %s", error)
                away = True
            except Exception:  # noqa: BLE001 - what cannot be read must not stop what is known from working
                _log.exception("upstream credentials stay as they are")
            await asyncio.sleep(self._period_s)

    async def refresh(self) -> None:
        """Learn what is in Redis, and keep the slots this gateway has there. Raises StoreUnavailable; all stays as it is then."""
        if self._store is None:
            return
        self._renew_slots(self._store)
        before = [(one, one.changes) for one in self._credentials if not one.reports]
        shared = await self._store.read_all()
        self._clock_ms = shared.now_ms - _monotonic_ms()
        for credential, changes in before:
            if credential.changes == changes:  # else what we have found out since is newer
                credential.breaker = shared.breakers.get(credential.way.name, CLOSED)
        if shared.credentials != self._stored:
            self._stored = shared.credentials
            self._install(credentials.from_redis(shared.credentials, self._sealer))
            for credential in self._credentials:
                if not credential.changes:
                    credential.breaker = shared.breakers.get(credential.way.name, CLOSED)

    async def aclose(self) -> None:
        """Close the ways upstream."""
        await asyncio.gather(*(transport.aclose() for transport in self._transports.values()))

    # -- within ------------------------------------------------------------------------------------------------------

    def _options(self, account_id: str) -> list[Credential]:
        options = self._choices.get(account_id)
        if options is None:
            if len(self._choices) >= _ACCOUNTS_MAX:
                self._choices.clear()
            options = selection.for_account(self._credentials, account_id, self._dedicated)
            if options:
                first = selection.first_choice(options, account_id)
                options.sort(key=lambda one: one is not first)
            self._choices[account_id] = options
        return options

    def _is_free(self, credential: Credential) -> bool:
        cap, breaker = credential.in_flight_max, credential.breaker
        if cap is not None and credential.in_flight >= cap:
            return False
        return not breaker.until_ms or breaker.may_probe(self.now_ms())

    async def _take_slot(self, credential: Credential, request_id: str) -> bool:
        if credential.in_flight_max is None:
            return True
        if self._store is None:
            return credential.in_flight <= credential.in_flight_max
        slot = (credential.id, request_id)
        self._slots[slot] = time.monotonic() + self._lease_s / 3
        try:
            return await self._store.take(*slot, in_flight_max=credential.in_flight_max, lease_s=self._lease_s)
        except StoreUnavailable:  # the cap of this gateway alone holds still
            return credential.in_flight <= credential.in_flight_max

    async def _take_probe(self, credential: Credential) -> bool:
        """Whether the request may go there although the breaker is not closed; of this gateway's, the first to ask asks Redis."""
        now = self.now_ms()
        if not credential.breaker.may_probe(now):
            return False
        if credential.breaker.state(now) == "closed":
            return True
        credential.breaker = credential.breaker.probed(now)
        credential.changes += 1
        if self._store is None:
            return True
        try:
            may_try, seen = await self._store.take_probe(credential.way.name)
        except StoreUnavailable:
            return True
        if seen.breaker is not None and not credential.reports:
            credential.breaker = seen.breaker
        return may_try

    def _report(self, credential: Credential, call: Awaitable[Seen]) -> None:
        credential.changes += 1
        credential.reports += 1
        spawn(self._adopt(credential, call), name="report-upstream")

    async def _adopt(self, credential: Credential, call: Awaitable[Seen]) -> None:
        """What all gateways have seen together takes the place of what this one has."""
        seen = None
        try:
            seen = await call
        except StoreUnavailable as error:
            _log.warning("what was found out of upstream %s is known here only: %s", credential.id, error)
        finally:
            credential.reports -= 1
        if seen is not None and seen.breaker is not None and not credential.reports:
            credential.breaker = seen.breaker

    def _renew_slots(self, store: Upstreams) -> None:
        now = time.monotonic()
        for slot in [slot for slot, due in self._slots.items() if due <= now]:
            self._slots[slot] = now + self._lease_s / 3
            scripts.heed(store.renew(*slot, lease_s=self._lease_s))

    def _install(self, stored: list[Way]) -> None:
        """Use these beside the environment's from now on; whoever is under way elsewhere ends there."""
        ways = [*self._static, *stored] or self._keyless
        known = {one.way: one for one in self._credentials}
        made = {way: known.get(way) or self._made(way) for way in ways if not way.disabled}
        self._credentials = [one for one in made.values() if one is not None]
        self._unusable = frozenset(way for way, one in made.items() if one is None)
        self._dedicated = frozenset(way.account_id for way in ways if way.account_id)
        self._choices = {}
        self._empty = False

    def _made(self, way: Way) -> Credential | None:
        reason = way.unusable
        if not reason:
            try:
                transport = self._transports.get(way.proxy_url)
                if transport is None:
                    transport = self._transports[way.proxy_url] = self._transport_for(way.proxy_url)
                return Credential(way, Upstream(transport, url=way.base_url, api_key=way.api_key))
            except (ValueError, httpx2.InvalidURL):
                reason = "its base URL or its proxy cannot be used"
        if way not in self._unusable:
            self._metrics.add("relay_upstream_alarms_total", "unusable")
            _log.error("upstream %s is left out: %s", way.name.id, reason)
        return None

    def _alarm(self, credential: Credential, kind: str) -> None:
        """Tell the operator, once for each new trouble."""
        if credential.trouble != kind:
            credential.trouble = kind
            self._metrics.add("relay_upstream_alarms_total", kind)
            _log.error("upstream %s: %s", credential.id, _TROUBLES[kind])


def _monotonic_ms() -> int:
    return int(time.monotonic() * 1000)
