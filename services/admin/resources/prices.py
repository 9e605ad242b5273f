"""Price books: published ones, which are never edited, and the draft of the next: draft, diff, publish with a time."""

from itertools import chain, count
from typing import Annotated, Any, Final

import msgspec
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.entities import PriceDraft
from libs.common.events import PublishedBook
from services.admin.access import MONEY, OPERATORS
from services.admin.control import Found, Put
from services.admin.prices import book_drafts, books
from services.admin.prices.book_drafts import Difference, PriceRow
from services.admin.problems import Conflict, Missing, Unprocessable
from services.admin.resource import (
    IDEMPOTENT,
    MATCHED,
    TEXT,
    Call,
    Context,
    Operation,
    check_match,
    digest,
    read,
    respond,
    time_of,
)
from services.admin.resources.times import Expiry, expiry_ms

Note = Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=TEXT)]


class BookView(msgspec.Struct, kw_only=True):
    """A price book."""

    version: str
    effective_at: str | None
    """Requests that begin from then on are priced by it; null: from the beginning."""
    published_at: str | None
    is_current: bool
    note: str


class BookList(msgspec.Struct):
    """In the order in which they count."""

    data: list[BookView]


class BookRows(BookView, kw_only=True):
    """A price book with its rows."""

    models: dict[str, PriceRow]


class DraftView(msgspec.Struct, kw_only=True):
    """The next book, and what it changes."""

    base_version: str
    differences: list[Difference]
    unreviewed: list[str]
    """Models whose row a program has prepared: put them as they should be, or delete them, before it can be published."""


class Departures(msgspec.Struct, kw_only=True):
    """Where the book that counts now departs from a public list: what the list has, what the book has."""

    version: str
    list_as_of: str
    list_source: str
    departures: list[Difference]


