"""Which part of a promotion is spent. Pure.

A promotion is spent before credits are, and of several the one that ends first. What is left at its end is taken back.
"""

from collections.abc import Sequence

import msgspec


class Promotion(msgspec.Struct, frozen=True):
    """A credit that ends. Nano-dollars and Unix milliseconds."""

    credit_id: str
    amount_nanos: int
    begins_at_ms: int
    ends_at_ms: int


class Spend(msgspec.Struct, frozen=True):
    """What an account spent from a time on, until the next one in the list."""

    from_ms: int
    nanos: int


def edges(promotions: Sequence[Promotion]) -> list[int]:
    """The times between which what is spent must be known: between two of them, the promotions are the same."""
    return sorted({time for one in promotions for time in (one.begins_at_ms, one.ends_at_ms)})


def unspent(promotions: Sequence[Promotion], spends: Sequence[Spend]) -> dict[str, int]:
    """Credit id → what was left of it at its end. `spends` has an entry for each of `edges`, in their order."""
    left = {one.credit_id: one.amount_nanos for one in promotions}
    by_end = sorted(promotions, key=lambda one: (one.ends_at_ms, one.credit_id))
    for spend in spends:
        nanos = spend.nanos
        for one in by_end:
            if one.begins_at_ms <= spend.from_ms < one.ends_at_ms:
                taken = min(nanos, left[one.credit_id])
                left[one.credit_id] -= taken
                nanos -= taken
    return left
