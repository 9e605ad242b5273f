"""A refusal in words: which limit, whose, how much of it is used, when it resets, and what to do. Pure.

Statuses and types: PROTOCOL.md, section 4. Claude Code shows these sentences as they are.
"""

from typing import Final

from libs.common import clock, money
from libs.common.errors import InsufficientBalance, NotFound, Overloaded, RateLimited, RelayError, Unauthenticated
from libs.common.leases import Refused
from libs.common.pricebook import PriceBook
from services.gateway import hold, ratelimits
from services.gateway.peek import Ask

_WHOSE: Final = {"key": "this API key", "member": "this member", "account": "this account"}
_UNITS: Final = {
    "requests": "requests a minute",
    "input": "input tokens a minute (cache reads do not count)",
    "output": "output tokens a minute",
    "free": "requests a minute to count_tokens, the model list and /v1/usage",
}
_INACTIVE_KEY: Final = "This API key is not active. Create a new one, or ask the owner of the account to enable it."
_INACTIVE_MEMBER: Final = "The member this API key belongs to is not active. Ask the owner of the account."
_INACTIVE_ACCOUNT: Final = "This account is not active. Ask the operator of this relay."
_NOT_FROM_HERE: Final = "This API key may not be used from your address. Ask the owner of the account to allow it."
_CLOSED: Final = (
    "The relay is checking its balances after a restart. Nothing was charged; please try again in a moment."
)
_HELD_RETRY_S: Final = 1


def refusal(refused: Refused, *, book: PriceBook | None = None, ask: Ask | None = None) -> RelayError:
    """The answer to a refused request; for one of money, `book` and `ask` are those of the request."""
    error = _error(refused, book, ask)
    if refused.figures is not None:
        error.headers |= {name.decode(): sent.decode() for name, sent in ratelimits.headers(refused.figures)}
    return error


def _error(refused: Refused, book: PriceBook | None, ask: Ask | None) -> RelayError:
    match refused.reason:
        case "key":
            return Unauthenticated(_INACTIVE_KEY)
        case "expired":
            expired = clock.iso_utc(int(refused.detail))
            return Unauthenticated(f"This API key expired at {expired}. Create a new one, or ask for a later date.")
        case "member":
            return Unauthenticated(_INACTIVE_MEMBER)
        case "account":
            return Unauthenticated(_INACTIVE_ACCOUNT)
        case "address":
            return Unauthenticated(_NOT_FROM_HERE)
        case "model":
            return NotFound(f"model: {_as_asked(refused.detail, book, ask)[:128]}")
        case "closed":
            return checking()
        case "balance":
            return _too_little(refused, book, ask)
        case "budget":
            left = max(refused.limit - refused.value, 0)
            fits = _max_tokens_for(left, refused, book, ask)
            return RateLimited(f"{_budget(refused)} {_until(refused, fits)}", retry_after_s=None)
        case _:
            return _passing(refused)


def checking() -> Overloaded:
    """The answer while Redis holds numbers that nobody has checked."""
    return Overloaded(_CLOSED, retry_after_s=_HELD_RETRY_S)


def _as_asked(model: str, book: PriceBook | None, ask: Ask | None) -> str:
    """The caller's own name for a model of the price book."""
    for named in (ask.model, *ask.other_models) if ask is not None else ():
        if book is not None and (row := book.find(named)) is not None and row.id == model:
            return named
    return model


def _passing(refused: Refused) -> RateLimited:
    """What passes by waiting."""
    whose, again = _WHOSE[refused.scope], "Please try again in a moment."
    match refused.reason:
        case "in_flight":
            text = f"{whose} has {refused.value} requests in flight, and may have {refused.limit}. {again}"
            return RateLimited(_capital(text), retry_after_s=_HELD_RETRY_S)
        case "budget_held":
            return RateLimited(
                f"{_budget(refused)} A part of it is held by requests in flight. {again}", retry_after_s=_HELD_RETRY_S
            )
        case "balance_held":
            needed, available = money.format_usd(refused.needed), money.format_usd(refused.limit)
            text = (
                f"This request may cost up to {needed} USD; {available} USD is free while others are in flight. {again}"
            )
            return RateLimited(text, retry_after_s=_HELD_RETRY_S)
    seconds = -(-refused.wait_ms // 1000)
    text = f"{whose} may use {refused.limit} {_UNITS[refused.reason]}; {refused.value} are left."
    if refused.needed > 1:
        text += f" This request needs about {refused.needed}."
    if refused.needed > refused.limit:
        text += " It is larger than a whole minute's worth, so it passes only when nothing else was sent for a minute."
    return RateLimited(_capital(f"{text} It would pass in {seconds} s."), retry_after_s=refused.wait_ms / 1000)


def _budget(refused: Refused) -> str:
    name = "total" if refused.detail == "total" else {"day": "daily", "week": "weekly"}.get(refused.detail, "monthly")
    spent, budget, needed = (money.format_usd(one) for one in (refused.value, refused.limit, refused.needed))
    text = f"The {name} budget of {_WHOSE[refused.scope]} is {budget} USD a {refused.detail}; {spent} USD is spent"
    if refused.detail == "total":
        text = f"The total budget of {_WHOSE[refused.scope]} is {budget} USD; {spent} USD is spent"
    return f"{text}, and this request may cost up to {needed} USD."


def _until(refused: Refused, fits: int) -> str:
    reset = f"resets at {clock.iso_utc(refused.reset_s * 1000)}" if refused.reset_s else "does not reset"
    smaller = f"Send max_tokens of at most {fits}, or ask" if fits else "Ask"
    return f"It {reset}. {smaller} the owner of the account to raise it."


def _too_little(refused: Refused, book: PriceBook | None, ask: Ask | None) -> InsufficientBalance:
    needed, available = money.format_usd(refused.needed), money.format_usd(refused.limit)
    fits = _max_tokens_for(refused.limit, refused, book, ask)
    what_to_do = "Add credit to the account"
    if fits:
        what_to_do += f", or send max_tokens of at most {fits}"
    return InsufficientBalance(
        f"Your balance is too low: this request may cost up to {needed} USD, and {available} USD is available. {what_to_do}.",
        needed_usd=needed,
        available_usd=available,
        max_tokens_affordable=fits,
    )


def _max_tokens_for(available_nanos: int, refused: Refused, book: PriceBook | None, ask: Ask | None) -> int:
    """What the same request may ask for and pass; 0 if it cannot."""
    if book is None or ask is None:
        return 0
    return hold.max_tokens_affordable(book, ask, available_nanos, refused.multiplier_ppm) or 0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
