"""Which price book counts when, and that what is known under a version stays what it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import pricebook
from libs.common.pricebook import PriceBook, Timeline
from tests.books import document, new_version

SHIPPED = pricebook.load()
times = st.integers(0, 12)


def book(version: str) -> PriceBook:
    return PriceBook(version=version, rows=SHIPPED.rows, web_search=1)


@given(st.lists(st.tuples(times, st.sampled_from("abcdef")), unique=True), st.lists(st.integers(0, 14)))
def test_the_book_of_a_time_is_the_last_that_had_taken_effect(starts: list[tuple[int, str]], asked: list[int]) -> None:
    """In whatever order they come and whatever was asked in between."""
    timeline = Timeline(SHIPPED)
    known: list[tuple[int, str, PriceBook]] = [(0, "", SHIPPED)]
    for effective_at_ms, book_id in starts:
        one = (effective_at_ms, book_id, book(f"{effective_at_ms}{book_id}"))
        known.append(one)
        timeline.add(*one)
        timeline.add(*one)
        for time_ms in [*asked, max(effective_at_ms - 1, 0), effective_at_ms]:
            counting = [entry for entry in known if entry[0] <= time_ms]
            assert timeline.at(time_ms) is max(counting, key=lambda entry: entry[:2])[2]


def test_a_registered_book_is_loaded_like_a_shipped_one() -> None:
    version = new_version()
    assert not pricebook.is_known(version)
    registered = pricebook.register(version, document(version))
    assert pricebook.load(version) is registered
    assert registered.rows["claude-sonnet-4-6"].rates.input == 2 * SHIPPED.rows["claude-sonnet-4-6"].rates.input
    assert pricebook.register(version, document(version)) == registered


def test_prices_under_a_version_never_change() -> None:
    version = new_version()
    pricebook.register(version, document(version))
    for taken in (version, pricebook.CURRENT_VERSION):
        before = pricebook.load(taken)
        with pytest.raises(ValueError, match="another price book"):
            pricebook.register(taken, document(taken, times=3))
        assert pricebook.load(taken) is before
    assert pricebook.register(pricebook.CURRENT_VERSION, document(pricebook.CURRENT_VERSION, times=1)) == SHIPPED


@pytest.mark.parametrize("version", ["", "../x", "a/b", "Upper", "x" * 33, "new\n"])
def test_a_version_that_is_none(version: str) -> None:
    with pytest.raises(ValueError, match="not the version"):
        pricebook.register(version, document(version))


def test_texts_that_are_no_book() -> None:
    version = new_version()
    padded = json.loads(document(version))
    for text in ("", "{}", "[" * 100_000, "\ud800", document("other"), json.dumps(padded) + " " * 200_000):
        with pytest.raises((ValueError, RecursionError)):
            pricebook.register(version, text)
    assert not pricebook.is_known(version)
