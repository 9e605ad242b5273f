"""Numbered SQL files, applied in order, each once. Every statement is safe to run twice and from two replicas at once.

One set of files serves a single node and a replicated cluster: words in braces are filled in from the settings.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Final, Protocol

import msgspec

_PARTITIONS: Final = {"month": "toYYYYMM(time)", "week": "toMonday(time)", "day": "toDate(time)"}
_DETAILS: Final = (
    "usage",
    "line_models",
    "line_unit_prices_attos",
    "line_amounts_nanos",
    "attempt_upstreams",
    "attempt_statuses",
    "attempt_errors",
    "attempt_durations_us",
)
"""Columns that a receipt needs and no sum does. (Tokens are summed up from `line_classes` and `line_quantities`.)"""
_DETAIL_DAYS: Final = "detail_days"
_APPLIED: Final = """CREATE TABLE IF NOT EXISTS migrations {on_cluster}
(
    name String,
    sha256 String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replacing(applied_at)}
ORDER BY name
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1"""


class MigrationChanged(Exception):
    """A file is not what it was when it was applied to this database: changes come as a new file."""


class Layout(msgspec.Struct, frozen=True):
    """How tables are made."""

    cluster: str = ""
    """Name of the ClickHouse cluster; empty: one node."""
    partition: str = "month"
    """`month`, `week` or `day`."""
    detail_days: int = 0
    """After how many days the details of a row are emptied; 0: never."""


class Database(Protocol):
    """What runs statements."""

    async def run(self, statement: str) -> None:
        """Run one. Raises LedgerUnavailable."""

    async def query(self, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        """Rows. Raises LedgerUnavailable."""


async def migrate(database: Database, layout: Layout | None = None) -> list[str]:
    """Apply what is missing; the names of the files that were applied now. Raises LedgerUnavailable, MigrationChanged."""
    layout = layout or Layout()
    await database.run(fill_in(_APPLIED, layout))
    applied = await database.query("SELECT name, sha256 FROM migrations FINAL")
    known = {str(row[0]): str(row[1]) for row in applied}
    names = []
    for name, text in _files():
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        if name not in known:
            for statement in _statements(text):
                await database.run(fill_in(statement, layout))
            await _note(database, name, sha256)
            names.append(name)
        elif known[name] != sha256:
            raise MigrationChanged(f"{name} was changed after it had been applied")
    if known.get(_DETAIL_DAYS, "0") != str(layout.detail_days):
        await _keep_details(database, layout)
    return names


def fill_in(statement: str, layout: Layout) -> str:
    """A statement as this database wants it."""
    replicated = "Replicated" if layout.cluster else ""
    place = "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'" if layout.cluster else ""
    statement = statement.replace("{on_cluster}", f"ON CLUSTER '{layout.cluster}'" if layout.cluster else "")
    statement = statement.replace("{partition}", _PARTITIONS[layout.partition])
    for column in ("version", "computed_at", "applied_at", "refused"):
        arguments = ", ".join(filter(None, (place, column)))
        statement = statement.replace(f"{{replacing({column})}}", f"{replicated}ReplacingMergeTree({arguments})")
    return statement.replace("{replacing}", f"{replicated}ReplacingMergeTree({place})")


async def _keep_details(database: Database, layout: Layout) -> None:
    what = f"TTL toDateTime(time) + INTERVAL {layout.detail_days} DAY" if layout.detail_days else "REMOVE TTL"
    for column in _DETAILS:
        await database.run(fill_in(f"ALTER TABLE usage {{on_cluster}} MODIFY COLUMN {column} {what}", layout))
    await _note(database, _DETAIL_DAYS, str(layout.detail_days))


async def _note(database: Database, name: str, sha256: str) -> None:
    await database.run(f"INSERT INTO migrations (name, sha256) VALUES ('{name}', '{sha256}')")  # noqa: S608 - our own words


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
