"""How much of an account's money a request holds while it is under way: its estimated input, and what it may say. Pure.

An estimate, not a bound: advisors, tool loops and searches can cost more, and settlement is the truth (PROTOCOL.md, section 6).
"""

from typing import Final

from libs.common.pricebook import ModelRow, PriceBook, Rates
from libs.common.pricing import ATTOS_PER_NANO, PPM, geo_ppm
from services.gateway.peek import Ask

_PER_NANO: Final = ATTOS_PER_NANO * PPM


def hold_nanos(book: PriceBook, ask: Ask) -> int:
    """Nano-dollars at public prices, rounded up: of all models named, the dearest."""
    return max(_hold(row, ask, min(ask.max_tokens, row.hold_output_tokens_max)) for row in _rows(book, ask))


def max_tokens_affordable(book: PriceBook, ask: Ask, available_nanos: int, multiplier_ppm: int) -> int | None:
    """The largest `max_tokens` whose hold fits into what is available; None if not even the input does."""
    fits = [_affordable(row, ask, available_nanos, multiplier_ppm) for row in _rows(book, ask)]
    return None if any(one is None for one in fits) else min(one for one in fits if one is not None)


def _affordable(row: ModelRow, ask: Ask, available_nanos: int, multiplier_ppm: int) -> int | None:
    def costs(output_tokens: int) -> int:
        return -(-_hold(row, ask, output_tokens) * multiplier_ppm // PPM)

    if costs(0) > available_nanos:
        return None
    if costs(row.hold_output_tokens_max) <= available_nanos:
        return row.output_tokens_max
    low, high = 0, row.hold_output_tokens_max
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if costs(middle) <= available_nanos else (low, middle)
    return low


def _rows(book: PriceBook, ask: Ask) -> list[ModelRow]:
    return [row for model in (ask.model, *ask.other_models) if (row := book.find(model)) is not None]


def _hold(row: ModelRow, ask: Ask, output_tokens: int) -> int:
    rates = _rates(row, ask)
    attos = ask.input_estimated_tokens * rates.input + output_tokens * rates.output
    return -(-attos * geo_ppm(ask.inference_geo) // _PER_NANO)


def _rates(row: ModelRow, ask: Ask) -> Rates:
    if ask.speed == "fast" and row.fast is not None:
        return row.fast
    if row.long_context is not None and ask.input_estimated_tokens > (row.long_context_above or 0):
        return row.long_context
    return row.rates
