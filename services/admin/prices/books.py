"""Price books as the control plane sees them: all that were published, the shipped one, and the draft."""

from typing import Final

import msgspec

from libs.common import clock, pricebook
from libs.common.entities import PriceDraft
from libs.common.events import PublishedBook
from services.admin.control import Control, Found
from services.admin.prices import book_drafts

DRAFT_ID: Final = "draft_" + "0" * 32
"""There is one draft."""


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """A book and when it counts. Unix milliseconds; 0: from the beginning."""

    version: str
    effective_at_ms: int
    published_at_ms: int
    text: str
    note: str


async def all_books(control: Control) -> list[Book]:
    """In the order in which they count: the shipped one first. Raises Unavailable."""
    published = [one.entity for one in await control.list_all(PublishedBook)]
    shipped = Book(
        version=pricebook.CURRENT_VERSION,
        effective_at_ms=0,
        published_at_ms=0,
        text=book_drafts.shipped_text(pricebook.CURRENT_VERSION),
        note="shipped",
    )
    books = [
        Book(
            version=one.version,
            effective_at_ms=one.effective_at_ms,
            published_at_ms=one.created_at_ms,
            text=one.text,
            note=one.note,
        )
        for one in sorted(published, key=lambda one: (one.effective_at_ms, one.id))
    ]
    return [shipped, *books]


def current(books: list[Book]) -> Book:
    """The one that counts now."""
    now_ms = clock.unix_ms()
    return [one for one in books if one.effective_at_ms <= now_ms][-1]


async def draft(control: Control) -> tuple[PriceDraft, Found[PriceDraft] | None]:
    """The draft; one that is fresh begins with the book that is published last. Raises Unavailable."""
    found = await control.find(PriceDraft, DRAFT_ID)
    if found is not None and found.entity.text:
        return found.entity, found
    latest = (await all_books(control))[-1]
    return PriceDraft(id=DRAFT_ID, text=latest.text, base_version=latest.version), found
