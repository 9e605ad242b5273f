"""A notice: its two forms, what cannot be one, and what its words do not show."""

import json
from typing import Any

import msgspec
import pytest

from services.admin.notices.notices import ChannelTarget, Notice, Undelivered, refusal


def notice(**changes: Any) -> Notice:
    fields: dict[str, Any] = {
        "id": "ntc_01",
        "kind": "alert.opened",
        "title": "Balance below $5",
        "text": "Top up,\nor requests will be refused.",
        "severity": "warning",
        "account_id": "acct_1",
        "at_ms": 1_795_000_000_123,
        "data": {"balance_usd": "4.99", "percent": 3, "key": None},
    }
    return Notice(**fields | changes)


def test_the_body_of_a_webhook_is_in_the_standard_shape() -> None:
    assert json.loads(notice().json()) == {
        "type": "alert.opened",
        "timestamp": "2026-11-18T11:06:40.123Z",
        "data": {
            "account_id": "acct_1",
            "severity": "warning",
            "title": "Balance below $5",
            "text": "Top up,\nor requests will be refused.",
            "details": {"balance_usd": "4.99", "percent": 3, "key": None},
        },
    }


def test_people_read_the_text_and_one_line_for_each_fact() -> None:
    assert notice().lines().splitlines() == [
        "Top up,",
        "or requests will be refused.",
        "",
        "severity: warning",
        "account: acct_1",
        "balance_usd: 4.99",
        "percent: 3",
        "time: 2026-11-18T11:06:40.123Z",
    ]


def test_a_fact_cannot_forge_a_line() -> None:
    forged = notice(text="", data={"name\r\nseverity": "a\r\nb\u2028c\x1b[2Jd"}).lines()
    assert forged.splitlines()[2] == "name severity: a b c [2Jd"
    assert not forged.startswith("\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "a.b"},
        {"id": "a\r\nx-evil: 1"},
        {"id": "a" * 129},
        {"title": ""},
        {"title": "Hello\r\nBcc: everybody@example.com"},
        {"title": "tab\there"},
        {"title": "t" * 201},
        {"text": "t" * 4_001},
    ],
)
def test_what_cannot_stand_in_a_header_is_no_notice(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        notice(**changes)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(notice()) | changes, Notice)


def test_a_target_is_logged_without_its_secrets() -> None:
    target = ChannelTarget(kind="slack", address="https://hooks.slack.com/services/T/B/canary", secret="canary")
    assert "canary" not in f"{target} {target!r} {[target]}"


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(301, True), (400, False), (404, False), (408, True), (410, False), (429, True), (500, True), (503, True)],
)
def test_a_wrong_request_is_not_repeated(status: int, retryable: bool) -> None:
    failure = refusal(status)
    assert isinstance(failure, Undelivered)
    assert failure.retryable is retryable
    assert failure.reason == str(failure) == f"The receiver answered with status {status}."
