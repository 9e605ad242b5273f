"""What the relay must know of a request body, read from a copy: the body itself is forwarded as it came.

The fast decoder reads the top level only. It may be stricter than the API (lone surrogates, deep nesting, `stream: null`):
what it refuses is judged again by `tolerant.py`.
"""

import re
from typing import Any, Final

import msgspec

from libs.common.errors import BadRequest
from services.gateway import tolerant

_MONEY_KEYS: Final = ("model", "max_tokens", "stream")
_QUOTED: Final = tuple(f'"{name}"'.encode() for name in _MONEY_KEYS)
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
"""An escaped ASCII letter: the only way to spell a money key differently. No encoder writes one."""
_TTL_1H: Final = re.compile(rb'"cache_control"\s*:\s*\{[^{}]*"ttl"\s*:\s*"1h"')
_BASE64_DATA: Final = re.compile(rb'"data"\s*:\s*"([A-Za-z0-9+/=_-]{256,})"')
_BYTES_PER_TOKEN_X2: Final = 7  # 3.5 bytes of text a token (DESIGN.md, decisions)
_MEDIA_TOKENS: Final = 1600

_decode_top: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_model: Final = msgspec.json.Decoder(str).decode
_decode_any: Final = msgspec.json.Decoder().decode


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


def peek(body: bytes) -> Ask:
    """Read a request body. Raises BadRequest for a body that is not a JSON object, has no readable `model`, names a
    money-deciding key twice, or says who else is to pay."""
    top = _top_level(body)
    if b"billing_policy" in body and "billing_policy" in top:
        raise BadRequest("billing_policy: this relay bills your account; remove the field.")
    return Ask(
        model=_model(top),
        stream=_stream(top),
        max_tokens=_max_tokens(top),
        other_models=_other_models(top),
        speed=_text_or_none(top, "speed"),
        inference_geo=_text_or_none(top, "inference_geo"),
        cache_ttl_1h=b'"1h"' in body and _TTL_1H.search(body) is not None,
        input_estimated_tokens=_estimate(body),
    )


def _top_level(body: bytes) -> dict[str, Any]:
    """Top-level members as raw slices, proven free of a second `model`, `max_tokens` or `stream`."""
    if b"\\u00" in body and _ESCAPED_LETTER.search(body):
        return _tolerantly(body)
    try:
        top = _decode_top(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _tolerantly(body)
    for name, quoted in zip(_MONEY_KEYS, _QUOTED, strict=True):
        count = body.count(quoted)
        # every other occurrence must lie inside a value, or the decoder has dropped a duplicate of it
        if count > 1 and count != (name in top) + sum(bytes(raw).count(quoted) for raw in top.values()):
            raise BadRequest(f"{name}: the field stands twice in the request body; send it once.")
    return top


def _tolerantly(body: bytes) -> dict[str, Any]:
    try:
        members = tolerant.top_level(body)
    except tolerant.NotAnObject as error:
        raise BadRequest(f"The request body is not a JSON object: {error}.") from None
    top: dict[str, Any] = {}
    for name, raw in members:
        if name in top and name in _MONEY_KEYS:
            raise BadRequest(f"{name}: the field stands twice in the request body; send it once.")
        top[name] = raw
    return top


def _model(top: dict[str, Any]) -> str:
    raw = top.get("model")
    if raw is None:
        raise BadRequest("model: Field required")
    try:
        return _decode_model(raw)
    except msgspec.MsgspecError:
        raise BadRequest("model: Input should be a valid string") from None


def _stream(top: dict[str, Any]) -> bool:
    value = _scalar(top, "stream")
    if value not in (None, True, False):
        raise BadRequest("stream: Input should be a valid boolean")
    return bool(value)


def _max_tokens(top: dict[str, Any]) -> int:
    """0 where it is absent or not a count: the upstream answers that with its own 400."""
    value = _scalar(top, "max_tokens")
    return value if type(value) is int and value >= 0 else 0


def _text_or_none(top: dict[str, Any], name: str) -> str | None:
    value = _scalar(top, name)
    return value if isinstance(value, str) else None


def _scalar(top: dict[str, Any], name: str) -> Any:
    raw = top.get(name)
    if raw is None:
        return None
    try:
        return _decode_any(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _other_models(top: dict[str, Any]) -> tuple[str, ...]:
    names: list[str] = []
    fallbacks = _scalar(top, "fallbacks") if "fallbacks" in top else None
    if isinstance(fallbacks, list):
        names += [entry["model"] for entry in fallbacks if isinstance(entry, dict) and _names_model(entry)]
    if "tools" in top and b"advisor" in bytes(top["tools"]):
        tools = _scalar(top, "tools")
        entries = tools if isinstance(tools, list) else []
        names += [entry["model"] for entry in entries if isinstance(entry, dict) and _is_advisor(entry)]
    return tuple(names)


def _is_advisor(tool: dict[str, Any]) -> bool:
    return str(tool.get("type", "")).startswith("advisor") and _names_model(tool)


def _names_model(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("model"), str)


def _estimate(body: bytes) -> int:
    """Input tokens, roughly: text by its bytes, base64 media by a flat figure. What a cancelled JSON request is billed."""
    media = 0
    text_bytes = len(body)
    if b'"base64"' in body:
        for match in _BASE64_DATA.finditer(body):
            media += 1
            text_bytes -= match.end(1) - match.start(1)
    return text_bytes * 2 // _BYTES_PER_TOKEN_X2 + media * _MEDIA_TOKENS
