"""The shipped book against the table of PROTOCOL.md, section 8, typed here figure by figure; and books that are not sound."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import pricebook
from libs.common.pricebook import Rates

# USD per million tokens: input, output, 5-minute write (1.25 × input), 1-hour write (2 × input), cache read.
Row = tuple[str, str, str, str, str]
PUBLISHED: dict[str, Row] = {
    "claude-opus-4-7": ("15", "75", "18.75", "30", "1.50"),
    "claude-sonnet-4-6": ("3", "15", "3.75", "6", "0.30"),
    "claude-haiku-4-5": ("1", "5", "1.25", "2", "0.10"),
}
PUBLIC_LIST: dict[str, Row] = {
    "claude-fable-5-2": ("8", "40", "10", "16", "0.20"),
    "claude-fable-5-1": ("10", "50", "12.50", "20", "0.25"),
    "claude-fable-5": ("10", "50", "12.50", "20", "1"),
    "claude-opus-5-5": ("4", "20", "5", "8", "0.20"),
    "claude-opus-5": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-8": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-6": ("5", "25", "6.25", "10", "0.50"),
    "claude-opus-4-5": ("5", "25", "6.25", "10", "0.50"),
    "claude-sonnet-5-5": ("2", "10", "2.50", "4", "0.10"),
    "claude-sonnet-5": ("2", "10", "2.50", "4", "0.20"),
    "claude-sonnet-4-5": ("3", "15", "3.75", "6", "0.30"),
    "claude-sonnet-4": ("3", "15", "3.75", "6", "0.30"),
    "claude-haiku-5-5": ("0.10", "0.50", "0.125", "0.20", "0.01"),
    "claude-opus-4-1": ("15", "75", "18.75", "30", "1.50"),
    "claude-opus-4": ("15", "75", "18.75", "30", "1.50"),
}
# Above so many input tokens; the cache multipliers on top of the new input price.
STEPS: dict[str, tuple[int, Row]] = {
    "claude-sonnet-4-6": (200_000, ("6", "22.50", "7.50", "12", "0.60")),
    "claude-haiku-5-5": (100_000, ("0.50", "2.50", "0.625", "1", "0.05")),
}
# Input and output as listed; writes by the rule; the read keeps its share of the input price.
FAST: dict[str, Row] = {
    "claude-opus-5-5": ("8", "40", "10", "16", "0.40"),
    "claude-opus-5": ("10", "50", "12.50", "20", "1"),
    "claude-opus-4-8": ("10", "50", "12.50", "20", "1"),
    "claude-fable-5-2": ("16", "80", "20", "32", "0.40"),
}
# Where the published table departs from the public list (PROTOCOL.md, section 8): the book follows the published one.
PUBLIC_LIST_INSTEAD = {"claude-opus-4-7": ("5", "25")}
PUBLIC_LIST_HAS_NO_STEP = {"claude-sonnet-4-6"}


def dollars(rates: Rates | None) -> Row | None:
    """Rates as the table writes them, without the product's own arithmetic: 1 USD per million = 10**12 atto-dollars."""
    if rates is None:
        return None
    values = (rates.input, rates.output, rates.cache_write_5m, rates.cache_write_1h, rates.cache_read)
    return tuple(f"{value // 10**12}.{value % 10**12:012d}" for value in values)  # type: ignore[return-value]


def padded(row: Row | None) -> Row | None:
    if row is None:
        return None
    return tuple(f"{text.partition('.')[0]}.{text.partition('.')[2]:0<12}" for text in row)  # type: ignore[return-value]


@pytest.mark.parametrize("model", [*PUBLISHED, *PUBLIC_LIST])
def test_every_model_of_the_table(model: str) -> None:
    row = pricebook.load().rows[model]
    assert row.id == model
    assert dollars(row.rates) == padded({**PUBLISHED, **PUBLIC_LIST}[model])
    threshold, above = STEPS.get(model, (None, None))
    assert (row.long_context_above, dollars(row.long_context)) == (threshold, padded(above))
    assert dollars(row.fast) == padded(FAST.get(model))


def test_the_book_has_these_models_and_no_others() -> None:
    book = pricebook.load()
    assert {row.id for row in book.rows.values()} == set(PUBLISHED) | set(PUBLIC_LIST)
    assert set(book.rows) - {row.id for row in book.rows.values()} == {"claude-opus-4-0", "claude-sonnet-4-0"}
    assert book.web_search == 10**16  # 10 USD per 1,000
    assert book.version == pricebook.CURRENT_VERSION


def test_the_published_table_departs_from_the_public_list_where_it_says() -> None:
    for model, (price_in, price_out) in PUBLIC_LIST_INSTEAD.items():
        assert PUBLISHED[model][:2] != (price_in, price_out)
    for model in PUBLIC_LIST_HAS_NO_STEP:
        assert pricebook.load().rows[model].long_context is not None


