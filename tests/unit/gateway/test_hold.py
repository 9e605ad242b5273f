"""What a request holds of the balance: its price for what it is thought to read and may say, rounded up; and the way back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import pricebook
from services.gateway.hold import hold_nanos, max_tokens_affordable
from services.gateway.peek import Ask

BOOK = pricebook.load()
MODELS = sorted(BOOK.rows)


def ask(**changes: Any) -> Ask:
    fields: dict[str, Any] = {
        "model": "claude-sonnet-4-6",
        "stream": False,
        "max_tokens": 1000,
        "other_models": (),
        "speed": None,
        "inference_geo": None,
        "cache_ttl_1h": False,
        "input_estimated_tokens": 100,
    }
    return Ask(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "nanos"),
    [
        ({}, 100 * 3_000 + 1000 * 15_000),
        ({"max_tokens": 0}, 300_000),
        ({"max_tokens": 1_000_000}, 300_000 + 8192 * 15_000),  # the catalogue's hold cap
        ({"model": "claude-haiku-4-5-20251001", "max_tokens": 9999}, 100_000 + 4096 * 5_000),
        ({"model": "claude-opus-4-7", "max_tokens": 1}, 100 * 15_000 + 75_000),
        ({"inference_geo": "us"}, (300_000 + 15_000_000) * 11 // 10),
        ({"input_estimated_tokens": 200_001}, 200_001 * 6_000 + 1000 * 22_500),
        ({"input_estimated_tokens": 200_000}, 200_000 * 3_000 + 1000 * 15_000),
        ({"model": "claude-opus-5-5", "speed": "fast"}, 100 * 8_000 + 1000 * 40_000),
        ({"other_models": ("claude-haiku-4-5",)}, 300_000 + 15_000_000),
        ({"other_models": ("claude-opus-4-7",)}, 1_500_000 + 75_000_000),
    ],
)
def test_holds_reckoned_by_hand(changes: dict[str, Any], nanos: int) -> None:
    assert hold_nanos(BOOK, ask(**changes)) == nanos


asks = st.builds(
    ask,
    model=st.sampled_from(MODELS),
    other_models=st.lists(st.sampled_from(MODELS), max_size=2).map(tuple),
    inference_geo=st.sampled_from([None, "us"]),
    input_estimated_tokens=st.integers(1, 400_000),
)


def held(one: Ask, max_tokens: int, ppm: int) -> int:
    """As the script reckons it."""
    base = hold_nanos(
        BOOK, ask(**{name: getattr(one, name) for name in one.__struct_fields__} | {"max_tokens": max_tokens})
    )
    return base // 10**6 * ppm + -(-(base % 10**6) * ppm // 10**6)


@given(asks, st.integers(-1000, 10**9), st.sampled_from([0, 1, 900_000, 1_000_000, 1_250_000]))
def test_what_is_affordable_fits_and_one_more_does_not(one: Ask, available: int, ppm: int) -> None:
    fits = max_tokens_affordable(BOOK, one, available, ppm)
    if fits is None:
        assert held(one, 0, ppm) > available
        return
    assert held(one, fits, ppm) <= available
    rows = [row for model in (one.model, *one.other_models) if (row := BOOK.find(model))]
    if fits < min(row.output_tokens_max for row in rows):
        assert held(one, fits + 1, ppm) > available
