"""What a stage of the chaos suite found."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Result:
    """One fault and what became of the promises under it."""

    name: str
    """The stage, as `--only` takes it."""
    promises: str
    """Of RELIABILITY's list: `P1 P2`."""
    outcome: Literal["held", "broken", "not run"]
    """`not run` where something needed is missing here (root, a program): never a pass."""
    detail: str
    """Figures in one line; of a broken promise, what broke it."""
    seconds: float


Stage = Callable[[Path, int], list[Result]]
"""Runs in an empty directory with a seed."""
