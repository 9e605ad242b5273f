"""Rows and the tables they go to: the same columns in the same order, and nothing a column cannot hold."""

import json
import re
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import pytest

from libs.common import ids
from libs.common.events import Attempt, Member, PublishedBook, UpstreamCredential
from libs.common.pricing import FREE, price_event
from services.accounting import rows
from services.accounting.migrate import _files, _statements
from tests.unit.accounting.samples import account, changed, credit, recorded, refused

DDL = "".join(
    (files("services.accounting") / "migrations" / name).read_text()
    for name in ("0001_ledger.sql", "0006_refusals.sql")
)
COLUMN = re.compile(r"^    ([a-z_0-9]+) ([A-Z]\w*(?:\([^\n]*?\))?)(.*?),?$", re.MULTILINE)
TABLES = {
    "usage": rows.USAGE_COLUMNS,
    "credits": rows.CREDIT_COLUMNS,
    "control": rows.CONTROL_COLUMNS,
    "refusals": rows.REFUSAL_COLUMNS,
}
ENGINES = {"usage": "{replacing(version)}", "refusals": "{replacing(refused)}"}


def created(table: str) -> str:
    (statement,) = [one for one in _statements(DDL) if one.startswith(f"CREATE TABLE IF NOT EXISTS {table} ")]
    return statement


def added(table: str) -> list[str]:
    """Columns of later migrations."""
    texts = [statement for _, text in _files() for statement in _statements(text)]
    alterations = [text for text in texts if text.startswith(f"ALTER TABLE {table} ")]
    return [name for text in alterations for name in re.findall(r"ADD COLUMN IF NOT EXISTS (\w+)", text)]


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_the_columns_that_are_written(table: str) -> None:
    """And nothing beside them but what has a default."""
    columns = COLUMN.findall(created(table))
    names = [name for name, _, rest in columns if "DEFAULT" not in rest]
    assert sorted(names + added(table)) == sorted(TABLES[table])
    assert [name for name, _, rest in columns if "DEFAULT" in rest] == ["recorded_at"]


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_replaced_by_what_never_changes(table: str) -> None:
    statement = created(table)
    key = re.search(r"ORDER BY \((.*)\)", statement)
    assert key is not None
    immutable = {"account_id", "time", "request_id", "credit_id", "kind", "entity_id", "sequence"}
    immutable |= {"minute", "key_id", "reason", "gateway_id"} if table == "refusals" else set()
    assert set(key[1].split(", ")) <= immutable
    assert f"ENGINE = {ENGINES.get(table, '{replacing}')}\n" in statement
    for setting in ("fsync_after_insert = 1", "fsync_part_directory = 1", "min_rows_to_fsync_after_merge = 1"):
        assert setting in statement


def test_what_counts_in_money_or_bytes_is_64_bits_wide() -> None:
    types = {name: kind for name, kind, _ in COLUMN.findall(created("usage"))}
    for name in ("total_nanos", "first_byte_us", "duration_us", "bytes_in", "bytes_out"):
        assert types[name] in ("Int64", "UInt64")
    for name in ("line_quantities", "line_unit_prices_attos", "line_amounts_nanos"):
        assert types[name] == "Array(Int64)"


def test_a_row_is_a_receipt() -> None:
    event = recorded(
        tokens=7, upstream_request_id="req_011CUpstream", member_id="memb_1", client="claude-code", bytes_in=3
    )
    row = dict(zip(rows.USAGE_COLUMNS, rows.usage_row(event, price_event(event)), strict=True))
    for name in set(rows.USAGE_COLUMNS) & set(event.__struct_fields__) - {"usage", "declined_models"}:
        assert row[name] == getattr(event, name)
    assert int(row["time"].timestamp() * 1000) == ids.id_time_ms(event.request_id)
    assert json.loads(row["usage"]) == event.usage
    assert sum(row["line_amounts_nanos"]) == row["total_nanos"] == 21_000
    assert len({len(row[name]) for name in row if name.startswith("line_")}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": 256},
        {"status": 65_536},
        {"tries": (Attempt(upstream_id="env", status=65_536),)},
        {"tries": (Attempt(upstream_id="env", status=200, duration_us=-1),)},
        {"duration_us": 2**63},
        {"request_id": "req_" + "0" * 32},
        {"request_id": "req_" + "f" * 32},
    ],
    ids=str,
)
def test_what_no_column_holds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rows.usage_row(recorded(**changes), FREE)


