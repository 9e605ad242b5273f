"""Numbered SQL files, applied in order. Every statement is safe to run twice and from two replicas at once."""

from collections.abc import Iterator
from importlib.resources import files
from typing import Protocol


class Database(Protocol):
    """What runs statements."""

    async def run(self, statement: str) -> None:
        """Run one. Raises LedgerUnavailable."""


async def migrate(ledger: Database) -> list[str]:
    """Apply all migrations; the names of the files. Raises LedgerUnavailable."""
    names = []
    for name, text in _files():
        for statement in _statements(text):
            await ledger.run(statement)
        names.append(name)
    return names


def _files() -> Iterator[tuple[str, str]]:
    folder = files(__package__) / "migrations"
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".sql"):
            yield entry.name, entry.read_text()


def _statements(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    for statement in "\n".join(lines).split(";\n"):
        if statement := statement.strip().removesuffix(";"):
            yield statement
