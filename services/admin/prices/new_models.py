"""Once a day: models that the upstream lists and the price book does not have. A row is prepared in the draft for each.

Nothing is priced by it: somebody must look at the row, and publish. The rule `unknown_model` tells who wants to know.
"""

import logging
from collections.abc import Sequence
from typing import Final

import httpx2
import msgspec

from libs.common import pricebook
from libs.common.entities import AlertRule
from libs.common.events import UpstreamCredential
from libs.common.sealing import SecretsKeyMissing
from services.admin import upstream_calls
from services.admin.alerts.measures import Found, Measured, Reading
from services.admin.control import By
from services.admin.prices import book_drafts, books
from services.admin.problems import Conflict
from services.admin.resource import Context
from services.admin.upstream_calls import Listed

_log: Final = logging.getLogger("relay.models")
_BY: Final = By(actor="relay", address="", reason="the upstream lists models without a price")


def reading(context: Context) -> Reading:
    """What rules of the kind `unknown_model` look at: prepared rows that nobody has looked at yet."""

    async def read(rules: Sequence[AlertRule]) -> Found:
        draft, _ = await books.draft(context.control)
        facts = f"Without a price: {', '.join(draft.unreviewed)}." if draft.unreviewed else ""
        return {rule.id: Measured(len(draft.unreviewed), facts) for rule in rules}

    return read


class NewModels:
    """See the module's docstring."""

    def __init__(self, context: Context, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self._context = context
        self._transport = transport

    async def run(self) -> None:
        """Look once. Raises Unavailable."""
        listed = await self._listed()
        if not listed:
            return
        draft, over = await books.draft(self._context.control)
        known = pricebook.parse(draft.text.encode())
        text, unknown = draft.text, []
        for model in listed:
            if known.find(model.id) is not None:
                continue
            try:
                row = book_drafts.prepared_row(
                    text, model.id, context_tokens_max=model.max_input_tokens, output_tokens_max=model.max_tokens
                )
                text = book_drafts.with_row(text, model.id, row)
            except ValueError as error:
                _log.warning("no row can be prepared for %r: %s", model.id[:64], error)
                continue
            unknown.append(model.id)
        if not unknown:
            return
        _log.warning("the upstream lists models that have no price: %s", ", ".join(unknown))
        changed = msgspec.structs.replace(draft, text=text, unreviewed=(*draft.unreviewed, *unknown))
        try:
            await self._context.control.put(changed, over=over, by=_BY)
        except Conflict:
            _log.info("somebody works on the draft; models are looked for again next time")

    async def _listed(self) -> list[Listed]:
        found: dict[str, Listed] = {}
        for one in await self._context.control.list_all(UpstreamCredential):
            if one.entity.status != "active":
                continue
            try:
                secret = self._context.sealer.open(one.entity.id, one.entity.sealed)
            except SecretsKeyMissing as error:
                _log.warning("%s", error)
                continue
            tried = await upstream_calls.list_models(one.entity, secret, transport=self._transport)
            if tried.detail:
                _log.warning("models of %s cannot be listed: %s", one.entity.name, tried.detail)
            found |= {model.id: model for model in tried.models}
        return [found[name] for name in sorted(found)]
