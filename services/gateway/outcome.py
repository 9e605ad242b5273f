"""How a request ended and what is billed for it: one pure decision. The table stands in DESIGN.md, outcomes."""

from enum import Enum, auto
from typing import Any

import msgspec

from libs.common.events import Outcome
from libs.common.pricing import is_free_refusal
from services.gateway.meter import Reading

_CHARS_PER_TOKEN = 4
_TOKENS_MAX = 100_000_000
"""More is no usage; a bucket's arithmetic stays exact below it."""


class Ending(Enum):
    """Why the relay stopped reading from the upstream."""

    ANSWERED = auto()
    """The upstream's body came to a clean end."""
    BROKE = auto()
    """The upstream could not be reached, broke off, or sent an error inside the stream."""
    ABANDONED = auto()
    """The caller left, and the account cancels or the drain cap was reached."""
    SHUT_DOWN = auto()
    """We had to stop before the upstream was done."""


class Verdict(msgspec.Struct, frozen=True):
    """The outcome and the usage to be billed."""

    outcome: Outcome
    usage: dict[str, Any]


_FREE = Verdict("free", {})


def judge(ending: Ending, status: int, reading: Reading, *, input_estimated_tokens: int) -> Verdict:
    """Which row of the table applies. `status` is the upstream's, 0 if none came."""
    if status >= 400:
        return _FREE
    if reading.final and is_free_refusal(reading.stop_reason, content_empty=reading.content_empty):
        return _FREE
    if (
        ending is Ending.ABANDONED and not reading.error_type
    ):  # after an error event nothing more comes: that is a break
        return _abandoned(reading, input_estimated_tokens)
    if reading.usage is None:
        return _FREE
    if ending is Ending.ANSWERED and reading.complete:
        return Verdict("measured", reading.usage)
    return Verdict("partial", reading.usage)


def tokens_for_limits(usage: dict[str, Any]) -> tuple[int, int]:
    """Input and output tokens as rate limits count them: cache reads do not (PROTOCOL.md, section 7)."""
    return _count(usage, "input_tokens") + _count(usage, "cache_creation_input_tokens"), _count(usage, "output_tokens")


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return min(value, _TOKENS_MAX) if type(value) is int and value > 0 else 0


def _abandoned(reading: Reading, input_estimated_tokens: int) -> Verdict:
    if reading.final and reading.usage is not None:
        return Verdict("measured", reading.usage)
    received = -(-reading.text_chars // _CHARS_PER_TOKEN)
    if reading.usage_start is None:
        return Verdict("estimated", {"input_tokens": input_estimated_tokens, "output_tokens": received})
    start = reading.usage_start
    told = start.get("output_tokens")
    output = (told if type(told) is int else 0) + received
    # iterations, should they ever stand there so early, would be billed in the place of the estimate
    rest = {name: amount for name, amount in start.items() if name != "iterations"}
    return Verdict("estimated", {**rest, "output_tokens": output})
