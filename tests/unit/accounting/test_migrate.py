"""Migrations: every file, in order, statement by statement, each once, for one node or a cluster."""

from collections.abc import Sequence
from typing import Any

import pytest

from services.accounting.migrate import Layout, MigrationChanged, _files, _statements, fill_in, migrate

pytestmark = pytest.mark.anyio


class Recorder:
    """Notes what it is told to run, and remembers what was applied."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.applied: dict[str, str] = {}

    async def run(self, statement: str) -> None:
        self.ran.append(statement)
        if statement.startswith("INSERT INTO migrations"):
            _, name, _, sha256, _ = statement.split("'")
            self.applied[name] = sha256

    async def query(self, statement: str, parameters: dict[str, Any] | None = None) -> Sequence[Sequence[Any]]:
        return list(self.applied.items())


async def test_every_statement_may_be_repeated_and_every_file_is_applied_once() -> None:
    recorder = Recorder()
    names = await migrate(recorder)
    assert names == sorted(names) == [name for name, _ in _files()]
    made = [statement for statement in recorder.ran if not statement.startswith("INSERT INTO migrations")]
    assert len(made) > len(names) and all("IF NOT EXISTS" in one or "IF EXISTS" in one for one in made)
    assert not any(brace in statement for statement in made for brace in "{}")
    assert await migrate(recorder) == []


async def test_a_file_that_was_changed_after_it_was_applied_is_refused() -> None:
    recorder = Recorder()
    await migrate(recorder)
    recorder.applied["0001_ledger.sql"] = "other"
    with pytest.raises(MigrationChanged, match="0001_ledger"):
        await migrate(recorder)


async def test_on_a_cluster_tables_are_replicated_everywhere() -> None:
    recorder = Recorder()
    await migrate(recorder, Layout(cluster="main", partition="day"))
    made = [statement for statement in recorder.ran if statement.startswith(("CREATE", "ALTER"))]
    assert all("ON CLUSTER 'main'" in statement for statement in made)
    created = [statement for statement in made if statement.startswith("CREATE")]
    assert all("ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}" in statement for statement in created)
    usage = next(statement for statement in created if "EXISTS usage " in statement)
    assert "'{replica}', version)" in usage and "PARTITION BY toDate(time)" in usage


async def test_details_are_kept_for_as_long_as_the_setting_says() -> None:
    recorder = Recorder()
    await migrate(recorder, Layout(detail_days=30))
    assert "ALTER TABLE usage  MODIFY COLUMN usage TTL toDateTime(time) + INTERVAL 30 DAY" in recorder.ran
    assert not any("total_nanos TTL" in statement for statement in recorder.ran)
    recorder.ran.clear()
    await migrate(recorder, Layout(detail_days=30))
    assert not any("MODIFY" in statement for statement in recorder.ran)
    await migrate(recorder)
    assert "ALTER TABLE usage  MODIFY COLUMN usage REMOVE TTL" in recorder.ran


def test_words_in_braces_are_filled_in() -> None:
    assert fill_in("ENGINE = {replacing}", Layout()) == "ENGINE = ReplacingMergeTree()"
    assert fill_in("ENGINE = {replacing(version)} {partition}", Layout(partition="week")).endswith(
        "ReplacingMergeTree(version) toMonday(time)"
    )


def test_statements_are_split_and_comments_left_out() -> None:
    text = "-- a; comment;\nCREATE TABLE a (x String DEFAULT 'y;');\n\n-- more\nCREATE TABLE b\n(\n    x Int8\n);\n"
    assert list(_statements(text)) == ["CREATE TABLE a (x String DEFAULT 'y;')", "CREATE TABLE b\n(\n    x Int8\n)"]


def test_files_are_numbered_without_a_gap() -> None:
    assert [int(name[:4]) for name, _ in _files()] == list(range(1, len(list(_files())) + 1))
