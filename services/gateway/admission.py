"""Who calls, and whether the request may go upstream. Decided in Redis, afresh for every request.

Only what can never change is remembered here: which account and key a key's hash belongs to.
"""

import asyncio
from typing import Final

import msgspec

from libs.common import apikeys
from libs.common.addresses import throttle_group
from libs.common.directory import Directory
from libs.common.errors import BadRequest, NotFound, Overloaded, RateLimited, RelayError, Unauthenticated
from libs.common.events import VERSION_EXPIRED, UsageRecorded, encode_event
from libs.common.gates import Gates
from libs.common.leases import Admission, Checked, Granted, Leases, Refused
from libs.common.pricebook import PriceBook
from libs.common.pricing import can_price
from libs.common.scripts import StoreUnavailable
from libs.common.standing import Standing, Standings
from services.gateway import hold, recovery, refusals
from services.gateway.clock import ClockCheck
from services.gateway.headers import Headers, credential
from services.gateway.keeper import LeaseKeeper
from services.gateway.peek import Ask
from services.gateway.refusal_counts import RefusalCounts
from services.gateway.spool import Spool

_KNOWN_KEYS_MAX: Final = 100_000
_BLOCKED_MAX: Final = 10_000
_NO_KEY: Final = "No API key. Send your key as x-api-key or as Authorization: Bearer."
_BAD_KEY: Final = "Invalid API key. Check that it is complete; keys of this relay start with sk-cr-."
_STORE_AWAY: Final = "The relay cannot check keys right now. Nothing was charged; please try again."
_SPOOL_FULL: Final = "The relay cannot record usage right now. Nothing was charged; please try again."
_CLOCK_WRONG: Final = (
    "The clock of this gateway is {seconds} s wrong, so it takes no requests. Nothing was charged; please try again."
)
_TOO_MANY_KEYS: Final = (
    "Too many API keys that do not exist were tried from this address. Check your key, then try again."
)


class Principal(msgspec.Struct, frozen=True):
    """The authenticated caller."""

    account_id: str
    key_id: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A message request as far as admission and its event are concerned."""

    id: str
    principal: Principal
    address: str
    """The caller's, 32 hex digits."""
    ask: Ask
    book: PriceBook
    """The one it goes by from beginning to end."""
    models: tuple[str, ...]
    """Ids of that book."""
    path: str
    client: str
    """Client family."""
    bytes_in: int


