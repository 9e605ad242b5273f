"""Money is an integer of nano-dollars (1 USD = 10**9). Nothing here or anywhere holds it in a float."""

import re
from typing import Final

NANOS_PER_USD: Final = 1_000_000_000
AMOUNT_NANOS_MAX: Final = 9_000_000_000_000_000
"""9 million USD: what one account may hold. Below 2**53, so that Lua compares it exactly (RELIABILITY.md, Redis)."""

_USD: Final = re.compile(r"(-?)(\d{1,9})(?:\.(\d{1,9}))?", re.ASCII)


def parse_usd(text: str) -> int:
    """Decimal string of dollars to nano-dollars: `"10.00"` → 10_000_000_000.

    Raises ValueError for anything but at most nine digits before and after the point, and beyond ±`AMOUNT_NANOS_MAX`.
    """
    match = _USD.fullmatch(text)
    if match is None:
        raise ValueError(f"not an amount of dollars: {text[:40]!r}; write it like 10.00")
    sign, whole, fraction = match.groups()
    nanos = int(whole) * NANOS_PER_USD + int((fraction or "").ljust(9, "0"))
    if nanos > AMOUNT_NANOS_MAX:
        raise ValueError("the amount is larger than 9,000,000.00 dollars")
    return -nanos if sign else nanos


def format_usd(nanos: int) -> str:
    """Nano-dollars to a decimal string: at least two places, as many as needed: 1_327_645_000 → `"1.327645"`."""
    sign = "-" if nanos < 0 else ""
    whole, fraction = divmod(abs(nanos), NANOS_PER_USD)
    return f"{sign}{whole}.{f'{fraction:09d}'.rstrip('0').ljust(2, '0')}"


def round_half_up(numerator: int, denominator: int) -> int:
    """The one rounding of money: numerator/denominator to the nearest integer, halves upwards. Both non-negative."""
    return (2 * numerator + denominator) // (2 * denominator)
