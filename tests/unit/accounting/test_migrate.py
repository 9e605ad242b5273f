"""Migrations: every file, in order, statement by statement."""

import pytest

from services.accounting.migrate import _files, _statements, migrate


class Recorder:
    """Notes what it is told to run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, statement: str) -> None:
        self.ran.append(statement)


@pytest.mark.anyio
async def test_every_statement_may_be_repeated() -> None:
    recorder = Recorder()
    names = await migrate(recorder)
    assert names == sorted(names)
    assert names[0].startswith("0001_")
    assert len(recorder.ran) >= 3
    assert all("IF NOT EXISTS" in statement for statement in recorder.ran)


def test_statements_are_split_and_comments_left_out() -> None:
    text = "-- a; comment;\nCREATE TABLE a (x String DEFAULT 'y;');\n\n-- more\nCREATE TABLE b\n(\n    x Int8\n);\n"
    assert list(_statements(text)) == ["CREATE TABLE a (x String DEFAULT 'y;')", "CREATE TABLE b\n(\n    x Int8\n)"]


def test_files_are_numbered_without_a_gap() -> None:
    assert [int(name[:4]) for name, _ in _files()] == list(range(1, len(list(_files())) + 1))
