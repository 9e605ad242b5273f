"""Which path of our table a request target means. Pure, on raw bytes; the upstream's path never comes from the caller's text.

Aliases (`/messages`, `/v1/v1/messages`) are for clients whose base URL has a `/v1` too many or too few; PROTOCOL.md, section 9.
"""

import re
from enum import Enum
from typing import Final

import msgspec


class Route(Enum):
    """What the relay does with a target."""

    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    MODELS = "models"
    MODEL = "model"
    USAGE = "usage"
    HELLO = "hello"
    LOCAL = "local"


class Target(msgspec.Struct, frozen=True):
    """A path of ours. `upstream` is the upstream's path and query, b"" for what never goes there."""

    route: Route
    upstream: bytes = b""
    model: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """A target that is not forwarded, with the status and the sentence to answer."""

    status: int
    message: str
    headers: dict[str, str] = {}


_PREFIXES: Final = (b"/v1", b"", b"/v1/v1")
_ODD: Final = re.compile(rb"%2[ef]|%5c|%00|//|[;#\\]|/\.\.?(?:/|$)|[^\x21-\x7e]", re.IGNORECASE)
_MODEL_ID: Final = re.compile(rb"[A-Za-z0-9._:@-]{1,128}")
_QUERY: Final = re.compile(rb"[\x21\x22\x24-\x7e]*")  # printable, without the fragment's #
_POST: Final = frozenset({"POST"})
_READ: Final = frozenset({"GET", "HEAD"})
_MODELS_PATHS: Final = tuple(prefix + b"/models/" for prefix in _PREFIXES)


def _table() -> dict[bytes, tuple[Route, frozenset[str], bytes]]:
    table: dict[bytes, tuple[Route, frozenset[str], bytes]] = {
        b"/": (Route.HELLO, _READ, b""),
        b"/api/hello": (Route.HELLO, _READ, b""),
        b"/healthz": (Route.LOCAL, _READ, b""),
        b"/readyz": (Route.LOCAL, _READ, b""),
        b"/metrics": (Route.LOCAL, _READ, b""),
    }
    for prefix in _PREFIXES:
        table[prefix + b"/messages"] = (Route.MESSAGES, _POST, b"/v1/messages")
        table[prefix + b"/messages/count_tokens"] = (Route.COUNT_TOKENS, _POST, b"/v1/messages/count_tokens")
        table[prefix + b"/usage"] = (Route.USAGE, _READ, b"")
        table[prefix + b"/models"] = (Route.MODELS, _READ, b"/v1/models")
    return table


_TABLE: Final = _table()


def resolve(method: str, path: bytes, query: bytes) -> Target | Refusal:
    """The target of a request line: `path` raw and without its query."""
    entry = _TABLE.get(path)
    if entry is None:
        return _model(method, path, query)
    route, methods, upstream = entry
    if method not in methods:
        return _wrong_method(methods)
    return _with_query(route, upstream, query)


def _model(method: str, path: bytes, query: bytes) -> Target | Refusal:
    if not path.startswith(b"/") or _ODD.search(path):
        return Refusal(400, "This path is not one the relay can read; see the API reference for the paths there are.")
    for prefix in _MODELS_PATHS:
        name = path.removeprefix(prefix)
        if name != path and _MODEL_ID.fullmatch(name):
            if method not in _READ:
                return _wrong_method(_READ)
            return _with_query(Route.MODEL, b"/v1/models/" + name, query, name.decode())
    return Refusal(
        404, "There is no such path here. The relay serves /v1/messages, count_tokens, /v1/models and /v1/usage."
    )


def _with_query(route: Route, upstream: bytes, query: bytes, model: str = "") -> Target | Refusal:
    if not query or not upstream:
        return Target(route, upstream, model)
    if not _QUERY.fullmatch(query):
        return Refusal(400, "The query of this request holds a byte that must be percent-encoded.")
    return Target(route, upstream + b"?" + query, model)


def _wrong_method(allowed: frozenset[str]) -> Refusal:
    names = ", ".join(sorted(allowed))
    return Refusal(405, f"This path takes {names}.", {"allow": names})
