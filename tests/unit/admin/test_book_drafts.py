"""Drafts of price books: rows in and out, differences, departures from a public list, rows for new models."""

import json

import msgspec
import pytest

from libs.common import pricebook
from services.admin.prices import book_drafts
from services.admin.prices.book_drafts import PriceRow, Prices

SHIPPED = book_drafts.shipped_text(pricebook.CURRENT_VERSION)
ROW = book_drafts.rows(SHIPPED)["claude-haiku-4-5"]


def test_a_row_goes_in_and_out() -> None:
    text = book_drafts.with_row(SHIPPED, "claude-new", ROW)
    assert list(book_drafts.rows(text))[-1] == "claude-new"
    assert book_drafts.rows(text)["claude-new"] == ROW
    assert book_drafts.rows(book_drafts.without_row(text, "claude-new")) == book_drafts.rows(SHIPPED)
    with pytest.raises(LookupError):
        book_drafts.without_row(SHIPPED, "claude-new")


def test_a_row_keeps_its_place() -> None:
    dearer = msgspec.structs.replace(ROW, rates=msgspec.structs.replace(ROW.rates, input="1.50"))
    text = book_drafts.with_row(SHIPPED, "claude-haiku-4-5", dearer)
    assert list(book_drafts.rows(text)) == list(book_drafts.rows(SHIPPED))
    (difference,) = book_drafts.differences(SHIPPED, text)
    assert (difference.model, difference.change) == ("claude-haiku-4-5", "changed")
    assert difference.fields == {"rates.input": ["1.00", "1.50"]}


def test_how_a_price_is_written_is_no_difference() -> None:
    same = msgspec.structs.replace(ROW, rates=msgspec.structs.replace(ROW.rates, input="1.0000", output="5"))
    assert book_drafts.differences(SHIPPED, book_drafts.with_row(SHIPPED, "claude-haiku-4-5", same)) == []


@pytest.mark.parametrize("price", ["0", "0.00", "1.00001", "-1", "x", ""])
def test_a_price_that_is_none(price: str) -> None:
    rates = Prices(input=price, output="1", cache_write_5m="1", cache_write_1h="1", cache_read="1")
    with pytest.raises(ValueError):
        book_drafts.with_row(SHIPPED, "claude-x", msgspec.structs.replace(ROW, rates=rates))


def test_a_name_stands_once() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        book_drafts.with_row(SHIPPED, "claude-x", msgspec.structs.replace(ROW, aliases=["claude-haiku-4-5"]))


def test_the_version_is_the_documents_too() -> None:
    text = book_drafts.named(SHIPPED, "2027-01-01.120000")
    assert json.loads(text)["version"] == "2027-01-01.120000"
    assert pricebook.read_published("2027-01-01.120000", text).rows == pricebook.load().rows
    with pytest.raises(ValueError):
        book_drafts.named(SHIPPED, "Not A Version")


def test_the_shipped_book_departs_where_the_published_table_does() -> None:
    found = {one.model: one.fields for one in book_drafts.departures(SHIPPED, book_drafts.public_list())}
    assert set(found) == {"claude-opus-4-7", "claude-sonnet-4-6"}
    assert found["claude-opus-4-7"]["rates.output"] == ["25.00", "75.00"]
    assert found["claude-sonnet-4-6"]["long_context_above"] == [None, 200_000]


def test_a_prepared_row() -> None:
    row = book_drafts.prepared_row(SHIPPED, "claude-opus-9", context_tokens_max=5, output_tokens_max=3)
    assert (row.context_tokens_max, row.output_tokens_max, row.hold_output_tokens_max) == (5, 3, 3)
    assert row.rates == book_drafts.rows(SHIPPED)["claude-opus-4-7"].rates and row.aliases == []
    without = book_drafts.without_row(SHIPPED, "claude-haiku-5-5")
    listed = book_drafts.prepared_row(without, "claude-haiku-5-5", context_tokens_max=None, output_tokens_max=None)
    assert (listed.rates.input, listed.long_context_above) == ("0.10", 100_000)
    strange = book_drafts.prepared_row(SHIPPED, "mystery", context_tokens_max=None, output_tokens_max=None)
    assert isinstance(strange, PriceRow)