class Publication(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To publish the draft."""

    note: Note
    effective_at: Expiry | None = None
    """From when on it counts; null: as soon as every gateway can know it."""


async def list_all(context: Context, _: Call) -> Response:
    """GET /prices."""
    found = await books.all_books(context.control)
    now = books.current(found)
    return respond(BookList([_view(one, is_current=one is now) for one in found]))


async def show(context: Context, call: Call) -> Response:
    """GET /prices/{version}; `current` is the one that counts now."""
    found, version = await books.all_books(context.control), str(call.path_params["version"])
    now = books.current(found)
    one = now if version == "current" else next((one for one in found if one.version == version), None)
    if one is None:
        raise Missing("There is no such price book.")
    view = msgspec.structs.asdict(_view(one, is_current=one is now))
    return respond(BookRows(models=book_drafts.rows(one.text), **view))


async def departures(context: Context, _: Call) -> Response:
    """GET /price-departures."""
    now = books.current(await books.all_books(context.control))
    public = book_drafts.public_list()
    found = book_drafts.departures(now.text, public)
    return respond(
        Departures(version=now.version, list_as_of=public.as_of, list_source=public.source, departures=found)
    )


async def show_draft(context: Context, _: Call) -> Response:
    """GET /price-draft."""
    draft, over = await books.draft(context.control)
    return await _answer(context, draft, over)


async def put_row(context: Context, call: Call) -> Response:
    """PUT /price-draft/models/{model}: the draft alone; no request is priced by it."""
    row, model = await read(call, PriceRow), _model(call)
    draft, over = await books.draft(context.control)
    _check(call, over)
    try:
        text = book_drafts.with_row(draft.text, model, row)
    except ValueError as error:
        raise Unprocessable(f"{error}.") from None
    reviewed = tuple(one for one in draft.unreviewed if one != model)
    changed = msgspec.structs.replace(draft, text=text, unreviewed=reviewed)
    return await _put(context, call, changed, over, f"priced {model}")


async def delete_row(context: Context, call: Call) -> Response:
    """DELETE /price-draft/models/{model}: from when it is published on, the model is not on offer."""
    model = _model(call)
    draft, over = await books.draft(context.control)
    _check(call, over)
    try:
        text = book_drafts.without_row(draft.text, model)
    except LookupError:
        raise Missing("The draft has no such model.") from None
    except ValueError as error:
        raise Unprocessable(f"{error}.") from None
    reviewed = tuple(one for one in draft.unreviewed if one != model)
    return await _put(
        context, call, msgspec.structs.replace(draft, text=text, unreviewed=reviewed), over, f"took out {model}"
    )


async def discard(context: Context, call: Call) -> Response:
    """DELETE /price-draft: begin anew from the book that was published last."""
    draft, over = await books.draft(context.control)
    _check(call, over)
    return await _put(context, call, msgspec.structs.replace(draft, text="", unreviewed=()), over, "draft discarded")


async def publish(context: Context, call: Call) -> Response:
    """POST /price-draft/publish: draft and book change together."""
    body = await read(call, Publication)
    name, request = call.derived_id("book"), digest(body)
    if name is not None and (first := await context.control.first(PublishedBook, name, request)) is not None:
        return respond(_published(first), 201)
    draft, over = await books.draft(context.control)
    _check(call, over)
    found = await books.all_books(context.control)
    effective_at_ms = _effective_at_ms(context, body, found)
    if draft.unreviewed:
        raise Conflict(f"Nobody has looked at the prepared rows of {', '.join(draft.unreviewed)} yet.")
    base = next((one for one in found if one.version == draft.base_version), None)
    if base is not None and base.version != found[-1].version:
        raise Conflict(f"{found[-1].version} was published since the draft was begun. Discard it, and begin anew.")
    if not book_drafts.differences(found[-1].text, draft.text):
        raise Conflict("The draft changes nothing.")
    version = _new_version(found)
    try:
        text = book_drafts.named(draft.text, version)
    except ValueError as error:
        raise Unprocessable(f"{error}.") from None
    book = PublishedBook(
        id=name or ids.new_book_id(),
        version=version,
        effective_at_ms=effective_at_ms,
        text=text,
        created_at_ms=clock.unix_ms(),
        note=body.note,
    )
    done = msgspec.structs.replace(draft, text="", unreviewed=())
    puts: list[Put] = [(book, None), (done, over)]
    try:
        await context.control.put_all(puts, by=call.by(body.note, request if name else ""))
    except Conflict:
        first = await context.control.first(PublishedBook, name, request) if name is not None else None
        if first is None:
            raise
        book = first
    return respond(_published(book), 201)


def _new_version(found: list[books.Book]) -> str:
    """The time, and a number if a book was published in this second already: of two under one version only the first counts.

    Nobody else can publish meanwhile: the draft would have changed.
    """
    version, taken = clock.utc_now().strftime("%Y-%m-%d.%H%M%S"), {one.version for one in found}
    names = chain([version], (f"{version}.{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _effective_at_ms(context: Context, body: Publication, found: list[books.Book]) -> int:
    soonest_ms = clock.unix_ms() + int(context.price_lead_seconds * 1000)
    asked_ms = expiry_ms(body.effective_at, name="effective_at", in_future=False)
    if asked_ms is not None and asked_ms < soonest_ms:
        raise Unprocessable(
            f"effective_at must be {context.price_lead_seconds:g} s ahead or more, so that every gateway knows of it by then."
        )
    chosen_ms = asked_ms or soonest_ms
    if chosen_ms <= found[-1].effective_at_ms:
        raise Unprocessable(f"effective_at must be later than that of {found[-1].version}, which was published before.")
    return chosen_ms


def _check(call: Call, over: Found[PriceDraft] | None) -> None:
    check_match(call, over or Found(None, 0, ""))


async def _put(
    context: Context, call: Call, draft: PriceDraft, over: Found[PriceDraft] | None, reason: str
) -> Response:
    put = await context.control.put(draft, over=over, by=call.by(reason))
    if not draft.text:
        draft, _ = await books.draft(context.control)
    return await _answer(context, draft, put)


async def _answer(context: Context, draft: PriceDraft, over: Found[Any] | None) -> Response:
    found = await books.all_books(context.control)
    base = next((one for one in found if one.version == draft.base_version), found[-1])
    view = DraftView(
        base_version=base.version,
        differences=book_drafts.differences(base.text, draft.text),
        unreviewed=list(draft.unreviewed),
    )
    return respond(view, version=over.version if over else None)


def _model(call: Call) -> str:
    model = str(call.path_params["model"])
    try:
        return msgspec.convert(model, book_drafts.ModelId)
    except msgspec.ValidationError:
        raise Missing("A model's id has small letters, digits, dots and hyphens, at most 64.") from None


def _view(book: books.Book, *, is_current: bool) -> BookView:
    return BookView(
        version=book.version,
        effective_at=time_of(book.effective_at_ms) if book.effective_at_ms else None,
        published_at=time_of(book.published_at_ms) if book.published_at_ms else None,
        is_current=is_current,
        note=book.note,
    )


def _published(book: PublishedBook) -> BookView:
    return BookView(
        version=book.version,
        effective_at=time_of(book.effective_at_ms),
        published_at=time_of(book.created_at_ms),
        is_current=False,
        note=book.note,
    )


_ROW: Final = "/price-draft/models/{model}"
OPERATIONS = (
    Operation(
        method="GET", path="/prices", handler=list_all, summary="List price books", answer=BookList, roles=OPERATORS,
        scope="prices:read",
    ),
    Operation(
        method="GET", path="/prices/{version}", handler=show, summary="Show a price book", answer=BookRows,
        roles=OPERATORS, scope="prices:read",
    ),
    Operation(
        method="GET", path="/price-departures", handler=departures, answer=Departures, roles=OPERATORS,
        summary="Where the price book departs from a public list", scope="prices:read",
    ),
    Operation(
        method="GET", path="/price-draft", handler=show_draft, summary="Show the draft of the next price book",
        answer=DraftView, roles=OPERATORS, scope="prices:read",
    ),
    Operation(
        method="PUT", path=_ROW, handler=put_row, summary="Price a model in the draft", body=PriceRow, answer=DraftView,
        headers=MATCHED, roles=MONEY, scope="prices:write",
    ),
    Operation(
        method="DELETE", path=_ROW, handler=delete_row, summary="Take a model out of the draft", answer=DraftView,
        headers=MATCHED, roles=MONEY, scope="prices:write",
    ),
    Operation(
        method="DELETE", path="/price-draft", handler=discard, summary="Discard the draft", answer=DraftView,
        headers=MATCHED, roles=MONEY, scope="prices:write",
    ),
    Operation(
        method="POST", path="/price-draft/publish", handler=publish, summary="Publish the draft", body=Publication,
        answer=BookView, status=201, headers=IDEMPOTENT | MATCHED, roles=MONEY, scope="prices:write",
    ),
)  # fmt: skip
