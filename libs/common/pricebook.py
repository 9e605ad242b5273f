"""The dated price book: which models exist for us, and what a token of each class costs.

A book is a JSON document under a version, and is never edited: a change is a new version. Some are files under `pricebooks/`;
others are published while the relay runs, with the time from which they count (books.py, ADR 15). An event pins the version it
was admitted under, so redelivery and rebuild price it the same for ever.
Prices in the file are decimal strings of USD per million tokens; here they are atto-dollars per token (1e-18 USD), in
which every product of a price with the API's modifiers and an account's multiplier is still an integer.
"""

import re
from bisect import bisect_right, insort
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Annotated, Final

import msgspec

CURRENT_VERSION: Final = "2026-11-22"
TEXT_BYTES_MAX: Final = 200_000
"""Of a published book; some hundred models."""
ATTOS_PER_USD_PER_MTOK: Final = 10**12
ATTOS_PER_USD_PER_1000: Final = 10**15
_DATED: Final = re.compile(r"(.+)-20\d{6}", re.ASCII)
_VERSION: Final = re.compile(r"[0-9a-z.-]{1,32}", re.ASCII)
_PRICE: Final = re.compile(r"\d{1,4}(\.\d{1,4})?", re.ASCII)


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Atto-dollars per token, by class."""

    input: int
    output: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model on offer."""

    id: str
    rates: Rates
    context_tokens_max: int
    output_tokens_max: int
    hold_output_tokens_max: int
    """`max_tokens` beyond this is forwarded, but not held for (DESIGN.md, decisions)."""
    long_context_above: int | None = None
    """Input tokens, cached ones included, above which `long_context` prices the whole call."""
    long_context: Rates | None = None
    fast: Rates | None = None


