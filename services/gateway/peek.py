"""What the relay must know of a request body, read from a copy: the body itself is forwarded as it came.

The fast decoder reads the top level only and skips over the rest. It may be stricter than the API (lone surrogates, deep
nesting): what it refuses is judged again, more tolerantly, in `_members`. A body whose top level is no JSON object, or whose
brackets and strings do not close, is refused; what is wrong inside a value is the upstream's to judge, with its own 400.
"""

import math
import re
from collections import Counter
from typing import Any, Final

import msgspec

from libs.common.errors import BadRequest
from services.gateway import tolerant

_MONEY_KEYS: Final = frozenset({"model", "max_tokens", "stream", "speed", "inference_geo", "fallbacks", "tools"})
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_CACHE_WORDS: Final = (b"cache_control", b"ttl", b"1h")
_BASE64_BEGUN: Final = re.compile(rb'"data"\s*+:\s*+"(?P<media>(?P<pdf>JVBERi)?[A-Za-z0-9+/=_\\-]{256})')
"""A PDF begins with `%PDF-`."""
_ASCII: Final = bytes(range(128))
_BYTES_PER_TOKEN: Final = 3.8
_BYTES_BEYOND_ASCII: Final = 2.4
_BASE_TOKENS: Final = 6
_ROLE_BYTES: Final = 25
_TYPE_BYTES: Final = 24
"""What a message and a block have around their text."""
_WORDS: Final = re.compile(rb'"(?:role|type|source)"')
_LISTED_BYTES_MAX: Final = 1024 * 1024
"""In a longer text they are not listed: a hostile one might consist of them."""
_TOOLS_TOKENS: Final = 450
"""The system prompt the API adds where there are tools."""
_TOOL_BYTES_PER_TOKEN: Final = 2.8
_SERVER_TOOL: Final = re.compile(rb'"type"\s*+:\s*+"([a-z0-9_]+)_20\d{6}"')
_SERVER_TOOL_TOKENS: Final = 1700
_SERVER_TOOLS_TOKENS: Final = {
    b"tool_search_tool_regex": 200,
    b"tool_search_tool_bm25": 200,
    b"web_fetch": 400,
    b"advisor": 600,
}
"""What the API says of a tool of its own: most are like web_search."""
_FEATURE_TOKENS: Final = {"thinking": 28, "context_management": 70, "mcp_servers": 1700}
_CITATIONS: Final = re.compile(rb'"citations"\s*+:\s*+\{')
_CITATIONS_TOKENS: Final = 500
"""What the API says of quoting a document."""
_REFERENCES: Final = (b'"file_id"', b'"type":"url"', b'"type": "url"')
_REFERENCE_TOKENS: Final = 800
"""An image or a document that is not in the body."""
_IMAGE_TOKENS: Final = 1600
_IMAGE_BYTES_PER_TOKEN: Final = 85
"""Base64 of an image: a pixel of a photograph is a tenth to a half of a byte, and 750 pixels are a token."""
_PAGE_TOKENS: Final = 2000
_PAGE_BYTES: Final = 100_000
"""Base64 of a PDF page, very roughly: pages of text are a third of it, scanned ones three times as much."""
_ENTRIES_MAX: Final = 10_000
_NAMED_MODELS_BYTES_MAX: Final = 4 * 1024 * 1024


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a message request that decide what it may do and what it costs."""

    model: str
    stream: bool
    max_tokens: int
    other_models: tuple[str, ...]
    """Models named in `fallbacks` and in advisor tools: the caller must be allowed, and we must price, these too."""
    speed: str | None
    inference_geo: str | None
    cache_ttl_1h: bool
    input_estimated_tokens: int


class _Name:
    """A top-level name that equals nothing but itself, so that the decoder keeps one that stands twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _TopLevel:
    """Decodes an object to its members as raw slices, in order, duplicates included."""

    def __init__(self) -> None:
        self._names_left = 0
        self._decode = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=self._name).decode

    def read(self, body: bytes) -> list[tuple[str, Any]]:
        self._names_left = tolerant.MEMBERS_MAX
        return [(name.text, raw) for name, raw in self._decode(body).items()]

    def _name(self, _: type, text: str) -> _Name:
        self._names_left -= 1
        if self._names_left < 0:
            raise BadRequest(f"The request body has more than {tolerant.MEMBERS_MAX} fields.")
        return _Name(text)


