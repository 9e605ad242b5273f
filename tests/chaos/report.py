"""What a stage of the chaos suite found."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["held", "broken"]


@dataclass(frozen=True)
class Result:
    """One fault, and whether the ledger came out right under it."""

    name: str
    """As `--only` takes it."""
    outcome: Outcome
    detail: str
    """Figures in one line; of a broken promise, what broke it."""
    seconds: float
