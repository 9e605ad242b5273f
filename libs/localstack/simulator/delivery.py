"""Writes an answer as well or as badly as the scenario wants, and takes down in the invoice what was written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from email.utils import format_datetime
from itertools import accumulate
from typing import Any, Final

from libs.common.clock import utc_now
from libs.localstack.simulator.errors import ORGANIZATION_ID, ApiError
from libs.localstack.simulator.http import Exchange, Headers
from libs.localstack.simulator.invoice import Entry
from libs.localstack.simulator.scenarios import Scenario
from libs.localstack.simulator.stream import Event, error_event, padded, unknown_event

EARLY_HINTS: Final = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nx-early: 1\r\n\r\n"
_CUTS: Final = frozenset({"cut", "cut_inside_frame", "cut_json"})
_JSON: Final = b"application/json"
_SSE: Final = b"text/event-stream; charset=utf-8"
_SLOW_JSON_PIECES: Final = 4
_LEAKS: Final = (
    ("anthropic-organization-id", ORGANIZATION_ID),
    ("anthropic-workspace-id", "wrkspc_sim01"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2026-11-25T00:00:00Z"),
    ("anthropic-ratelimit-tokens-limit", "280000"),
    ("anthropic-ratelimit-tokens-remaining", "279000"),
    ("anthropic-ratelimit-tokens-reset", "2026-11-25T00:00:00Z"),
    ("anthropic-ratelimit-input-tokens-limit", "200000"),
    ("anthropic-ratelimit-input-tokens-remaining", "199000"),
    ("anthropic-ratelimit-input-tokens-reset", "2026-11-25T00:00:00Z"),
    ("anthropic-ratelimit-output-tokens-limit", "80000"),
    ("anthropic-ratelimit-output-tokens-remaining", "80000"),
    ("anthropic-ratelimit-output-tokens-reset", "2026-11-25T00:00:00Z"),
    ("anthropic-priority-input-tokens-limit", "10000"),
    ("anthropic-fast-input-tokens-limit", "10000"),
    ("set-cookie", "__cf_bm=simulated; path=/; domain=.anthropic.com; HttpOnly; Secure; SameSite=None"),
    ("cf-ray", "9a1b2c3d4e5f6071-ARN"),
    ("cf-cache-status", "DYNAMIC"),
    ("server", "cloudflare"),
    ("server-timing", "proxy;dur=12"),
    ("via", "1.1 google"),
    ("x-envoy-upstream-service-time", "812"),
    ("x-cloud-trace-context", "105445aa7843bc8bf206b12000100000/1"),
    ("traceresponse", "00-105445aa7843bc8bf206b12000100000-0000000000000001-01"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("x-robots-tag", "none"),
)
"""What the real API's answers carry and a relay must not hand on."""
_LEAKS_ENCODED: Final = [(name.encode(), value.encode()) for name, value in _LEAKS]


@dataclass(frozen=True)
class Staged:
    """What will be written: whole events, a torn one, and how the body ends."""

    events: list[Event]
    torn: bytes = b""
    broken: bool = False
    """The connection ends before the body does."""
    closes: bool = False
    """The connection ends with the body."""


def headers(request_id: str, content_type: bytes, extra: Sequence[tuple[bytes, bytes]] = ()) -> Headers:
    """Of every answer."""
    return [
        (b"date", format_datetime(utc_now(), usegmt=True).encode()),
        (b"content-type", content_type),
        (b"request-id", request_id.encode()),
        *_LEAKS_ENCODED,
        *extra,
    ]


def send_json(exchange: Exchange, request_id: str, value: dict[str, Any], *, status: int = 200) -> None:
    """A JSON answer, well-behaved."""
    body = padded(value)
    exchange.start(status, headers(request_id, _JSON), length=len(body))
    exchange.send(body)
    exchange.end()


def send_error(exchange: Exchange, request_id: str, error: ApiError) -> None:
    """An error, as the API sends it."""
    body = padded(error.body(request_id))
    extra = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    exchange.start(error.status, headers(request_id, _JSON, extra), length=len(body))
    exchange.send(body)
    exchange.end()


