"""The scenarios, and how a request names one."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

SCENARIOS: Final = {
    "text": "answer with about `tokens` tokens of text",
    "error:STATUS": "that HTTP status and the API's body for it; `message` replaces the text, `retry_after` the header",
    "spend_limit": "400 that speaks of the operator's usage limits",
    "enforced_spend_limit": "429 of the operator's monthly limit",
    "on_hold": "403 of an organization on hold",
    "overloaded": "529, once unless `times` says otherwise",
    "slow": "`gap_ms` between events (200), `first_ms` before the head; a JSON answer comes in four pieces",
    "silent": "`ms` of silence before the head (1000)",
    "cut": "break the connection after `after` events, or inside a JSON answer; `clean=1`: end the body cleanly instead",
    "cut_inside_frame": "break the connection inside the event after `after` events, or inside a JSON answer",
    "cut_json": "break the connection in the middle of a JSON answer; a stream as cut_inside_frame",
    "reset": "read the request, then reset the connection",
    "error_event": "an error event after `after` events; `type` and `message` choose it; as JSON that error's status",
    "no_message_stop": "end the stream cleanly without message_stop",
    "no_usage": "an answer without any usage",
    "falling_usage": "usage in message_delta lower than in message_start",
    "one_byte": "write the body byte by byte",
    "split_utf8": "write the body in pieces of `size` bytes (7), splitting characters",
    "crlf": "end the lines of a stream with CRLF",
    "coalesced": "write all events at once",
    "unknown_event": "put an event nobody knows into the stream, a field nobody knows into JSON",
    "big_event": "a text delta of `size` bytes (1 MiB)",
    "big_header": "a response header of `size` bytes (4096)",
    "gzip": "compress the body although nobody asked for it",
    "redirect": "302 to another host, or to `to`",
    "close": "close the connection after the answer",
    "early_hints": "103 before the answer",
    "advisor": "usage with iterations, one of them on another model (`model`)",
    "compaction": "usage with a compaction iteration",
    "fallback": "a fallback (`model`) served the answer after the first model had produced output",
    "fallback_declined": "a fallback (`model`) served the answer, the first model declined at once",
    "web_search": "`n` web searches (1)",
    "refusal_empty": "a refusal that says nothing",
    "refusal_mid": "a refusal in the middle of the output",
    "geo_us": "served in the US",
    "batch_tier": "served on the batch tier",
    "fast": "served in fast mode",
    "cache_1h": "`tokens` written to the cache for an hour (2000)",
    "long_context": "`tokens` of input (250000)",
    "unknown_class": "a usage amount nobody knows",
}
"""Every answer also takes `gap_ms` and `first_ms`, and `tokens` as its length where the scenario does not need it for itself.

Every scenario takes `times`: for so many requests with the same x-sim-id, the rest get an ordinary answer; and `key`: only for
requests whose API key ends so.
"""


@dataclass(frozen=True)
class Scenario:
    """A name and its parameters; the name is empty for an ordinary answer."""

    name: str = ""
    parameters: dict[str, str] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """A parameter as a number; the default where it is none."""
        value = self.parameters.get(name, "")
        return int(value) if value.isdecimal() else default

    def text(self, name: str, default: str) -> str:
        """A parameter as it is."""
        return self.parameters.get(name, default)


def parse(line: str) -> Scenario:
    """`NAME[;param=value…]`; `error:529` is the scenario `error` with the parameter `status`."""
    name, *pairs = [part.strip() for part in line.split(";")]
    parameters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    base, _, argument = name.partition(":")
    if argument:
        parameters["status"] = argument
    return Scenario(base, parameters)


class Script:
    """Which scenario a request gets: the one it names, while its turn lasts and if its API key is meant."""

    def __init__(self) -> None:
        self._played: Counter[str] = Counter()

    def scenario(self, line: str, *, sim_id: str, api_key: str) -> Scenario:
        """The scenario of one request; counts it."""
        named = parse(line)
        if not api_key.endswith(named.text("key", "")):
            return Scenario()
        times = named.number("times", 1 if named.name == "overloaded" else 0)
        if times and self._played[sim_id] >= times:
            return Scenario()
        if times:
            self._played[sim_id] += 1
        return named


def line_of(header: str, body: dict[str, Any]) -> str:
    """Where a request names its scenario: the header, else `metadata.user_id`; empty for none."""
    metadata = body.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if header or not isinstance(user, str) or not user.startswith("sim:"):
        return header
    return user.removeprefix("sim:")