class _Named(msgspec.Struct):
    """An entry of `fallbacks` or `tools`."""

    type: Any = None
    model: Any = None


_top_level: Final = _TopLevel()
_decode_model: Final = msgspec.json.Decoder(str).decode
_decode_scalar: Final = msgspec.json.Decoder(str | int | float | bool | None).decode
_decode_fallbacks: Final = msgspec.json.Decoder(list[_Named] | str | None).decode
_decode_tools: Final = msgspec.json.Decoder(list[_Named] | None).decode


def peek(body: bytes) -> Ask:
    """Read a request body. Raises BadRequest for a body that is not a JSON object, has no readable `model`, names a
    money-deciding key twice, or says who else is to pay."""
    top: dict[str, Any] = {}
    for name, raw in _members(body):
        if name in top and name in _MONEY_KEYS:
            raise BadRequest(f"{name}: the field stands twice in the request body; send it once.")
        top[name] = raw
    if "billing_policy" in top:
        raise BadRequest("billing_policy: this relay bills your account; remove the field.")
    return Ask(
        model=_model(top),
        stream=_stream(top),
        max_tokens=_max_tokens(top),
        other_models=(*_fallback_models(top), *_advisor_models(top)),
        speed=_text_or_none(top, "speed"),
        inference_geo=_text_or_none(top, "inference_geo"),
        cache_ttl_1h=_asks_for_1h(body),
        input_estimated_tokens=_estimate(top, body),
    )


def _members(body: bytes) -> list[tuple[str, Any]]:
    try:
        return _top_level.read(body)
    except RecursionError:
        pass
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            # lone surrogates become private-use characters: same length, same structure
            return _top_level.read(body.replace(rb"\ud", rb"\ue").replace(rb"\uD", rb"\uE"))
        except _UNREADABLE:
            pass
    try:
        return list(tolerant.top_level(body))
    except tolerant.NotAnObject as error:
        raise BadRequest(f"The request body is not a JSON object: {error}.") from None


def _model(top: dict[str, Any]) -> str:
    raw = top.get("model")
    if raw is None:
        raise BadRequest("model: Field required")
    try:
        return _decode_model(raw)
    except _UNREADABLE:
        raise BadRequest("model: Input should be a valid string") from None


def _stream(top: dict[str, Any]) -> bool:
    value = _scalar(top, "stream")
    if value not in (None, True, False):
        raise BadRequest("stream: Input should be a valid boolean")
    return bool(value)


def _max_tokens(top: dict[str, Any]) -> int:
    """0 where it is absent or not a count: the upstream answers that with its own 400."""
    value = _scalar(top, "max_tokens")
    if isinstance(value, float) and value.is_integer():  # 1e3 may well be taken for 1000
        value = int(value)
    return value if type(value) is int and value >= 0 else 0


def _text_or_none(top: dict[str, Any], name: str) -> str | None:
    value = _scalar(top, name)
    return value if isinstance(value, str) else None


def _scalar(top: dict[str, Any], name: str) -> Any:
    raw = top.get(name)
    if raw is None:
        return None
    try:
        return _decode_scalar(raw)
    except _UNREADABLE:
        raise BadRequest(f"{name}: the field cannot be read") from None


def _fallback_models(top: dict[str, Any]) -> list[str]:
    if "fallbacks" not in top:
        return []
    entries = _entries(top["fallbacks"], "fallbacks", _decode_fallbacks)
    return [entry.model for entry in entries if isinstance(entry.model, str)]


def _advisor_models(top: dict[str, Any]) -> list[str]:
    raw = bytes(top.get("tools", b""))
    if b"advisor" not in raw and rb"\u00" not in raw:  # an escaped letter may hide the word
        return []
    entries = _entries(raw, "tools", _decode_tools)
    return [entry.model for entry in entries if str(entry.type).startswith("advisor") and isinstance(entry.model, str)]