class PriceBook(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one version."""

    version: str
    rows: dict[str, ModelRow]
    """By id and by alias."""
    web_search: int
    """Atto-dollars per search."""

    def find(self, model: str) -> ModelRow | None:
        """The row of a model by id, alias, or dated id (`claude-haiku-4-5-20251001`); None if we do not price it."""
        row = self.rows.get(model)
        if row is None and (dated := _DATED.fullmatch(model)):
            row = self.rows.get(dated[1])
        return row


class Timeline:
    """Which book counts when: of all that take effect at or before a time, the last. Ties: the greater id."""

    def __init__(self, first: PriceBook) -> None:
        """`first` counts from the beginning."""
        self._starts: list[tuple[int, str]] = [(0, "")]
        """Sorted: when each takes effect, and its id."""
        self._books = {self._starts[0]: first}
        self._current = first
        self._from_ms, self._until_ms = 0.0, 0.0
        """Where `_current` was the answer last: the next request is nearly always there too."""

    def add(self, effective_at_ms: int, book_id: str, book: PriceBook) -> None:
        """A book more. Added again it changes nothing."""
        start = (effective_at_ms, book_id)
        if start not in self._books:
            insort(self._starts, start)
            self._books[start] = book
            self._from_ms = self._until_ms = 0.0

    def at(self, time_ms: int) -> PriceBook:
        """The book of that Unix time; 0.1 µs unless another one counts than at the last question."""
        if self._from_ms <= time_ms < self._until_ms:
            return self._current
        after = max(bisect_right(self._starts, time_ms, key=_effective_at_ms), 1)
        start = self._starts[after - 1]
        self._from_ms = start[0]
        self._until_ms = self._starts[after][0] if after < len(self._starts) else float("inf")
        self._current = self._books[start]
        return self._current


def _effective_at_ms(start: tuple[int, str]) -> int:
    return start[0]


class _RatesFile(msgspec.Struct, forbid_unknown_fields=True):
    input: str
    output: str
    cache_write_5m: str
    cache_write_1h: str
    cache_read: str


_Id = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9.-]{0,63}\Z")]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=10**9)]


class _RowFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: _Id
    aliases: list[_Id] = []
    rates: _RatesFile
    context_tokens_max: _Tokens
    output_tokens_max: _Tokens
    hold_output_tokens_max: _Tokens
    long_context_above: _Tokens | None = None
    long_context: _RatesFile | None = None
    fast: _RatesFile | None = None


class _BookFile(msgspec.Struct, forbid_unknown_fields=True):
    version: str
    web_search_per_1000: str
    models: Annotated[list[_RowFile], msgspec.Meta(min_length=1)]


_published: Final[dict[str, PriceBook]] = {}


def load(version: str = CURRENT_VERSION) -> PriceBook:
    """The book of that version, published or shipped. Raises LookupError if none is known, ValueError if a file is not sound."""
    return _published.get(version) or _shipped(version)


def is_known(version: str) -> bool:
    """Whether `load` has it."""
    try:
        load(version)
    except LookupError:
        return False
    return True


def register(version: str, text: str) -> PriceBook:
    """Make a published book known to `load`, for the life of the process.

    Raises ValueError if it is not sound, or if another book is known under that version: prices never change under a version.
    """
    book = read_published(version, text)
    if not is_known(version):
        _published[version] = book
    elif load(version) != book:
        raise ValueError(f"another price book {version} is known already")
    return book


def read_published(version: str, text: str) -> PriceBook:
    """A book that is to be published, as it will be read for ever. Raises ValueError."""
    document = text.encode()
    if not _VERSION.fullmatch(version):
        raise ValueError(f"not the version of a price book: {version[:40]!r}")
    if len(document) > TEXT_BYTES_MAX:
        raise ValueError(f"a price book of {len(document)} bytes; it may have {TEXT_BYTES_MAX}")
    book = parse(document)
    if book.version != version:
        raise ValueError(f"the price book {version} calls itself {book.version[:40]!r}")
    return book


@cache
def _shipped(version: str) -> PriceBook:
    if not _VERSION.fullmatch(version):
        raise LookupError(f"no price book {version!r}")
    try:
        text = (files(__package__) / "pricebooks" / f"{version}.json").read_bytes()
    except FileNotFoundError:
        raise LookupError(f"no price book {version!r}") from None
    book = parse(text)
    if book.version != version:
        raise ValueError(f"the price book {version} calls itself {book.version!r}")
    return book


def parse(text: bytes) -> PriceBook:
    """A book from the bytes of its file. Raises ValueError."""
    book = msgspec.json.decode(text, type=_BookFile)
    rows: dict[str, ModelRow] = {}
    for entry in book.models:
        row = _row(entry)
        for name in (entry.id, *entry.aliases):
            if rows.setdefault(name, row) is not row:
                raise ValueError(f"{name} stands twice in price book {book.version}")
    search = _attos(book.web_search_per_1000, ATTOS_PER_USD_PER_1000)
    return PriceBook(version=book.version, rows=rows, web_search=search)


def _row(entry: _RowFile) -> ModelRow:
    if (entry.long_context is None) != (entry.long_context_above is None):
        raise ValueError(f"{entry.id}: a long-context price and its threshold go together")
    if entry.long_context is not None and entry.fast is not None:
        raise ValueError(f"{entry.id}: what a long context costs in fast mode is not defined")
    if entry.hold_output_tokens_max > entry.output_tokens_max:
        raise ValueError(f"{entry.id}: the hold cap is above what the model can say")
    return ModelRow(
        id=entry.id,
        rates=_rates(entry.rates),
        context_tokens_max=entry.context_tokens_max,
        output_tokens_max=entry.output_tokens_max,
        hold_output_tokens_max=entry.hold_output_tokens_max,
        long_context_above=entry.long_context_above,
        long_context=_rates(entry.long_context) if entry.long_context else None,
        fast=_rates(entry.fast) if entry.fast else None,
    )


def _rates(entry: _RatesFile) -> Rates:
    return Rates(
        **{name: _attos(getattr(entry, name), ATTOS_PER_USD_PER_MTOK) for name in _RatesFile.__struct_fields__}
    )


def _attos(usd: str, attos_per_usd: int) -> int:
    """Exact, or ValueError: with at most four decimals, × 11/10 × 1/2 × (ppm / 10**6) stays an integer.

    Nothing is free by a slip: a price of zero is refused.
    """
    if not _PRICE.fullmatch(usd) or not Decimal(usd):
        raise ValueError(f"not a price in dollars with at most four decimals: {usd[:40]!r}")
    return int(Decimal(usd) * attos_per_usd)
