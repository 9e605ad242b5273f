"""Price books for tests: the shipped one with every price some times over, under versions of their own."""

import json
import secrets
from decimal import Decimal
from importlib.resources import files
from typing import Any

from libs.common import clock, ids, pricebook
from libs.common.events import PublishedBook


def new_version() -> str:
    """One nobody has used: what is known to a process stays so."""
    return f"test-{secrets.token_hex(8)}"


def document(version: str, times: int = 2) -> str:
    """The text of a book in which everything costs that many times as much."""
    shipped = files("libs.common") / "pricebooks" / f"{pricebook.CURRENT_VERSION}.json"
    book = json.loads(shipped.read_text())
    book["version"] = version
    book["web_search_per_1000"] = str(Decimal(book["web_search_per_1000"]) * times)
    for model in book["models"]:
        for name in ("rates", "long_context", "fast"):
            if name in model:
                model[name] = {price: str(Decimal(usd) * times) for price, usd in model[name].items()}
    return json.dumps(book)


def published(version: str, effective_at_ms: int, *, times: int = 2, **changes: Any) -> PublishedBook:
    """Such a book, as it is published."""
    fields: dict[str, Any] = {"id": ids.new_book_id(), "version": version, "effective_at_ms": effective_at_ms}
    fields |= {"text": document(version, times), "created_at_ms": clock.unix_ms()}
    return PublishedBook(**(fields | changes))
