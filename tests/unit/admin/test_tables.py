"""CSV that no spreadsheet runs, and that a reader reads back."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin.tables import Amount, csv_line, ndjson_line


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_text_is_never_a_formula(sign: str) -> None:
    """Spreadsheets in East Asian languages read full-width signs, too."""
    assert csv_line([f"{sign}1+1"]).lstrip('"').startswith(f"'{sign}")


def test_numbers_stay_numbers() -> None:
    assert csv_line([-5, Amount("-0.50"), None, 10**30, "a,b"]) == f'-5,-0.50,,{10**30},"a,b"\r\n'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20), min_size=1))
def test_what_is_written_is_read(cells: list[str]) -> None:
    (row,) = csv.reader(io.StringIO(csv_line(cells), newline=""))
    assert [cell.removeprefix("'") for cell in row] == [cell.removeprefix("'") for cell in cells]


def test_ndjson_is_one_line() -> None:
    line = ndjson_line({"a": "x\ny"})
    assert line.count("\n") == 1 and json.loads(line) == {"a": "x\ny"}
