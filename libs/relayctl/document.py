"""The server's OpenAPI document: kept for an hour, then asked for again by its ETag, and read anew where it may be behind."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from libs.common import clock
from libs.relayctl import config
from libs.relayctl.client import Client
from libs.relayctl.failures import Failure, Trouble
from libs.relayctl.table import Table

PATH: Final = "/api/openapi.json"
FRESH_MS: Final = 3_600_000
_FORM: Final = 1
"""Of the file; another one is not read."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the cache holds of a server."""

    etag: str
    read_at_ms: int
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Read:
    """A table, and whether it may be older than the server's."""

    table: Table
    may_be_behind: bool


class Documents:
    """The document of one server."""

    def __init__(self, client: Client, directory: Path, *, now_ms: Callable[[], int] = clock.unix_ms) -> None:
        self._client = client
        self._file = directory / f"{hashlib.sha256(client.url.encode()).hexdigest()[:16]}.json"
        self._now_ms = now_ms

    def read(self, *, anew: bool = False) -> Read:
        """The table of commands; `anew`: whatever the cache says. Raises Trouble, Refused, NotAllowed."""
        kept = self._kept()
        if kept and not anew and 0 <= self._now_ms() - kept.read_at_ms < FRESH_MS:
            return Read(table=Table.of(kept.document), may_be_behind=True)
        headers = {"if-none-match": kept.etag} if kept and kept.etag else {}
        with self._client.open("GET", PATH, headers=headers) as response:
            if response.status_code == 304 and kept:
                document, etag = kept.document, kept.etag
            else:
                document, etag = self._decoded(self._client.read(response)), response.headers.get("etag", "")
        table = _table(document)
        self._keep(Kept(etag=etag, read_at_ms=self._now_ms(), document=document))
        return Read(table=table, may_be_behind=False)

    def read_for_help(self) -> Table | None:
        """The table, however old, for a person who wants to read; None: there is none."""
        try:
            return self.read().table
        except Failure:
            kept = self._kept()
            return Table.of(kept.document) if kept else None

    def _decoded(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not str(value.get("openapi", "")).startswith("3."):
            raise Trouble(f"{self._client.url}{PATH} is no OpenAPI document: is this the control plane?")
        return value

    def _kept(self) -> Kept | None:
        try:
            value = json.loads(self._file.read_bytes())
            if value["form"] != _FORM:
                return None
            kept = Kept(etag=value["etag"], read_at_ms=value["read_at_ms"], document=value["document"])
            Table.of(kept.document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return kept

    def _keep(self, kept: Kept) -> None:
        value = {"form": _FORM, "etag": kept.etag, "read_at_ms": kept.read_at_ms, "document": kept.document}
        try:
            config.write_private(self._file, json.dumps(value).encode())
        except OSError:
            return  # a cache that cannot be written is none


def _table(document: dict[str, Any]) -> Table:
    try:
        return Table.of(document)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise Trouble("the server's OpenAPI document has a form that relayctl does not know") from None