async def send_answer(
    exchange: Exchange, entry: Entry, events: list[Event], scenario: Scenario, *, gap_ms: int
) -> None:
    """An answer: one event is JSON, more are a stream. Raises PeerGone."""
    if scenario.name == "reset":
        exchange.reset()
        return
    await exchange.pause(scenario.number("ms", 1000) / 1000 if scenario.name == "silent" else 0)
    await exchange.pause(scenario.number("first_ms", 0) / 1000)
    if scenario.name == "redirect":
        entry.status = 302
        location = scenario.text("to", "https://elsewhere.invalid/v1/messages").encode()
        exchange.start(302, headers(entry.upstream_request_id, _JSON, [(b"location", location)]), length=0)
        return
    staged = stage(events, scenario, entry.upstream_request_id)
    short = bool(staged.torn) and not staged.broken
    length = None if entry.stream or short or scenario.name == "gzip" else len(events[0].data)
    _start(exchange, entry, scenario, length)
    await _write(exchange, entry, staged, scenario, gap_ms=scenario.number("gap_ms", gap_ms))
    if not staged.broken:
        exchange.end()
        entry.complete = bool(staged.events) and staged.events[-1].last
    if staged.broken or staged.closes:
        exchange.close()


def stage(events: list[Event], scenario: Scenario, request_id: str) -> Staged:
    """What of an answer is written. A cut always comes before the last event."""
    after = min(max(scenario.number("after", 3), 0), len(events) - 1)
    match scenario.name:
        case "cut" if len(events) > 1:
            clean = scenario.number("clean", 0) == 1
            return Staged(events[:after], broken=not clean)
        case name if name in _CUTS:
            torn = events[after].data
            clean = name == "cut" and scenario.number("clean", 0) == 1
            return Staged(events[:after], torn[: len(torn) // 2], broken=not clean)
        case "error_event" if len(events) > 1:
            kind, message = scenario.text("type", "overloaded_error"), scenario.text("message", "Overloaded")
            return Staged([*events[:after], error_event(kind, message, request_id)], closes=True)
        case "no_message_stop" if len(events) > 1:
            return Staged(events[:-1])
        case "unknown_event" if len(events) > 1:
            return Staged([*events[:after], unknown_event(), *events[after:]])
        case "crlf" if len(events) > 1:
            return Staged([replace(event, data=event.data.replace(b"\n", b"\r\n")) for event in events])
    return Staged(events, closes=scenario.name == "close")


def written_as(staged: Staged, scenario: Scenario) -> Iterator[bytes]:
    """The writes, one after another."""
    frames = [event.data for event in staged.events]
    body = b"".join(frames) + staged.torn
    match scenario.name:
        case "coalesced":
            size = len(body)
        case "one_byte":
            size = 1
        case "split_utf8":
            size = max(1, scenario.number("size", 7))
        case "slow" if len(frames) == 1:
            size = -(-len(body) // _SLOW_JSON_PIECES)
        case _:
            yield from frames
            if staged.torn:
                yield staged.torn
            return
    for place in range(0, len(body), size):
        yield body[place : place + size]


def _start(exchange: Exchange, entry: Entry, scenario: Scenario, length: int | None) -> None:
    extra: Headers = [(b"retry-after", b"33")]  # the real API sends it on 200 as well
    if entry.stream:
        extra.append((b"cache-control", b"no-cache"))
    match scenario.name:
        case "big_header":
            extra.append((b"x-big", b"b" * scenario.number("size", 4096)))
        case "gzip":
            extra.append((b"content-encoding", b"gzip"))
        case "close":
            extra.append((b"connection", b"close"))
        case "early_hints":
            exchange.raw(EARLY_HINTS)
    entry.status = 200
    exchange.start(
        200,
        headers(entry.upstream_request_id, _SSE if entry.stream else _JSON, extra),
        length=length,
        gzip=scenario.name == "gzip",
    )


async def _write(exchange: Exchange, entry: Entry, staged: Staged, scenario: Scenario, *, gap_ms: int) -> None:
    ends = list(accumulate(len(event.data) for event in staged.events))
    done = sent = 0
    for piece in written_as(staged, scenario):
        if sent:
            await exchange.pause(gap_ms / 1000)
        exchange.send(piece)
        sent += len(piece)
        while done < len(ends) and ends[done] <= sent:
            _note(entry, staged.events[done])
            done += 1


def _note(entry: Entry, event: Event) -> None:
    entry.text_chars_sent += event.chars
    entry.declined_models = [*entry.declined_models, *event.declined]
    if event.usage is not None:
        entry.sent_usage(event.usage)
    if event.stop_reason:
        entry.stop_reason = event.stop_reason
