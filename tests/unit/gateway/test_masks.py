"""Which errors of the upstream a caller may read: PROTOCOL.md, section 4, and the threat "leaks" of RELIABILITY.md."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from services.gateway import masks
from services.gateway.masks import masked_answer, masked_event_data

UUID = "7f3c1de0-0000-4000-8000-0123456789ab"


def error(kind: str, message: str, **fields: Any) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message, **fields}}).encode()


def spelled_out(body: bytes, word: str) -> bytes:
    """`body` with every character of a word written as an escape."""
    return body.replace(word.encode(), b"".join(b"\\u%04x" % ord(char) for char in word))


OPERATORS = [
    error(
        "invalid_request_error",
        "You have reached your specified API usage limits. You will regain access on 2026-12-01.",
    ),
    error("invalid_request_error", "You have reached your API usage limits: your organization has crossed its monthly"),
    error(
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing",
    ),
    error("invalid_request_error", "This organization has been disabled."),
    error("invalid_request_error", "no", details={"error_code": "enforced_spend_limit_reached"}),
    error("invalid_request_error", "no", details={"error_code": "organization_on_hold"}),
    error("billing_error", "no"),
    error("permission_error", "no"),
    error("authentication_error", "invalid x-api-key"),
    error("rate_limit_error", "no"),
    error("invalid_request_error", "key sk-ant-api03-abc is not allowed to"),
    error("invalid_request_error", f"not for you (org: {UUID}, model: claude-opus-4-6)"),
    error("invalid_request_error", f"organization {UUID} is not"),
    error("invalid_request_error", "no", organization_id=UUID),
    error("invalid_request_error", "no such thing in org_01abcdefgh"),
    b"You have reached your specified API usage limits",
]
CALLERS = [
    error("invalid_request_error", "max_tokens: 64001 > 64000, which is the maximum allowed number of output tokens"),
    error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
    error("invalid_request_error", "messages.1.content.0: unexpected `tool_use_id` found: toolu_organizer"),
    error("invalid_request_error", "This organization does not have access to the beta long-context-2025"),
    error("not_found_error", "model: claude-organ-1"),
    error("request_too_large", "Request exceeds the maximum size"),
    error("invalid_request_error", f"container {UUID} has expired"),
    error("invalid_request_error", 'metadata: {"type":"rate_limit_error"} is not allowed'),
    b'{"error" : {"message":"odd spacing","type":"invalid_request_error"},"type":"error"}   \n',
    b"\xff\x00 no JSON at all",
    b"",
]


@pytest.mark.parametrize("status", [401, 402, 403, 429])
@pytest.mark.parametrize("body", [*CALLERS, *OPERATORS])
def test_these_statuses_are_always_the_operators(status: int, body: bytes) -> None:
    assert_busy(masked_answer(status, body))


@pytest.mark.parametrize("status", [400, 404, 413, 500, 529])
@pytest.mark.parametrize("body", OPERATORS)
def test_what_speaks_of_the_operators_account_is_not_shown(status: int, body: bytes) -> None:
    assert_busy(masked_answer(status, body))


@pytest.mark.parametrize("status", [400, 404, 413])
@pytest.mark.parametrize("body", CALLERS)
def test_the_callers_own_mistakes_pass(status: int, body: bytes) -> None:
    assert masked_answer(status, body) is None


@pytest.mark.parametrize("status", [408, 409, 422, 500, 502, 503, 504, 529])
@pytest.mark.parametrize(
    ("body", "passes"),
    [
        (error("overloaded_error", "Overloaded"), True),
        (error("api_error", "Internal server error"), True),
        (b"<html><h1>502 Bad Gateway</h1></html>", True),
        (b"upstream connect error", True),
        (b"", True),
        (error("api_error", "Internal server error for organization 12"), False),
        (error("api_error", "failed", org="12"), False),
        (error("api_error", "the workspace is archived"), False),
        (error("api_error", "billing service unavailable"), False),
        (b"<p>Your IP: 192.0.2.1 - Performance & security by Cloudflare</p>", False),
    ],
)
def test_a_failure_of_the_upstreams_own_must_not_even_name_him(status: int, body: bytes, passes: bool) -> None:
    masked = masked_answer(status, body)
    assert (masked is None) is passes
    if masked is not None:
        assert_busy(masked)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (OPERATORS[0], "usage limits"),
        (OPERATORS[4], "enforced_spend_limit_reached"),
        (OPERATORS[5], "o"),
        (OPERATORS[6], "billing_error"),
        (OPERATORS[9], "rate"),
        (OPERATORS[10], "sk-ant"),
        (OPERATORS[11], "org"),
    ],
)
def test_escapes_hide_nothing(body: bytes, word: str) -> None:
    escaped = spelled_out(body, word)
    assert escaped != body
    assert json.loads(escaped) == json.loads(body)
    assert masked_answer(400, escaped) is not None
    assert masked_event_data(escaped) is not None
    assert masked_answer(400, escaped.replace(b"\\u006", b"\\u006").upper().replace(b"\\U", b"\\u")) is not None


@pytest.mark.parametrize("body", OPERATORS)
def test_inside_a_stream(body: bytes) -> None:
    masked = masked_event_data(body)
    assert masked is not None
    assert masked.startswith(b'{"type":"error","error":{"type":"overloaded_error","message":"')
    assert set(json.loads(masked)) == {"type", "error", "request_id"}
    for secret in (b"organization", b"sk-ant", UUID.encode(), b"limit"):
        assert secret not in masked


@pytest.mark.parametrize(
    ("data", "passes"),
    [
        (error("overloaded_error", "Overloaded"), True),
        (error("api_error", "Internal server error"), True),
        (error("invalid_request_error", "prompt is too long"), True),
        (b'{"type":"error","error":null}', True),
        (b"no JSON", True),
        (b"", True),
        (b"organization 12 is on hold", False),
        (error("api_error", "your organization"), False),
    ],
)
def test_other_errors_inside_a_stream(data: bytes, passes: bool) -> None:
    assert (masked_event_data(data) is None) is passes


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"request_id": "req_011CYYc3J1X8TQSFat6bg7VX"}, "req_011CYYc3J1X8TQSFat6bg7VX"),
        ({"request_id": None}, ""),
        ({"request_id": 5}, ""),
        ({"request_id": "organization 12"}, ""),
        ({}, ""),
    ],
)
def test_the_upstreams_request_id_stays(fields: dict[str, Any], kept: str) -> None:
    masked = masked_event_data(json.dumps({"error": {"type": "rate_limit_error"}, **fields}).encode())
    assert masked is not None
    assert json.loads(masked)["request_id"] == kept


def test_observed_errors(corpus: Path) -> None:
    folder = corpus / "_observed-errors"
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".headers.json"):
            continue
        status = int(path.name[:3])
        masked = masked_answer(status, path.read_bytes())
        assert (masked is None) is (status == 529), path.name
        in_stream = masked_event_data(path.read_bytes())
        assert (in_stream is None) is (status == 529), path.name
        assert masked_answer(400, path.read_bytes()) is None or status == 429, path.name


def test_the_event_that_ends_a_broken_stream() -> None:
    event = masks.broken_stream_event("req_1")
    assert event.startswith(b"event: error\ndata: {") and event.endswith(b"}\n\n")
    assert json.loads(event.split(b"data: ")[1])["request_id"] == "req_1"


@pytest.mark.parametrize(
    "part",
    [b" ", b"org ", b"org" + b" " * 99, b'"type" ', b"\\u0061", b"org-", b"organization_", b'"type"' + b" " * 99],
)
@pytest.mark.alone
def test_no_text_of_a_megabyte_takes_half_a_second(part: bytes) -> None:
    body = part * (1_000_000 // len(part))
    started = time.thread_time()
    masked_answer(400, body)
    masked_event_data(body)
    assert time.thread_time() - started < 0.5


def assert_busy(masked: Any) -> None:
    assert masked is not None
    assert (masked.status, masked.kind) == (529, "overloaded_error")
    assert masked.headers == {"retry-after": "2"}
    body = masked.body("req_1")
    for secret in (b"organization", b"sk-ant", UUID.encode(), b"limit", b"billing"):
        assert secret not in body
