"""Limits: how much an account, a member or a key may use. What is not set does not limit; an account has defaults."""

from typing import Annotated, Final, Literal

import msgspec

from libs.common import money

Scope = Literal["key", "member", "account"]
Rate = Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)]
"""Per minute. A token bucket that holds one minute's worth and refills continuously."""
Slots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Budget = Annotated[int, msgspec.Meta(ge=0, le=money.AMOUNT_NANOS_MAX)]
"""Nano-dollars."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Caps; None: not limited here (an account: the default)."""

    rpm: Rate | None = None
    """Message requests a minute."""
    itpm: Rate | None = None
    """Input tokens a minute, cache reads excluded."""
    otpm: Rate | None = None
    """Output tokens a minute: what was really said."""
    free_rpm: Rate | None = None
    """Requests a minute to the paths that cost nothing: count_tokens, the model list, /v1/usage."""
    in_flight: Slots | None = None
    """Message requests at once."""
    budget_day_nanos: Budget | None = None
    budget_week_nanos: Budget | None = None
    """Weeks begin on Monday."""
    budget_month_nanos: Budget | None = None
    budget_total_nanos: Budget | None = None


ACCOUNT_DEFAULTS: Final = Limits(rpm=1_000, itpm=2_000_000, otpm=400_000, free_rpm=1_000, in_flight=50)
"""The product's published defaults (PROTOCOL.md, section 7)."""
NO_DEFAULTS: Final = Limits()


def packed(limits: Limits, defaults: Limits = NO_DEFAULTS) -> str:
    """As the admission script reads them: nine numbers in the order of the fields, `-` for none; `` if there is no cap at all."""
    values = [
        getattr(limits, name) if getattr(limits, name) is not None else getattr(defaults, name)
        for name in Limits.__struct_fields__
    ]
    if all(value is None for value in values):
        return ""
    return " ".join("-" if value is None else str(value) for value in values)


def unpacked(text: str) -> Limits:
    """The inverse of `packed`, the defaults that went into it included."""
    values = [None if value == "-" else int(value) for value in text.split()]
    return Limits(**dict(zip(Limits.__struct_fields__, values, strict=True))) if values else Limits()
