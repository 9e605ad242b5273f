"""The scenarios, and how a request names one."""

from dataclasses import dataclass, field
from typing import Final

SCENARIOS: Final = {
    "text": "answer with about `tokens` tokens of text",
    "error:STATUS": "answer with that HTTP status and the API's body for it",
    "spend_limit": "400 that speaks of the operator's usage limits",
    "enforced_spend_limit": "429 of the operator's monthly limit",
    "on_hold": "403 of an organization on hold",
    "overloaded": "529 for the first `times` requests with the same x-sim-id, then an answer",
    "slow": "`gap_ms` between events, `first_ms` before the first byte",
    "silent": "`ms` of silence before the head",
    "cut": "break the connection after `after` events; `clean=1`: end the body cleanly instead",
    "cut_inside_frame": "break the connection inside the event after `after` events",
    "cut_json": "break the connection in the middle of a JSON body",
    "reset": "read the request, then reset the connection",
    "error_event": "an error event after `after` events; `type` and `message` choose it",
    "no_message_stop": "end the body cleanly without message_stop",
    "no_usage": "an answer without any usage",
    "falling_usage": "usage in message_delta lower than in message_start",
    "one_byte": "write the stream byte by byte",
    "split_utf8": "write the stream in pieces of `size` bytes, splitting characters",
    "crlf": "end lines with CRLF",
    "coalesced": "write all events at once",
    "unknown_event": "put an event nobody knows into the stream",
    "big_event": "a text delta of `size` bytes",
    "big_header": "a response header of `size` bytes",
    "gzip": "compress the body although nobody asked for it",
    "redirect": "302 to another host",
    "close": "close the connection after the answer",
    "early_hints": "103 before the answer",
    "advisor": "usage with iterations, one of them on another model",
    "compaction": "usage with a compaction iteration",
    "fallback": "a fallback served the answer after the first model had produced output",
    "fallback_declined": "a fallback served the answer, the first model declined at once",
    "web_search": "`n` web searches",
    "refusal_empty": "a refusal that says nothing",
    "refusal_mid": "a refusal in the middle of the output",
    "geo_us": "served in the US",
    "batch_tier": "served on the batch tier",
    "fast": "served in fast mode",
    "cache_1h": "`tokens` written to the cache for an hour",
    "long_context": "`tokens` of input",
    "unknown_class": "a usage amount nobody knows",
}


@dataclass(frozen=True)
class Scenario:
    """A name and its parameters; the name is empty for an ordinary answer."""

    name: str = ""
    parameters: dict[str, str] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """A parameter as a number."""
        return int(self.parameters.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A parameter as it is."""
        return self.parameters.get(name, default)


def parse(header: str) -> Scenario:
    """`NAME[;param=value…]`; `error:529` is the scenario `error` with the parameter `status`."""
    name, *pairs = [part.strip() for part in header.split(";")]
    parameters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    base, _, argument = name.partition(":")
    if argument:
        parameters["status"] = argument
    return Scenario(base, parameters)