class Gate:
    """The gateway's gate."""

    def __init__(
        self,
        directory: Directory,
        leases: Leases,
        gates: Gates,
        keeper: LeaseKeeper,
        spool: Spool,
        clock: ClockCheck,
        counts: RefusalCounts,
        standings: Standings,
        *,
        unknown_keys_per_minute: int,
    ) -> None:
        self._directory = directory
        self._leases = leases
        self._gates = gates
        self._keeper = keeper
        self._spool = spool
        self._clock = clock
        self._counts = counts
        self._standings = standings
        self._unknown_keys_per_minute = unknown_keys_per_minute
        self._known: dict[str, Principal] = {}
        self._blocked: dict[str, float] = {}
        """Addresses that have tried too many keys → when they may try again, in the loop's time."""

    async def authenticate(self, headers: Headers, address: str) -> Principal:
        """The caller behind the credential. Whether the key is active is decided later, by `admit` or `check`.

        Raises Unauthenticated, RateLimited for an address that tries keys, or Overloaded when Redis cannot be asked.
        """
        key = credential(headers)
        if key is None:
            raise Unauthenticated(_NO_KEY)
        sha256 = apikeys.hash_key(key)
        principal = self._known.get(sha256)
        if principal is None:
            if not apikeys.is_well_formed(key):
                raise Unauthenticated(_BAD_KEY)
            principal = await self._look_up(sha256, throttle_group(address))
        return principal

    async def admit(self, request: Request) -> Granted:
        """Let a message request through, or raise the RelayError that says why not: then nothing is taken or charged."""
        if self._spool.is_full:
            raise Overloaded(_SPOOL_FULL)
        if self._clock.is_wrong:
            raise Overloaded(_CLOCK_WRONG.format(seconds=abs(self._clock.skew_ms) // 1000))
        principal = request.principal
        memo = self._memo(request)
        admission = Admission(
            request_id=request.id,
            account_id=principal.account_id,
            key_id=principal.key_id,
            address=request.address,
            models=request.models,
            input_tokens=request.ask.input_estimated_tokens,
            hold_nanos=hold.hold_nanos(request.book, request.ask),
            memo=memo,
        )
        try:
            decision = await self._leases.admit(admission)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            self._keeper.void(self._leases.lease_of(admission))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Overloaded(_STORE_AWAY) from None
        if isinstance(decision, Refused):
            if decision.reason == "closed" and decision.value:  # granted, and Redis died before it could say so
                self._keeper.void(self._leases.lease_of(admission))
            self._counts.count(principal.account_id, principal.key_id, decision.reason)
            raise refusals.refusal(decision, book=request.book, ask=request.ask)
        self._keeper.keep(decision.lease)
        self._spool.open(request.id, recovery.open_note(decision.lease.member_id, decision.multiplier_ppm, memo))
        return decision

    async def check(self, principal: Principal, address: str, models: tuple[str, ...] = ()) -> Checked:
        """For paths that cost nothing: the balance does not matter. Raises RelayError."""
        try:
            decision = await self._leases.check(principal.account_id, principal.key_id, address=address, models=models)
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if isinstance(decision, Refused):
            self._counts.count(principal.account_id, principal.key_id, decision.reason)
            raise refusals.refusal(decision)
        return decision

    async def standing(self, principal: Principal, address: str) -> tuple[Checked, Standing]:
        """How a caller stands whom `check` lets pass; both are asked in one round trip. Raises RelayError."""
        try:
            checked, standing = await asyncio.gather(
                self.check(principal, address), self._standings.read(principal.account_id, principal.key_id)
            )
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if standing is None:
            raise refusals.checking()
        return checked, standing

    def _memo(self, request: Request) -> bytes:
        """What is recorded if this gateway dies and nothing else is known: the estimated input (DESIGN.md, outcomes)."""
        return encode_event(
            UsageRecorded(
                request_id=request.id,
                version=VERSION_EXPIRED,
                account_id=request.principal.account_id,
                key_id=request.principal.key_id,
                path=request.path,
                model_asked=request.ask.model,
                model_answered=request.ask.model,
                stream=request.ask.stream,
                status=0,
                outcome="expired",
                usage={"input_tokens": request.ask.input_estimated_tokens},
                price_book_version=request.book.version,
                multiplier_ppm=0,
                bytes_in=request.bytes_in,
                client=request.client,
            )
        )

    async def _look_up(self, sha256: str, group: str) -> Principal:
        try:
            found = await self._directory.find_key(sha256)
            if found is None:
                if not await self._gates.all_open():  # Redis has lost something: this key, perhaps
                    raise refusals.checking()
                raise await self._unknown(group)
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if len(self._known) >= _KNOWN_KEYS_MAX:
            self._known.clear()  # rare, and cheap to fill again
        principal = self._known[sha256] = Principal(*found)
        return principal

    async def _unknown(self, group: str) -> RelayError:
        """The answer to a key that does not exist. Who has tried too many is told to wait; a key that does exist is let in from
        the same address all the while, because many callers may share it."""
        now = asyncio.get_running_loop().time()
        wait_s = self._blocked.get(group, 0.0) - now
        if wait_s <= 0:
            wait_s = await self._leases.throttle(group, per_minute=self._unknown_keys_per_minute) / 1000
            if wait_s <= 0:
                return Unauthenticated(_BAD_KEY)
            if len(self._blocked) >= _BLOCKED_MAX:
                self._blocked.clear()
            self._blocked[group] = now + wait_s
        return RateLimited(_TOO_MANY_KEYS, retry_after_s=wait_s)


def priced_models(book: PriceBook, ask: Ask) -> tuple[str, ...]:
    """The price book's ids of the models asked for: unknown is refused, never guessed.

    Raises NotFound for a model, BadRequest for a way of serving it, that has no price.
    """
    found = []
    for model in (ask.model, *ask.other_models):
        row = book.find(model)
        if row is None:
            raise NotFound(f"model: {model[:128]}")
        if not can_price(book, model, speed=ask.speed, inference_geo=None):
            raise BadRequest(
                f"speed: {model[:128]} is not on offer here at speed {str(ask.speed)[:32]!r}; leave the field out."
            )
        if not can_price(book, model, inference_geo=ask.inference_geo):
            raise BadRequest(
                f"inference_geo: {str(ask.inference_geo)[:32]!r} is not on offer here; leave the field out."
            )
        found.append(row.id)
    return tuple(found)
