"""The measured inputs of the capacity plan, read from the result files as they are. What is not found there is an error."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from bench.scaling import figures

BENCH: Final = Path(__file__).parent.parent


class Unreadable(Exception):
    """A result file lacks a figure."""


class Input(msgspec.Struct, frozen=True):
    """One measured figure, and where it stands."""

    value: float
    meaning: str
    """Unit first."""
    file: str
    command: str


Inputs = Mapping[str, Input]

_OTHERS: Final = (
    ("admission_redis_us", "ADMISSION.md", r"\| 100,000 keys \| [^|]+\| \*\*(\d+)\*\*", "µs of Redis for admit and finish"),
    ("accounting_events_per_s", "ACCOUNTING.md", r"\| backlog \| [\d,]+ \| ([\d,]+) ", "events a second of one worker"),
    ("accounting_rss_mb", "ACCOUNTING.md", r"\| backlog .* (\d+) \|", "MB of memory of that worker"),
    ("usage_rows", "ANALYTICS.md", r"\| usage \| ([\d,]+) ", "rows of usage"),
    ("usage_gb", "ANALYTICS.md", r"\| usage \| [\d,]+ \| ([\d.]+) ", "GB on the archive's disk for them"),
    ("sums_gb", "ANALYTICS.md", r"\| usage_by_hour \| [\d,]+ \| ([\d.]+) ", "GB for their hourly sums (20,000 keys)"),
)  # fmt: skip


def read(folder: Path = BENCH) -> dict[str, Input]:
    """All of them by name. Raises Unreadable."""
    found = {
        name: Input(one.value, one.meaning, "SCALING.md", "make bench-scaling")
        for name, one in figures.parsed((folder / "SCALING.md").read_text()).items()
    }
    for name, file, pattern, meaning in _OTHERS:
        match = re.search(pattern, (folder / file).read_text())
        if match is None:
            raise Unreadable(f"bench/{file} has no {name}: {pattern}")
        command = f"make bench-{file.removesuffix('.md').lower()}"
        found[name] = Input(float(match.group(1).replace(",", "")), meaning, file, command)
    return found
