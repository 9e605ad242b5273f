"""Tables as CSV and NDJSON: made row by row, so that no answer is too long. Pure."""

import csv
import io
from collections.abc import Iterable
from typing import Any, Final

import msgspec

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
CSV: Final = "text/csv; charset=utf-8"
NDJSON: Final = "application/x-ndjson"


def csv_line(cells: Iterable[Any]) -> str:
    """One line. Text that a spreadsheet would run as a formula begins with an apostrophe; numbers stay numbers."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow([_cell(cell) for cell in cells])
    return out.getvalue()


def ndjson_line(row: Any) -> str:
    """One line."""
    return msgspec.json.encode(row).decode() + "\n"


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, Amount | int):
        return str(cell)
    text = str(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text


class Amount(str):
    """A number that is written as text, such as dollars: it may begin with a minus."""

    __slots__ = ()