def test_hold_caps_as_published() -> None:
    """8,192 output tokens for Opus and Sonnet, 4,096 for Haiku (DESIGN.md, decisions); context 200K, Sonnet 4.6 1M."""
    for row in pricebook.load().rows.values():
        assert row.hold_output_tokens_max == (4_096 if "haiku" in row.id else 8_192), row.id
        assert row.context_tokens_max == (1_000_000 if row.id == "claude-sonnet-4-6" else 200_000), row.id


def test_find() -> None:
    book = pricebook.load()
    for name, row_id in [
        ("claude-haiku-4-5", "claude-haiku-4-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-opus-4-0", "claude-opus-4"),
        ("claude-opus-4-1-20250805", "claude-opus-4-1"),
    ]:
        row = book.find(name)
        assert row is not None and row.id == row_id, name
    for name in (
        "",
        "claude",
        "claude-haiku",
        "claude-haiku-4-5-2025100",
        "claude-haiku-4-5-202510011",
        "claude-haiku-4-5-19991001",
        "claude-haiku-4-5-20251001-20251001",
        "claude-haiku-4-5-20251001\n",
        "Claude-Haiku-4-5",
        " claude-haiku-4-5",
        "claude-haiku-4-5-latest",
        "-20251001",
        "claude-haiku-4-5-２０251001",
    ):
        assert book.find(name) is None, name


@given(st.text(max_size=60))
def test_find_never_raises(name: str) -> None:
    pricebook.load().find(name)
    pricebook.load().find(name + "-20251001")


def test_load_knows_only_the_shipped_versions() -> None:
    assert pricebook.load() == pricebook.load(pricebook.CURRENT_VERSION)
    for version in ("2020-01-01", "", "..", "../pricebook", "a/b", "x" * 33, "2026-11-22\n", "2026-11-22.json"):
        with pytest.raises(LookupError):
            pricebook.load(version)


def test_a_file_must_carry_its_own_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pricebooks").mkdir()
    (tmp_path / "pricebooks" / "2020-01-01.json").write_bytes(book())
    monkeypatch.setattr(pricebook, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match="2020-01-01"):
        pricebook.load("2020-01-01")


def book(**row: Any) -> bytes:
    rates = dict.fromkeys(("input", "output", "cache_write_5m", "cache_write_1h", "cache_read"), "1.00")
    sound = {
        "id": "claude-test-1",
        "rates": rates,
        "context_tokens_max": 1000,
        "output_tokens_max": 100,
        "hold_output_tokens_max": 10,
    }
    return json.dumps({"version": "1", "web_search_per_1000": "10.00", "models": [{**sound, **row}]}).encode()


def rates(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(book())["models"][0]["rates"]
    return {**found, **changed}


def test_parse_of_a_sound_book() -> None:
    parsed = pricebook.parse(book(aliases=["claude-test"], rates=rates(input="0.0001", output="1234.5")))
    assert parsed.rows["claude-test"] is parsed.rows["claude-test-1"]
    assert parsed.rows["claude-test"].rates.input == 10**8
    assert parsed.rows["claude-test"].rates.output == 12345 * 10**11


@pytest.mark.parametrize(
    "price",
    ["0", "0.00", "-1", "0.00001", "1e3", "NaN", "Infinity", "", " 1", "1 ", "1,5", "1.", ".5", "１", "12345", 1, None],
)
def test_prices_that_are_none(price: Any) -> None:
    with pytest.raises(ValueError):
        pricebook.parse(book(rates=rates(cache_read=price)))
    text = json.loads(book())
    with pytest.raises(ValueError):
        pricebook.parse(json.dumps({**text, "web_search_per_1000": price}).encode())


@pytest.mark.parametrize(
    "row",
    [
        {"surprise": 1},
        {"rates": {"input": "1"}},
        {"rates": rates(image="1")},
        {"long_context": rates()},
        {"long_context_above": 100},
        {"long_context": rates(), "long_context_above": 0},
        {"long_context": rates(), "long_context_above": 100, "fast": rates()},
        {"context_tokens_max": 0},
        {"context_tokens_max": "1000"},
        {"output_tokens_max": -5},
        {"hold_output_tokens_max": 101},
        {"id": ""},
        {"id": "Claude"},
        {"id": "claude-test-1\n"},
        {"aliases": ["a b"]},
    ],
)
def test_rows_that_are_not_sound(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        pricebook.parse(book(**row))


def test_books_that_are_not_sound() -> None:
    sound = json.loads(book())
    row = sound["models"][0]
    for text in (
        b"",
        b"[]",
        b"\xff",
        json.dumps({**sound, "models": []}).encode(),
        json.dumps({**sound, "models": [row, row]}).encode(),
        json.dumps({**sound, "models": [row, {**row, "id": "b", "aliases": ["claude-test-1"]}]}).encode(),
        json.dumps({**sound, "extra": 1}).encode(),
        json.dumps({"version": "1", "models": [row]}).encode(),
    ):
        with pytest.raises(ValueError):
            pricebook.parse(text)
