"""The table of outcomes in DESIGN.md and docs/adr/0002, row by row."""

from typing import Any

import pytest

from services.gateway.meter import Reading
from services.gateway.outcome import Ending, Verdict, judge

START = {"input_tokens": 100, "cache_read_input_tokens": 7, "output_tokens": 3}
LAST = {"input_tokens": 90, "cache_read_input_tokens": 0, "output_tokens": 50}
FREE = Verdict("free", {})


def nothing() -> Reading:
    return Reading()


def begun(**more: Any) -> Reading:
    return Reading(usage_start=START, usage=START, **more)


def known(**more: Any) -> Reading:
    """The last `message_delta` was read, or a whole JSON answer."""
    return Reading(usage_start=START, usage=LAST, final=True, **more)


def whole(**more: Any) -> Reading:
    return known(complete=True, **more)


def said(**more: Any) -> Reading:
    return whole(said_something=True, blocks=1, **more)


def verdict(ending: Ending, reading: Reading, status: int = 200) -> Verdict:
    return judge(ending, status, reading, input_estimated_tokens=1234)


def estimated(**usage: Any) -> Verdict:
    return Verdict("estimated", usage)


INPUT_ONLY = estimated(input_tokens=1234, output_tokens=0)
TABLE = [
    (Ending.ANSWERED, said(), Verdict("measured", LAST)),
    (Ending.ANSWERED, whole(), Verdict("measured", LAST)),
    (Ending.ANSWERED, nothing(), FREE),
    (Ending.ANSWERED, Reading(final=True, complete=True), FREE),
    (Ending.ANSWERED, begun(), Verdict("partial", START)),
    (Ending.BROKE, nothing(), FREE),
    (Ending.BROKE, begun(text_chars=400), Verdict("partial", START)),
    (Ending.BROKE, known(), Verdict("partial", LAST)),
    (Ending.BROKE, begun(error_type="overloaded_error"), Verdict("partial", START)),
    (Ending.BROKE, Reading(error_type="overloaded_error"), FREE),
    (Ending.SHUT_DOWN, nothing(), FREE),
    (Ending.SHUT_DOWN, begun(text_chars=400), Verdict("partial", START)),
    (Ending.SHUT_DOWN, known(), Verdict("partial", LAST)),
    (Ending.ABANDONED, nothing(), INPUT_ONLY),
    (Ending.ABANDONED, begun(), estimated(**START)),
    (Ending.ABANDONED, known(), Verdict("measured", LAST)),
    (Ending.ABANDONED, said(), Verdict("measured", LAST)),
    (Ending.ABANDONED, begun(error_type="overloaded_error", text_chars=400), Verdict("partial", START)),
    (Ending.ABANDONED, Reading(error_type="overloaded_error"), FREE),
]


@pytest.mark.parametrize(("ending", "reading", "expected"), TABLE)
def test_the_table(ending: Ending, reading: Reading, expected: Verdict) -> None:
    assert verdict(ending, reading) == expected


@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500, 529])
@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("reading", [nothing(), begun(), said()])
def test_an_error_answer_is_free_however_it_ends(status: int, ending: Ending, reading: Reading) -> None:
    assert verdict(ending, reading, status) == FREE


@pytest.mark.parametrize(
    ("chars", "tokens"), [(0, 3), (1, 4), (3, 4), (4, 4), (5, 5), (8, 5), (9, 6), (4_000_001, 1_000_004)]
)
def test_four_characters_are_a_token_rounded_up_and_added_to_the_start(chars: int, tokens: int) -> None:
    told = verdict(Ending.ABANDONED, begun(text_chars=chars))
    assert told == estimated(**{**START, "output_tokens": tokens})
    assert START["output_tokens"] == 3


@pytest.mark.parametrize("told", [None, "3", True, 1.5, [], {}])
def test_a_start_whose_output_is_no_count(told: Any) -> None:
    reading = Reading(usage_start={"input_tokens": 1, "output_tokens": told}, usage={}, text_chars=9)
    assert verdict(Ending.ABANDONED, reading) == estimated(input_tokens=1, output_tokens=3)
    reading = Reading(usage_start={"input_tokens": 1}, usage={}, text_chars=9)
    assert verdict(Ending.ABANDONED, reading) == estimated(input_tokens=1, output_tokens=3)


def test_no_answer_at_all() -> None:
    assert verdict(Ending.BROKE, nothing(), 0) == FREE
    assert verdict(Ending.SHUT_DOWN, nothing(), 0) == FREE
    assert verdict(Ending.ABANDONED, nothing(), 0) == INPUT_ONLY


@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize(
    ("reading", "free"),
    [
        (whole(stop_reason="refusal"), True),
        (whole(stop_reason="refusal", blocks=1), True),
        (whole(stop_reason="refusal", blocks=2), False),
        (said(stop_reason="refusal"), False),
        (whole(stop_reason="end_turn"), False),
    ],
)
def test_a_refusal_without_content_is_free(ending: Ending, reading: Reading, free: bool) -> None:
    assert (verdict(ending, reading) == FREE) is free


def test_the_usage_of_a_reading_is_not_changed() -> None:
    reading = begun(text_chars=10)
    before = dict(START)
    verdict(Ending.ABANDONED, reading)
    assert before == START == reading.usage_start


def test_iterations_in_the_start_do_not_hide_the_estimate() -> None:
    start = {"input_tokens": 5, "output_tokens": 1, "iterations": [{"type": "message", "output_tokens": 1}]}
    expected = Verdict("estimated", {"input_tokens": 5, "output_tokens": 3})
    assert verdict(Ending.ABANDONED, Reading(usage_start=start, usage=start, text_chars=8)) == expected
