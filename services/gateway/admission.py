"""Who calls, and whether the request may go upstream. Decided in Redis, afresh for every request.

Only what can never change is remembered here: which account and key a key's hash belongs to.
"""

from typing import Final

import msgspec

from libs.common import apikeys, money
from libs.common.balances import Balances, Granted, Refused, StoreUnavailable
from libs.common.directory import Directory
from libs.common.errors import BadRequest, InsufficientBalance, NotFound, Overloaded, RelayError, Unauthenticated
from libs.common.pricebook import PriceBook
from libs.common.pricing import can_price
from services.gateway.headers import Headers, credential
from services.gateway.peek import Ask

_KNOWN_KEYS_MAX: Final = 100_000
_NO_KEY: Final = "No API key. Send your key as x-api-key or as Authorization: Bearer."
_BAD_KEY: Final = "Invalid API key. Check that it is complete; keys of this relay start with sk-cr-."
_INACTIVE_KEY: Final = "This API key is not active. Create a new one, or ask the owner of the account to enable it."
_INACTIVE_ACCOUNT: Final = "This account is not active. Ask the operator of this relay."
_STORE_AWAY: Final = "The relay cannot check keys right now. Nothing was charged; please try again."


class Principal(msgspec.Struct, frozen=True):
    """The authenticated caller."""

    account_id: str
    key_id: str


class Admission:
    """The gateway's gate."""

    def __init__(self, directory: Directory, balances: Balances) -> None:
        self._directory = directory
        self._balances = balances
        self._known: dict[str, Principal] = {}

    async def authenticate(self, headers: Headers) -> Principal:
        """The caller behind the credential. Whether the key is active is decided later, by `admit` or `check_active`.

        Raises Unauthenticated, or Overloaded when Redis cannot be asked.
        """
        key = credential(headers)
        if key is None:
            raise Unauthenticated(_NO_KEY)
        sha256 = apikeys.hash_key(key)
        principal = self._known.get(sha256)
        if principal is None:
            if not apikeys.is_well_formed(key):
                raise Unauthenticated(_BAD_KEY)
            principal = await self._look_up(sha256)
        return principal

    async def admit(self, principal: Principal) -> Granted:
        """Let a message request through, or raise the RelayError that says why not."""
        try:
            decision = await self._balances.admit(principal.account_id, principal.key_id)
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if isinstance(decision, Refused):
            raise _refusal(decision)
        return decision

    async def check_active(self, principal: Principal) -> None:
        """For paths that cost nothing: key and account must be active, the balance does not matter."""
        try:
            active = await self._directory.key_is_active(principal.account_id, principal.key_id)
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if not active:
            raise Unauthenticated(_INACTIVE_KEY)

    async def _look_up(self, sha256: str) -> Principal:
        try:
            found = await self._directory.find_key(sha256)
        except StoreUnavailable:
            raise Overloaded(_STORE_AWAY) from None
        if found is None:
            raise Unauthenticated(_BAD_KEY)
        if len(self._known) >= _KNOWN_KEYS_MAX:
            self._known.clear()  # rare, and cheap to fill again
        principal = self._known[sha256] = Principal(*found)
        return principal


def check_models(book: PriceBook, ask: Ask) -> None:
    """Raise NotFound for a model, BadRequest for a way of serving it, that has no price: unknown is refused, never guessed."""
    for model in (ask.model, *ask.other_models):
        if book.find(model) is None:
            raise NotFound(f"model: {model[:128]}")
        if not can_price(book, model, speed=ask.speed, inference_geo=None):
            raise BadRequest(
                f"speed: {model[:128]} is not on offer here at speed {str(ask.speed)[:32]!r}; leave the field out."
            )
        if not can_price(book, model, inference_geo=ask.inference_geo):
            raise BadRequest(
                f"inference_geo: {str(ask.inference_geo)[:32]!r} is not on offer here; leave the field out."
            )


def _refusal(refused: Refused) -> RelayError:
    match refused.by:
        case "key":
            return Unauthenticated(_INACTIVE_KEY)
        case "account":
            return Unauthenticated(_INACTIVE_ACCOUNT)
        case "balance":
            available = money.format_usd(int(refused.detail))
            return InsufficientBalance(
                f"Your balance is too low: {available} USD available. Add credit to the account and try again.",
                available_usd=available,
            )