def _entries(raw: Any, name: str, decode: Any) -> list[_Named]:
    if len(bytes(raw)) > _NAMED_MODELS_BYTES_MAX:
        raise BadRequest(f"{name}: the field is larger than {_NAMED_MODELS_BYTES_MAX // (1024 * 1024)} MB")
    try:
        entries = decode(raw)
    except _UNREADABLE:
        raise BadRequest(f"{name}: the field cannot be read") from None
    if isinstance(entries, list) and len(entries) > _ENTRIES_MAX:
        raise BadRequest(f"{name}: more than {_ENTRIES_MAX} entries")
    return entries if isinstance(entries, list) else []


def _ttl_1h(*words: bytes) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"\s*+:\s*+\{[^{}]*"%b"\s*+:\s*+"%b"' % words)


def _in_any_spelling(word: bytes) -> bytes:
    return b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in word)


_TTL_1H: Final = _ttl_1h(*_CACHE_WORDS)
_TTL_1H_ESCAPED: Final = _ttl_1h(*map(_in_any_spelling, _CACHE_WORDS))
_ESCAPED_LETTER: Final = re.compile(
    rb"\\u00(?i:%b)" % b"|".join(b"%02x" % letter for letter in set(b"".join(_CACHE_WORDS)))
)


def _asks_for_1h(body: bytes) -> bool:
    """Whether any `cache_control` wants an hour, wherever it stands and however it is spelled."""
    pattern = _TTL_1H_ESCAPED if _ESCAPED_LETTER.search(body) else _TTL_1H
    return pattern.search(body) is not None


def _estimate(top: dict[str, Any], body: bytes) -> int:
    """Input tokens, roughly: what admission holds for and takes from a rate limit until the true figure is known.

    The constants were fitted to the recorded exchanges (tests/unit/gateway/test_estimate.py says how well). What server tools
    fetch, and files named by an id, nobody can know beforehand.
    """
    talk = bytes(top.get("messages", b"")) + bytes(top.get("system", b""))
    tools = bytes(top.get("tools", b""))
    roles, types, has_sources = _words(talk)
    media_bytes, source_tokens = _sources(talk) if has_sources else (0, 0)
    scaffold = _ROLE_BYTES * roles + _TYPE_BYTES * types
    text = max(len(talk) - media_bytes - scaffold, 0)
    # a letter beyond ASCII has two to four bytes, and is worth about a token with three
    beyond_ascii = 0 if talk.isascii() else len(talk.translate(None, _ASCII))
    tokens = (
        _BASE_TOKENS + source_tokens + (text - beyond_ascii) / _BYTES_PER_TOKEN + beyond_ascii / _BYTES_BEYOND_ASCII
    )
    if len(tools) > len(b"[]"):
        tokens += _TOOLS_TOKENS + len(tools) / _TOOL_BYTES_PER_TOKEN
        for kind, count in Counter(_SERVER_TOOL.findall(tools)).items():
            tokens += count * _SERVER_TOOLS_TOKENS.get(kind, _SERVER_TOOL_TOKENS)
    for name, more in _FEATURE_TOKENS.items():
        if name in top:
            tokens += more
    return math.ceil(tokens)


def _words(talk: bytes) -> tuple[int, int, bool]:
    """How often "role" and "type" stand there, and whether "source" does: in one pass, 0.2 ms instead of 0.6 for 400 KB."""
    if len(talk) > _LISTED_BYTES_MAX:
        return talk.count(b'"role"'), talk.count(b'"type"'), b'"source"' in talk
    found = _WORDS.findall(talk)
    return found.count(b'"role"'), found.count(b'"type"'), b'"source"' in found


def _sources(talk: bytes) -> tuple[int, int]:
    """Where there are images or documents: bytes of base64, and the tokens of these and of what stands elsewhere."""
    found, tokens = 0, _REFERENCE_TOKENS * sum(map(talk.count, _REFERENCES))
    if _CITATIONS.search(talk):
        tokens += _CITATIONS_TOKENS
    begun = _BASE64_BEGUN.search(talk) if b'"base64"' in talk else None
    while begun:
        end = talk.find(b'"', begun.end())
        size = (end if end >= 0 else len(talk)) - begun.start("media")
        found += size
        if begun["pdf"]:
            tokens += _PAGE_TOKENS * (1 + size // _PAGE_BYTES)
        else:
            tokens += min(_IMAGE_TOKENS, math.ceil(size / _IMAGE_BYTES_PER_TOKEN))
        begun = _BASE64_BEGUN.search(talk, begun.start("media") + size)
    return found, tokens