def test_the_limits_of_columns_are_held() -> None:
    rows.usage_row(recorded(version=255, status=65_535, duration_us=2**63 - 1), FREE)


def test_every_try_at_the_upstream_is_in_the_row() -> None:
    tries = [Attempt(upstream_id=f"upst_{number}", status=529, duration_us=number) for number in range(300)]
    event = recorded(tries=(*tries, Attempt(upstream_id="env", status=0, error="connect", duration_us=9)))
    row = dict(zip(rows.USAGE_COLUMNS, rows.usage_row(event, FREE), strict=True))
    assert row["attempts"] == 255
    assert row["attempt_upstreams"][-2:] == ["upst_299", "env"]
    assert row["attempt_statuses"][-2:] == [529, 0]
    assert row["attempt_errors"][-2:] == ["", "connect"]
    assert row["attempt_durations_us"][-2:] == [299, 9]


def test_control_rows_of_members_and_upstreams() -> None:
    member = Member(id="memb_1", account_id="acct_7", name="m", created_at_ms=1)
    assert rows.control_row(changed(member), 1)[1:4] == ("member", "memb_1", "acct_7")
    shared = UpstreamCredential(
        id="upst_1", name="u", created_at_ms=1, base_url="https://a", sealed="sealed", hint="abcd"
    )
    assert rows.control_row(changed(shared), 2)[1:4] == ("upstream", "upst_1", "")
    book = PublishedBook(id="book_1", version="2026-12-01", effective_at_ms=5, text="{}", created_at_ms=1)
    assert rows.control_row(changed(book), 3)[1:4] == ("pricebook", "book_1", "")


def test_control_rows() -> None:
    event = changed(account("acct_7", name="Grüße"))
    row = dict(zip(rows.CONTROL_COLUMNS, rows.control_row(event, 42), strict=True))
    assert (row["sequence"], row["kind"], row["entity_id"], row["account_id"]) == (42, "account", "acct_7", "acct_7")
    assert json.loads(row["entity"])["name"] == "Grüße"
    entry = credit("acct_7", -5)
    kind, _, account_id = rows.control_row(changed(entry), 43)[1:4]
    assert (kind, account_id) == ("credit", "acct_7")
    row = dict(zip(rows.CREDIT_COLUMNS, rows.credit_row(entry, "operator"), strict=True))
    assert (row["credit_id"], row["amount_nanos"], row["actor"]) == (entry.id, -5, "operator")


@pytest.mark.parametrize("time_ms", [-1, 0, 2**63, 10**15])
def test_times_that_cannot_be_are_refused(time_ms: int) -> None:
    with pytest.raises(ValueError):
        rows.control_row(changed(account(), at_ms=time_ms), 1)
    with pytest.raises(ValueError):
        rows.credit_row(credit(created_at_ms=time_ms), "test")


def test_refusal_rows() -> None:
    row = dict(zip(rows.REFUSAL_COLUMNS, rows.refusal_row(refused(minute=29_000_000, refused=7)), strict=True))
    assert row["minute"] == datetime(2025, 2, 19, 21, 20, tzinfo=UTC)
    assert (row["account_id"], row["key_id"], row["reason"], row["refused"]) == ("acct_1", "key_1", "budget", 7)


@pytest.mark.parametrize(
    "odd", [{"minute": 0}, {"minute": -1}, {"minute": 2**70}, {"refused": 0}, {"refused": -1}, {"refused": 2**63}]
)
def test_refusals_that_cannot_be_are_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rows.refusal_row(refused(**odd))
