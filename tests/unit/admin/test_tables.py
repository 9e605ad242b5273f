"""Tables as CSV: what a spreadsheet would run, and what is a number."""

import pytest

from services.admin import tables


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_text_is_never_a_formula(sign: str) -> None:
    """Spreadsheets in East Asian languages read full-width signs, too."""
    assert tables.csv_line([f"{sign}1+1"]).lstrip('"').startswith(f"'{sign}")


def test_numbers_stay_numbers() -> None:
    assert tables.csv_line([-1, tables.Amount("-0.5"), None, 10**30, "a,b"]) == f'-1,-0.5,,{10**30},"a,b"\r\n'
