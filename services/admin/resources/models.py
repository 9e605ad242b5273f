"""The public price list: which models are on offer, what each may do, and what a token of each class costs. Open to all."""

import msgspec
from starlette.responses import Response

from services.admin.prices import book_drafts, books
from services.admin.prices.book_drafts import Prices
from services.admin.resource import Call, Context, Operation, respond, time_of


class ModelView(msgspec.Struct, kw_only=True):
    """A model on offer. Prices are dollars per million tokens, as decimal strings."""

    id: str
    aliases: list[str]
    context_tokens_max: int
    output_tokens_max: int
    prices: Prices
    long_context_above: int | None
    """Input tokens, cached ones included, above which the prices beside it count for the whole request."""
    long_context_prices: Prices | None
    fast_prices: Prices | None


class ModelList(msgspec.Struct, kw_only=True):
    """The price list that counts now."""

    version: str
    effective_at: str | None
    data: list[ModelView]


async def list_all(context: Context, _: Call) -> Response:
    """GET /models."""
    book = books.current(await books.all_books(context.control))
    models = [
        ModelView(
            id=model,
            aliases=row.aliases,
            context_tokens_max=row.context_tokens_max,
            output_tokens_max=row.output_tokens_max,
            prices=row.rates,
            long_context_above=row.long_context_above,
            long_context_prices=row.long_context,
            fast_prices=row.fast,
        )
        for model, row in book_drafts.rows(book.text).items()
    ]
    effective_at = time_of(book.effective_at_ms) if book.effective_at_ms else None
    return respond(ModelList(version=book.version, effective_at=effective_at, data=models))


OPERATIONS = (
    Operation(
        method="GET", path="/models", handler=list_all, summary="The public price list", answer=ModelList, roles=None
    ),
)
