"""What a response says it used, and which model calls are to be paid for it. Rules and recordings: PROTOCOL.md, section 6.

A usage is the API's own JSON object, kept as it came (`dict[str, Any]`): what we do not know must not get lost.
"""

import re
from collections.abc import Collection
from typing import Any, Final, Literal, cast

import msgspec

CallKind = Literal["message", "compaction", "advisor_message", "fallback_message"]
Usage = dict[str, Any]

_CALL_KINDS: Final = frozenset({"message", "compaction", "advisor_message", "fallback_message"})
_TOKEN_FIELDS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
_CACHE_FIELDS: Final = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
_SERVER_TOOLS: Final = frozenset({"web_search_requests", "web_fetch_requests", "tool_search_requests"})
"""Counts of server tools: searches of the web are priced, fetches and searches among tools cost their tokens only."""
_NOT_COUNTED: Final = frozenset(
    {"service_tier", "inference_geo", "speed", "output_tokens_details", "fallback_credit", "type", "model"}
)
"""Fields that are not amounts: they say how the amounts are priced, split them for display, or report a credit."""
_KNOWN_OF_CALL: Final = _NOT_COUNTED | {*_TOKEN_FIELDS, "cache_creation"}
_KNOWN: Final = _KNOWN_OF_CALL | {"server_tool_use", "iterations"}


AMOUNT_MAX: Final = 10**9
"""More tokens or searches than this in one field is no answer of the API: the event is parked, not priced."""
ITERATIONS_MAX: Final = 10_000
_DATE: Final = re.compile(r"-20\d{6}$", re.ASCII)
_NAMES_SHOWN_MAX: Final = 5
_NAME_CHARS_MAX: Final = 64


class UsageUnreadable(ValueError):
    """A usage whose amounts are not non-negative integers, or that has an amount no rule covers."""


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """One sampling call to be paid. Amounts are tokens; `input` excludes cache reads and writes."""

    kind: CallKind
    model: str
    input: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int
    output: int
    declined: bool = False
    """A hop that declined before it produced output: not billed."""

    @property
    def context(self) -> int:
        """All input tokens, cached or not: what the long-context price step looks at."""
        return self.input + self.cache_write_5m + self.cache_write_1h + self.cache_read


def overlay(usage: Usage, delta: Usage) -> Usage:
    """`usage` with every non-null field of `delta` laid over it. Values may go down; the last one counts."""
    return {**usage, **{name: value for name, value in delta.items() if value is not None}}


def model_calls(
    usage: Usage,
    *,
    model_asked: str,
    model_answered: str,
    cache_ttl_1h: bool,
    declined_models: Collection[str] = (),
) -> list[ModelCall]:
    """The calls behind one response: its `iterations` where it has them (the real bill), else the top level.

    `cache_ttl_1h` says whether the request asked for 1-hour cache writes: deltas carry no split, and the rest that the
    split does not cover is then 1h, else 5m. `declined_models` are models seen to hand over to a fallback before any
    output. Raises UsageUnreadable.
    """
    unknown = sorted(unknown_amounts(usage))
    if unknown:
        raise UsageUnreadable(f"amounts that no price covers: {', '.join(unknown[:_NAMES_SHOWN_MAX])}")
    entries = _entries(usage)
    if not entries:
        return [_call(usage, "message", model_answered, cache_ttl_1h=cache_ttl_1h)]
    by_fallback = any(entry.get("type") == "fallback_message" for entry in entries)
    own_model = model_asked if by_fallback else model_answered
    declined = {_undated(model) for model in declined_models}
    calls = []
    for entry in entries:
        model = text(entry, "model") or own_model
        is_declined = by_fallback and _is_declined(entry, model, declined)
        calls.append(_call(entry, entry["type"], model, cache_ttl_1h=cache_ttl_1h, declined=is_declined))
    return calls


def web_searches(usage: Usage) -> int:
    """Billable web searches; web fetches are free. Raises UsageUnreadable."""
    return _amount(_object(usage, "server_tool_use"), "web_search_requests")


