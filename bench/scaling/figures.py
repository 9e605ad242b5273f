"""What is measured has a name: the table of figures in SCALING.md, which the capacity plan reads. And how runs are told."""

import re
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

FLAT_WITHIN: Final = 0.15
_ROW: Final = re.compile(r"^\| `(\w+)` \| ([\d.,]+) \| (.*) \|$", re.MULTILINE)


class Figure(msgspec.Struct, frozen=True):
    """One number."""

    value: float
    meaning: str
    """Unit first."""


Figures = dict[str, Figure]


def rendered(figures: Figures) -> list[str]:
    """Lines of a table."""
    rows = [f"| `{name}` | {amount(one.value)} | {one.meaning} |" for name, one in figures.items()]
    return ["| figure | value | what it is |", "|---|---|---|", *rows]


def parsed(text: str) -> Figures:
    """The inverse of `rendered`: values as they are written."""
    return {name: Figure(float(value.replace(",", "")), meaning) for name, value, meaning in _ROW.findall(text)}


def amount(value: float) -> str:
    """As a reader wants it: four digits that count, or a whole number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def spread(values: Sequence[float]) -> str:
    """Median (smallest–largest)."""
    return f"**{statistics.median(values):,.0f}** ({min(values):,.0f}–{max(values):,.0f})"


def growth(medians: Sequence[float]) -> float:
    """From the first to the one that is farthest from it: 0.2 is a fifth more, -0.2 a fifth less."""
    return max((one / medians[0] - 1 for one in medians), key=abs)


def verdict(change: float) -> str:
    """In words. What becomes cheaper has not grown, and is said as it is."""
    if change > FLAT_WITHIN:
        return f"{change:+.0%}: **not flat**"
    return f"{change:+.0%}: flat" if change >= -FLAT_WITHIN else f"{change:+.0%}: does not grow"
