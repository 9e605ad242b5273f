"""Tokens to money: pure, integer, from a dated price book. The rules stand in PROTOCOL.md, section 6."""

from typing import Final, Literal

import msgspec

from libs.common import money, pricebook
from libs.common.events import UsageRecorded
from libs.common.pricebook import ModelRow, PriceBook, Rates
from libs.common.usage import ModelCall, Usage, UsageUnreadable, model_calls, text, web_searches

PriceClass = Literal["input", "output", "cache_write_5m", "cache_write_1h", "cache_read", "web_search"]
PPM: Final = 1_000_000
ATTOS_PER_NANO: Final = 10**9
TOTAL_NANOS_MAX: Final = 10**15 - 1
"""What one response may cost: settlement takes at most 15 digits (lua/settle.lua). More is parked, not retried for ever."""
MULTIPLIER_PPM_MAX: Final = 900_000_000
"""900 times public prices: the dearest unit price is then still an Int64 of atto-dollars, as the archive keeps it."""

_TOKEN_CLASSES: Final[tuple[PriceClass, ...]] = (
    "input",
    "cache_write_5m",
    "cache_write_1h",
    "cache_read",
    "output",
)
_GEO_PPM: Final[dict[str | None, int]] = {
    None: PPM,
    "": PPM,
    "global": PPM,
    "not_available": PPM,
    "us": 1_100_000,
}
_TIER_PPM: Final[dict[str | None, int]] = {None: PPM, "standard": PPM, "priority": PPM, "batch": 500_000}
_SPEEDS: Final = frozenset({None, "standard", "fast"})


class Unpriced(ValueError):
    """A model, or a way of serving it, that the price book has no row for. Never priced at zero, never guessed."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a receipt. The amounts of a receipt add up to its total exactly."""

    model: str
    price_class: PriceClass
    quantity: int
    """Tokens, or searches."""
    unit_price_attos: int
    """Atto-dollars (1e-18 USD) per token or search, modifiers and the account's multiplier included."""
    amount_nanos: int


class Priced(msgspec.Struct, frozen=True, kw_only=True):
    """What one response costs."""

    total_nanos: int
    lines: list[Line]


_PPM_SQUARED: Final = PPM * PPM
FREE: Final = Priced(total_nanos=0, lines=[])


def is_free_refusal(stop_reason: str | None, *, content_empty: bool) -> bool:
    """A refusal is free when nothing was said: no content block, or one empty text."""
    return stop_reason == "refusal" and content_empty


def can_price(book: PriceBook, model: str, *, speed: str | None = None, inference_geo: str | None = None) -> bool:
    """Whether a request may be forwarded: everything it asks for has a price."""
    row = book.find(model)
    if row is None or speed not in _SPEEDS or inference_geo not in _GEO_PPM:
        return False
    return speed != "fast" or row.fast is not None


def geo_ppm(inference_geo: str | None) -> int:
    """What a region adds to every price, in parts per million. Raises Unpriced."""
    if inference_geo not in _GEO_PPM:
        raise Unpriced(f"no price for inference_geo {str(inference_geo)[:64]!r}")
    return _GEO_PPM[inference_geo]


def price_event(event: UsageRecorded) -> Priced:
    """What an event costs, by the book its version names. Raises Unpriced, UsageUnreadable, LookupError (no such book)."""
    if event.outcome == "free":
        return FREE
    return price(
        event.usage,
        book=pricebook.load(event.price_book_version),
        model_asked=event.model_asked,
        model_answered=event.model_answered,
        cache_ttl_1h=event.cache_ttl_1h,
        multiplier_ppm=event.multiplier_ppm,
        declined_models=event.declined_models,
    )


def price(
    usage: Usage,
    *,
    book: PriceBook,
    model_asked: str,
    model_answered: str,
    cache_ttl_1h: bool,
    multiplier_ppm: int,
    declined_models: tuple[str, ...] = (),
) -> Priced:
    """The receipt of one response. `multiplier_ppm` is the account's, 1_000_000 = public prices.

    Raises Unpriced for a model, tier, region, speed or multiplier without a price, UsageUnreadable for amounts no rule
    covers.
    """
    if not 0 <= multiplier_ppm <= MULTIPLIER_PPM_MAX:
        raise Unpriced(f"a multiplier of {multiplier_ppm} ppm is out of range")
    modifier_ppm, speed = _modifier_ppm(usage), text(usage, "speed")
    calls = model_calls(
        usage,
        model_asked=model_asked,
        model_answered=model_answered,
        cache_ttl_1h=cache_ttl_1h,
        declined_models=declined_models,
    )
    bill = _Bill(multiplier_ppm)
    for call in calls:
        if not call.declined:
            _add_call(bill, call, book, speed=speed, modifier_ppm=modifier_ppm)
    bill.add(model_answered, "web_search", web_searches(usage), book.web_search, PPM)
    if bill.total_nanos > TOTAL_NANOS_MAX:
        raise UsageUnreadable("a response that costs more than 999,999 dollars")
    return Priced(total_nanos=bill.total_nanos, lines=bill.lines)


def _add_call(bill: "_Bill", call: ModelCall, book: PriceBook, *, speed: str | None, modifier_ppm: int) -> None:
    row = book.find(call.model)
    if row is None:
        raise Unpriced(f"no price for model {call.model[:64]!r} in book {book.version}")
    rates = _rates(row, call, speed)
    for price_class in _TOKEN_CLASSES:
        if quantity := getattr(call, price_class):
            bill.add(call.model, price_class, quantity, getattr(rates, price_class), modifier_ppm)


def _rates(row: ModelRow, call: ModelCall, speed: str | None) -> Rates:
    if speed not in _SPEEDS:
        raise Unpriced(f"no price for speed {str(speed)[:64]!r}")
    if speed == "fast":
        if row.fast is None:
            raise Unpriced(f"no fast price for model {row.id!r}")
        return row.fast
    if row.long_context_above is not None and call.context > row.long_context_above:
        assert row.long_context is not None
        return row.long_context
    return row.rates


def _modifier_ppm(usage: Usage) -> int:
    geo, tier = text(usage, "inference_geo"), text(usage, "service_tier")
    if tier not in _TIER_PPM:
        raise Unpriced(f"no price for service_tier {str(tier)[:64]!r}")
    return geo_ppm(geo) * _TIER_PPM[tier] // PPM


class _Bill:
    """Adds up exactly and rounds once: each amount is the step of the rounded running sum, so they add up to it."""

    def __init__(self, multiplier_ppm: int) -> None:
        self.lines: list[Line] = []
        self.total_nanos = 0
        self._multiplier_ppm = multiplier_ppm
        self._sum_attos = 0

    def add(self, model: str, price_class: PriceClass, quantity: int, rate: int, modifier_ppm: int) -> None:
        if not quantity:
            return
        unit, rest = divmod(rate * modifier_ppm * self._multiplier_ppm, _PPM_SQUARED)
        if rest:
            raise Unpriced(f"the price of {model} {price_class} is finer than an atto-dollar")
        self._sum_attos += quantity * unit
        total = money.round_half_up(self._sum_attos, ATTOS_PER_NANO)
        self.lines.append(
            Line(
                model=model,
                price_class=price_class,
                quantity=quantity,
                unit_price_attos=unit,
                amount_nanos=total - self.total_nanos,
            )
        )
        self.total_nanos = total
