"""What the pricing tests share: prices asked for in one line, and the oracle beside it."""

from typing import Any, Final

from libs.common import pricebook
from libs.common.pricing import Priced, price
from tests.invoice_fold import cost_nanos

BOOK: Final = pricebook.load()
MICRO: Final = 1000  # nano-dollars


def receipt(
    usage: dict[str, Any],
    model: str,
    *,
    asked: str = "",
    ttl_1h: bool = False,
    ppm: int = 1_000_000,
    declined: tuple[str, ...] = (),
) -> Priced:
    """The product's receipt."""
    return price(
        usage,
        book=BOOK,
        model_asked=asked or model,
        model_answered=model,
        cache_ttl_1h=ttl_1h,
        multiplier_ppm=ppm,
        declined_models=declined,
    )


def folded(
    usage: dict[str, Any],
    model: str,
    *,
    asked: str = "",
    ttl_1h: bool = False,
    ppm: int = 1_000_000,
    declined: tuple[str, ...] = (),
) -> int:
    """The independent fold's total, nano-dollars."""
    return cost_nanos(
        usage,
        model_asked=asked or model,
        model_answered=model,
        cache_ttl_1h=ttl_1h,
        multiplier_ppm=ppm,
        declined_models=declined,
    )
