"""What a response costs, worked out a second time: in fractions, from a table typed by hand, without the product's pricing code.

The table is PROTOCOL.md, section 8, and the rules are those of its section 6. Nothing here may import pricing, pricebook or
usage of `libs.common`: an error they share would not show.
"""

import re
from collections.abc import Collection
from fractions import Fraction
from typing import Any, Final

# USD per million tokens: input, output, cache read. Cache writes follow from the input price: 5 minutes 1.25×, 1 hour 2×.
PRICES: Final[dict[str, tuple[str, str, str]]] = {
    "claude-opus-4-7": ("15", "75", "1.50"),  # published; the public list says 5/25
    "claude-sonnet-4-6": ("3", "15", "0.30"),
    "claude-haiku-4-5": ("1", "5", "0.10"),
    "claude-fable-5-2": ("8", "40", "0.20"),
    "claude-fable-5-1": ("10", "50", "0.25"),
    "claude-fable-5": ("10", "50", "1"),
    "claude-opus-5-5": ("4", "20", "0.20"),
    "claude-opus-5": ("5", "25", "0.50"),
    "claude-opus-4-8": ("5", "25", "0.50"),
    "claude-opus-4-6": ("5", "25", "0.50"),
    "claude-opus-4-5": ("5", "25", "0.50"),
    "claude-sonnet-5-5": ("2", "10", "0.10"),
    "claude-sonnet-5": ("2", "10", "0.20"),
    "claude-sonnet-4-5": ("3", "15", "0.30"),
    "claude-sonnet-4": ("3", "15", "0.30"),
    "claude-haiku-5-5": ("0.10", "0.50", "0.01"),
    "claude-opus-4-1": ("15", "75", "1.50"),
    "claude-opus-4": ("15", "75", "1.50"),
}
# More input tokens than this, cached ones included, and every token of the call has the other price.
STEPS: Final[dict[str, tuple[int, tuple[str, str, str]]]] = {
    "claude-sonnet-4-6": (200_000, ("6", "22.50", "0.60")),  # cache multipliers on top: the read is 0.1 × 6
    "claude-haiku-5-5": (100_000, ("0.50", "2.50", "0.05")),
}
# `speed: fast`. The table gives input and output; the cache keeps its ratio to the input price.
FAST: Final[dict[str, tuple[str, str, str]]] = {
    "claude-opus-5-5": ("8", "40", "0.40"),
    "claude-opus-5": ("10", "50", "1"),
    "claude-opus-4-8": ("10", "50", "1"),
    "claude-fable-5-2": ("16", "80", "0.40"),
}
SEARCH_USD: Final = Fraction(10, 1000)
NANOS_PER_USD: Final = 10**9


def cost_nanos(
    usage: dict[str, Any],
    *,
    model_asked: str,
    model_answered: str,
    cache_ttl_1h: bool = False,
    multiplier_ppm: int = 1_000_000,
    declined_models: Collection[str] = (),
) -> int:
    """Nano-dollars of one response, rounded once, halves upwards. For a free outcome do not ask: it is 0.

    Raises KeyError for a model the table does not have.
    """
    dollars = Fraction(0)
    for entry, model in billed_calls(usage, model_asked, model_answered, declined_models):
        dollars += call_usd(entry, model, fast=usage.get("speed") == "fast", ttl_1h=cache_ttl_1h)
    if usage.get("inference_geo") == "us":
        dollars *= Fraction(11, 10)
    if usage.get("service_tier") == "batch":
        dollars /= 2
    dollars += SEARCH_USD * ((usage.get("server_tool_use") or {}).get("web_search_requests") or 0)
    nanos = dollars * NANOS_PER_USD * multiplier_ppm / 1_000_000
    return int(nanos + Fraction(1, 2))


def billed_calls(
    usage: dict[str, Any], model_asked: str, model_answered: str, declined_models: Collection[str]
) -> list[tuple[dict[str, Any], str]]:
    """The calls that cost something: the iterations where there are some, and the top level of the usage else."""
    entries = usage.get("iterations") or []
    if not entries:
        return [(usage, model_answered)]
    if "fallback_message" not in {entry["type"] for entry in entries}:
        return [(entry, entry.get("model") or model_answered) for entry in entries]
    declined = {undated(name) for name in declined_models}
    billed = []
    for entry in entries:
        model = entry.get("model") or model_asked
        silent = entry["type"] == "message" and (not entry.get("output_tokens") or undated(model) in declined)
        if not silent:
            billed.append((entry, model))
    return billed


def call_usd(entry: dict[str, Any], model: str, *, fast: bool, ttl_1h: bool) -> Fraction:
    """Dollars of one model call before the modifiers of its region and tier."""
    fresh, read, said = (entry.get(name) or 0 for name in ("input_tokens", "cache_read_input_tokens", "output_tokens"))
    written_5m, written_1h = cache_writes(entry, ttl_1h=ttl_1h)
    row = undated(model)
    prices = FAST[row] if fast else PRICES[row]
    if not fast and row in STEPS and fresh + read + written_5m + written_1h > STEPS[row][0]:
        prices = STEPS[row][1]
    price_in, price_out, price_read = (Fraction(price) / 1_000_000 for price in prices)
    return (
        fresh * price_in
        + written_5m * price_in * Fraction(5, 4)
        + written_1h * price_in * 2
        + read * price_read
        + said * price_out
    )


def cache_writes(entry: dict[str, Any], *, ttl_1h: bool) -> tuple[int, int]:
    """(5-minute, 1-hour) tokens: the split as far as the total goes, the rest by what the request asked for."""
    split = entry.get("cache_creation") or {}
    told_5m = split.get("ephemeral_5m_input_tokens") or 0
    told_1h = split.get("ephemeral_1h_input_tokens") or 0
    total = entry.get("cache_creation_input_tokens")
    if total is None:
        return told_5m, told_1h
    hour = min(told_1h, total)
    five = min(told_5m, total - hour)
    rest = total - hour - five
    return (five, hour + rest) if ttl_1h else (five + rest, hour)


def undated(model: str) -> str:
    """`claude-haiku-4-5-20251001` → `claude-haiku-4-5`; the two oldest also answer to `…-4-0`."""
    return re.sub(r"-20\d{6}$", "", model).removesuffix("-0")
