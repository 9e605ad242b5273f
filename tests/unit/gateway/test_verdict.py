"""Each answer and each failure of an upstream, and what is held against whom."""

import json
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from libs.common.upstreams import Kind
from libs.localstack.simulator import errors
from services.gateway.verdict import Verdict, name_of_failure, of_answer, of_failure

SPENT: Final = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
CROSSED: Final = (
    "You have reached your API usage limits: your organization has crossed its monthly API usage threshold, set based on "
    "your organization's API tier. You will regain access on 2026-12-01 at 00:00 UTC."
)
LOW: Final = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade."
DISABLED: Final = "This organization has been disabled."


def body(message: str, kind: str = "invalid_request_error", **fields: Any) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message, **fields}}).encode()


def judged(status: int, text: bytes, *headers: tuple[bytes, bytes], packed: bool = False) -> Verdict:
    return of_answer(status, list(headers), text, packed=packed)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
def test_what_the_upstream_does_to_anybody_is_sent_again(status: int) -> None:
    found = judged(status, body("Overloaded", "overloaded_error"), (b"Retry-After", b"7"))
    assert found == Verdict(again="anywhere", kind="server", retry_after_s=7.0)


def test_other_failures_of_a_server_count_and_are_not_sent_again() -> None:
    assert judged(520, b"<html>") == Verdict(kind="server")


def test_an_upstream_that_asks_not_to_be_asked_again_is_not() -> None:
    found = judged(500, body("x", "api_error"), (b"x-should-retry", b"false"))
    assert (found.again, found.kind) == ("no", "server")
    assert judged(500, body("x", "api_error"), (b"x-should-retry", b"true")).again == "anywhere"


@pytest.mark.parametrize(
    ("status", "text", "kind", "doubtful"),
    [
        (401, body("invalid x-api-key", "authentication_error"), "auth", False),
        (402, body("pay", "billing_error"), "spend", False),
        (403, body("no permission", "permission_error"), "auth", True),
        (403, body("on hold", details={"error_code": "organization_on_hold"}), "hold", False),
        (403, b"<html>blocked</html>", "auth", True),
        (429, body("slow down", "rate_limit_error"), "rate", False),
        (429, body(CROSSED, "rate_limit_error"), "spend", False),
        (429, body("x", details={"error_code": "enforced_spend_limit_reached"}), "spend", False),
        (400, body(SPENT), "spend", True),
        (400, body(CROSSED), "spend", True),
        (400, body(LOW), "spend", True),
        (400, body(DISABLED), "hold", True),
    ],
)
def test_what_is_the_credentials_own_trouble_goes_to_another_and_is_never_shown(
    status: int, text: bytes, kind: Kind, doubtful: bool
) -> None:
    found = judged(status, text)
    assert (found.again, found.kind, found.doubtful) == ("elsewhere", kind, doubtful)
    assert found.masked is not None and found.masked.status == 529


PLANTED: Final = [
    f"messages.0.content: {SPENT}",
    f"{SPENT}: Extra inputs are not permitted",
    f"{CROSSED}: Extra inputs are not permitted",
    f"{LOW}: Extra inputs are not permitted",
    f"{DISABLED}: Extra inputs are not permitted",
    f"You have reached your API usage limits: your organization has x: {SPENT}",
    f"tools.0.name: {LOW}",
    f" {SPENT}",
    "You have reached your specified API usage limitsx",
]


@pytest.mark.parametrize("message", PLANTED)
def test_what_a_caller_can_plant_in_a_400_is_masked_but_held_against_nobody(message: str) -> None:
    found = judged(400, body(message))
    assert (found.again, found.kind) == ("no", None)
    assert found.masked is not None or "limitsx" in message


def test_a_planted_code_is_no_code() -> None:
    for text in (
        b'{"error":{"message":"\\"error_code\\":\\"organization_on_hold\\""}}',
        b'{"error":{"error_code":"organization_on_hold"}}',
        b'{"error_code":"organization_on_hold","error":{"details":{"error_code":["organization_on_hold"]}}}',
        b'{"error":{"details":"organization_on_hold"}}',
        b'{"error":"organization_on_hold"}',
        b'"organization_on_hold"',
        b"organization_on_hold" + b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ):
        assert judged(400, text).kind is None


@pytest.mark.parametrize("status", [400, 404, 405, 408, 409, 413, 422])
def test_what_is_wrong_with_the_request_passes(status: int) -> None:
    assert judged(status, body("max_tokens: Field required")) == Verdict()


def test_what_nobody_can_read_is_not_shown_and_its_status_counts() -> None:
    assert judged(400, b"\x1f\x8b", packed=True).masked is not None
    assert judged(400, body(SPENT), packed=True).kind is None
    assert judged(429, b"\x1f\x8b", packed=True).kind == "rate"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(b"5", 5.0), (b" 16 ", 16.0), (b"0", 0.0), (b"0.5", 0.5), (b"-1", None), (b"1e9", None), (b"inf", None),
     (b"Wed, 25 Nov 2026 10:00:00 GMT", None), (b"9" * 400, None), ("５".encode(), None), (b"", None)],
)  # fmt: skip
def test_seconds_to_wait_are_a_plain_number_or_nothing(said: bytes, seconds: float | None) -> None:
    assert judged(429, b"", (b"retry-after", said)).retry_after_s == seconds
    assert judged(529, b"", (b"retry-after", said)).retry_after_s == seconds


def test_the_recorded_errors(corpus: Path) -> None:
    expected = {"429_input_tokens": "rate", "429_output_tokens": "rate", "429_spend_cap_documented": "spend"}
    for name, kind in expected.items():
        assert judged(429, (corpus / "_observed-errors" / f"{name}.json").read_bytes()).kind == kind
    for name in ("529_overloaded", "529_overloaded_2"):
        found = judged(529, (corpus / "_observed-errors" / f"{name}.json").read_bytes())
        assert (found.again, found.kind, found.masked) == ("anywhere", "server", None)


@pytest.mark.parametrize(
    ("message", "kind"),
    [("_SPEND", "spend"), ("_ENFORCED", "spend")],
)
def test_the_simulators_sentences_are_the_apis(message: str, kind: Kind) -> None:
    assert judged(400, body(getattr(errors, message))).kind == kind


@pytest.mark.parametrize(
    ("error", "again", "kind", "name"),
    [
        (httpx2.ConnectError("x"), "anywhere", "connect", "connect"),
        (httpx2.ConnectTimeout("x"), "anywhere", "connect", "connect"),
        (httpx2.ProxyError("x"), "anywhere", "connect", "connect"),
        (httpx2.PoolTimeout("ours"), "anywhere", None, "connect"),
        (httpx2.ReadTimeout("x"), "no", "server", "timeout"),
        (httpx2.WriteTimeout("x"), "no", "server", "timeout"),
        (httpx2.ReadError("reset after the whole body"), "no", "server", "broke"),
        (httpx2.RemoteProtocolError("x"), "no", "server", "broke"),
        (httpx2.LocalProtocolError("the request's"), "no", None, "broke"),
    ],
)
def test_where_no_answer_came(error: Exception, again: str, kind: Kind | None, name: str) -> None:
    assert of_failure(error) == Verdict(again=again, kind=kind)  # type: ignore[arg-type]
    assert name_of_failure(error) == name
