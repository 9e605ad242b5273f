"""A refusal in words: type, steering headers, and a sentence that names limit, owner, value and reset."""

from typing import Any

import pytest

from libs.common import pricebook
from libs.common.leases import Figures, Refused, Window
from services.gateway.refusals import refusal
from tests.unit.gateway.test_hold import ask

BOOK = pricebook.load()
FIGURES = Figures(Window(1000, 0, 1_764_000_000), None, None)
NOON = 1_764_000_000


def refused(reason: Any, **fields: Any) -> Refused:
    return Refused(**({"reason": reason, "scope": "key", "figures": FIGURES} | fields))


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (refused("key", detail="disabled"), "not active"),
        (refused("expired", detail="1764000000000"), "expired at 2025-11-24T16:00:00"),
        (refused("member", scope="member", detail="deleted"), "member"),
        (refused("account", scope="account", detail="disabled"), "account"),
        (refused("address", detail="0" * 32), "address"),
    ],
)
def test_who_may_not_call(one: Refused, words: str) -> None:
    error = refusal(one)
    assert (error.status, error.kind) == (401, "authentication_error")
    assert error.headers["x-should-retry"] == "false"
    assert words in error.message
    assert "0" * 32 not in error.message


def test_while_balances_are_checked_the_caller_is_told_to_come_again() -> None:
    error = refusal(refused("closed", scope="account", figures=None))
    assert (error.status, error.kind) == (529, "overloaded_error")
    assert error.headers["retry-after"] == "1"
    assert error.headers.get("x-should-retry") != "false"
    assert "after a restart. Nothing was charged; please try again in a moment." in error.message


def test_a_model_the_key_may_not_use_is_not_there() -> None:
    error = refusal(refused("model", detail="claude-haiku-4-5"), book=BOOK, ask=ask(model="claude-haiku-4-5-20251001"))
    assert (error.status, error.kind) == (404, "not_found_error")
    assert error.message == "model: claude-haiku-4-5-20251001"
    fallback = ask(other_models=("claude-opus-4-1-20250805",))
    named = refusal(refused("model", detail="claude-opus-4-1"), book=BOOK, ask=fallback).message
    assert named == "model: claude-opus-4-1-20250805"


@pytest.mark.parametrize(
    ("reason", "scope", "sentence"),
    [
        ("requests", "key", "This API key may use 3 requests a minute; 0 are left. It would pass in 20 s."),
        (
            "free",
            "account",
            "This account may use 3 requests a minute to count_tokens, the model list and /v1/usage; 0 are left.",
        ),
        ("output", "member", "This member may use 3 output tokens a minute; 0 are left."),
    ],
)
def test_rates(reason: str, scope: str, sentence: str) -> None:
    error = refusal(refused(reason, scope=scope, limit=3, value=0, needed=1, wait_ms=19_001, reset_s=NOON))
    assert (error.status, error.kind) == (429, "rate_limit_error")
    assert error.message.startswith(sentence)
    assert error.headers["retry-after"] == "20"
    assert error.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert "x-should-retry" not in error.headers


def test_a_request_larger_than_a_minute_is_told_so() -> None:
    error = refusal(refused("input", limit=10_000, value=5_000, needed=25_000, wait_ms=90_000))
    assert "needs about 25000" in error.message
    assert "larger than a whole minute" in error.message
    assert error.headers["retry-after"] == "60"


def test_slots() -> None:
    error = refusal(refused("in_flight", scope="account", limit=50, value=50, needed=1))
    assert error.message == "This account has 50 requests in flight, and may have 50. Please try again in a moment."
    assert error.headers["retry-after"] == "1"


def test_too_little_money() -> None:
    one = refused("balance", scope="account", limit=5_000_000, needed=15_300_000, multiplier_ppm=1_000_000)
    error = refusal(one, book=BOOK, ask=ask())
    assert (error.status, error.kind) == (402, "insufficient_balance")
    assert error.fields == {"needed_usd": "0.0153", "available_usd": "0.005", "max_tokens_affordable": 313}
    assert "0.0153 USD" in error.message and "at most 313" in error.message
    assert error.headers["x-should-retry"] == "false"


def test_money_that_would_not_do_for_the_input_alone() -> None:
    one = refused("balance", scope="account", limit=-7, needed=15_300_000, multiplier_ppm=1_000_000)
    error = refusal(one, book=BOOK, ask=ask())
    assert error.fields["max_tokens_affordable"] == 0
    assert "max_tokens" not in error.message


@pytest.mark.parametrize("reason", ["balance_held", "budget_held"])
def test_money_held_by_others(reason: str) -> None:
    error = refusal(refused(reason, detail="month", limit=10**9, value=10**8, needed=10**7, reset_s=NOON))
    assert (error.status, error.headers["retry-after"]) == (429, "1")
    assert "in flight" in error.message


def test_a_spent_budget() -> None:
    error = refusal(refused("budget", scope="member", detail="month", limit=10**9, value=10**9, needed=7, reset_s=NOON))
    assert (error.status, error.headers["x-should-retry"]) == (429, "false")
    assert "retry-after" not in error.headers
    assert error.message.startswith("The monthly budget of this member is 1.00 USD a month; 1.00 USD is spent")
    assert "resets at 2025-11-24T16:00:00" in error.message
    assert "max_tokens" not in error.message


def test_a_budget_that_is_not_quite_spent_says_what_still_fits() -> None:
    one = refused("budget", detail="day", limit=10**9, value=995_000_000, needed=15_300_000, multiplier_ppm=1_000_000)
    error = refusal(one, book=BOOK, ask=ask())
    assert "Send max_tokens of at most 313, or ask the owner" in error.message


@pytest.mark.parametrize("spent", [10**9, 2 * 10**9])
def test_a_budget_that_is_spent_to_the_end_promises_nothing(spent: int) -> None:
    one = refused("budget", detail="day", limit=10**9, value=spent, needed=15_300_000, multiplier_ppm=1_000_000)
    assert "max_tokens" not in refusal(one, book=BOOK, ask=ask()).message


def test_a_total_budget_does_not_reset() -> None:
    error = refusal(refused("budget", detail="total", limit=10**9, value=10**9, needed=7))
    assert "does not reset" in error.message
    assert "total budget of this API key is 1.00 USD;" in error.message
