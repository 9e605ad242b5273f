"""Amounts of dollars as text and back, and the one rounding."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.money import AMOUNT_NANOS_MAX, format_usd, parse_usd, round_half_up


@given(st.integers(-AMOUNT_NANOS_MAX, AMOUNT_NANOS_MAX))
def test_round_trip(nanos: int) -> None:
    text = format_usd(nanos)
    assert parse_usd(text) == nanos
    assert Fraction(text) == Fraction(nanos, 10**9)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("10.00", 10 * 10**9),
        ("10", 10 * 10**9),
        ("0", 0),
        ("-0.00", 0),
        ("0.000000001", 1),
        ("-0.5", -(10**9) // 2),
        ("000000001", 10**9),
        ("9000000", AMOUNT_NANOS_MAX),
        ("-9000000.000000000", -AMOUNT_NANOS_MAX),
    ],
)
def test_parse(text: str, nanos: int) -> None:
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1 ", " 1", "+1", "--1", "1.", ".5", "1e3", "1,000", "0x1", "NaN", "inf", "$1", "1.0000000001",
        "1000000000000", "9000000.000000001", "-9000000.000000001", "999999999", "１", "1\n", "1_0", "1" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_usd(text)
    assert len(str(refused.value)) < 200


def test_format() -> None:
    for nanos, text in [
        (0, "0.00"),
        (1, "0.000000001"),
        (-1, "-0.000000001"),
        (10**9, "1.00"),
        (1_327_645_000, "1.327645"),
        (-1_500_000_000, "-1.50"),
        (AMOUNT_NANOS_MAX, "9000000.00"),
    ]:
        assert format_usd(nanos) == text


def test_the_most_an_account_may_hold_is_exact_in_lua() -> None:
    assert AMOUNT_NANOS_MAX < 2**53


def test_halves_go_up() -> None:
    assert [round_half_up(number, 2) for number in range(6)] == [0, 1, 1, 2, 2, 3]
    assert [round_half_up(number, 10) for number in (4, 5, 6, 14, 15)] == [0, 1, 1, 1, 2]
    assert [round_half_up(number, 3) for number in (1, 2, 4, 5)] == [0, 1, 1, 2]


@given(st.integers(0, 10**30), st.integers(1, 10**12))
def test_round_half_up(numerator: int, denominator: int) -> None:
    rounded = round_half_up(numerator, denominator)
    assert Fraction(-1, 2) < rounded - Fraction(numerator, denominator) <= Fraction(1, 2)
