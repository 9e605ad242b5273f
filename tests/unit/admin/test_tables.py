"""CSV that no spreadsheet runs, and that a reader reads back."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin.tables import Amount, csv_line, ndjson_line


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_a_formula_is_text(text: str) -> None:
    (row,) = csv.reader(io.StringIO(csv_line([text])))
    assert row == [f"'{text}"]


def test_numbers_stay_numbers() -> None:
    assert csv_line([-5, Amount("-0.50"), None, "x"]) == "-5,-0.50,,x\r\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20), min_size=1))
def test_what_is_written_is_read(cells: list[str]) -> None:
    (row,) = csv.reader(io.StringIO(csv_line(cells), newline=""))
    assert [cell.removeprefix("'") for cell in row] == [cell.removeprefix("'") for cell in cells]


def test_ndjson_is_one_line() -> None:
    line = ndjson_line({"a": "x\ny"})
    assert line.count("\n") == 1 and json.loads(line) == {"a": "x\ny"}