def text(parent: Usage, name: str) -> str | None:
    """A field that is a string or null. Raises UsageUnreadable for anything else."""
    value = parent.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageUnreadable(f"{name} is not a text")
    return value


def unknown_amounts(usage: Usage) -> list[str]:
    """Names of non-zero amounts that no rule of ours covers, wherever in the usage they stand. Raises UsageUnreadable."""
    found = _unknown_in(usage, _KNOWN)
    found += _unknown_in(_object(usage, "server_tool_use"), _SERVER_TOOLS)
    found += _unknown_in(_object(usage, "cache_creation"), _CACHE_FIELDS)
    for entry in _entries(usage):
        kind = text(entry, "type")
        if kind not in _CALL_KINDS:
            found.append(f"iterations[{str(kind)[:_NAME_CHARS_MAX]}]")
        found += _unknown_in(entry, _KNOWN_OF_CALL)
        found += _unknown_in(_object(entry, "cache_creation"), _CACHE_FIELDS)
    return found


def _unknown_in(amounts: Usage, known: frozenset[str]) -> list[str]:
    return [name[:_NAME_CHARS_MAX] for name in amounts.keys() - known if _holds_amount(amounts[name])]


def _holds_amount(value: Any) -> bool:
    """Whether a number other than zero, or a true flag, stands anywhere in it. Without recursion: a caller may nest deeply."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif value and not isinstance(value, str):
            return True
    return False


def _object(parent: Usage, name: str) -> Usage:
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageUnreadable(f"{name} is not an object")
    return cast("Usage", value)


def _entries(usage: Usage) -> list[Usage]:
    entries = usage.get("iterations")
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageUnreadable("iterations is not a list of objects")
    if len(entries) > ITERATIONS_MAX:
        raise UsageUnreadable(f"more than {ITERATIONS_MAX} iterations")
    return cast("list[Usage]", entries)


def _amount(amounts: Usage, name: str) -> int:
    value = amounts.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
        raise UsageUnreadable(f"{name} is not a count of at most {AMOUNT_MAX}")
    return value


def _is_declined(entry: Usage, model: str, declined_undated: Collection[str]) -> bool:
    """Only a `message` entry can be a declined hop; the one that served is `fallback_message` (SDK 2.12, types).

    Dates are left out of the comparison: a fallback block names the model as the caller did, an entry by its full id.
    """
    if entry.get("type") != "message":
        return False
    return not _amount(entry, "output_tokens") or _undated(model) in declined_undated


def _undated(model: str) -> str:
    return _DATE.sub("", model)


def _call(amounts: Usage, kind: CallKind, model: str, *, cache_ttl_1h: bool, declined: bool = False) -> ModelCall:
    write_5m, write_1h, rest = _cache_writes(amounts)
    return ModelCall(
        kind=kind,
        model=model,
        input=_amount(amounts, "input_tokens"),
        cache_write_5m=write_5m + (0 if cache_ttl_1h else rest),
        cache_write_1h=write_1h + (rest if cache_ttl_1h else 0),
        cache_read=_amount(amounts, "cache_read_input_tokens"),
        output=_amount(amounts, "output_tokens"),
        declined=declined,
    )


def _cache_writes(amounts: Usage) -> tuple[int, int, int]:
    """5-minute, 1-hour, and undivided tokens. The total counts: a delta lowers or raises it without a new split."""
    split = _object(amounts, "cache_creation")
    told_5m = _amount(split, "ephemeral_5m_input_tokens")
    told_1h = _amount(split, "ephemeral_1h_input_tokens")
    if amounts.get("cache_creation_input_tokens") is None:
        return told_5m, told_1h, 0
    total = _amount(amounts, "cache_creation_input_tokens")
    write_1h = min(told_1h, total)
    write_5m = min(told_5m, total - write_1h)
    return write_5m, write_1h, total - write_1h - write_5m
