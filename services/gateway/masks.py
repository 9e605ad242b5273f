"""What of an upstream's answer is the operator's business, and what the caller sees instead. PROTOCOL.md, section 4.

The patterns look at the text with its JSON escapes undone, not at parsed fields: they hold for a body that is no JSON, and
where a type or a code stands in another place than today. The price: a caller who plants one of these phrases in a request that
the upstream then quotes in its 400 reads "busy" instead of his own mistake. He deceives nobody else; so nothing may ever take a
credential out of service on the word of a 400.
"""

import re
from typing import Final

import msgspec

from libs.common.errors import Overloaded, RelayError, error_body

_OPERATOR_STATUSES: Final = frozenset({401, 402, 403, 429})
_OPERATORS: Final = (
    b"specified api usage limits",
    b"reached your api usage limits",
    b"enforced_spend_limit_reached",
    b"organization_on_hold",
    b"credit balance is too low",
    b"organization has been disabled",
    b"sk-ant-",
)
_OPERATORS_TYPE: Final = re.compile(rb'"type"\s*:\s*"(?:authentication|permission|billing|rate_limit)_error"')
_ORGANIZATION_ID: Final = re.compile(
    rb"""org(?<![a-z0-9]org)(?:
        (?:anization)? (?:[\s_-]*(?:uu)?id)? ["'\s:=(]* [0-9a-f]{8}-[0-9a-f]{4}-
      | [_-](?=[a-z]*[0-9])[0-9a-z]{6}
    )""",
    re.VERBOSE,
)
_NAMES_OPERATOR: Final = (b"organization", b"organisation", b"workspace", b"billing", b"your ip")
"""No part of a failure of the upstream's own: what speaks of these there speaks of the operator's."""
_ORG: Final = re.compile(rb"org(?<![a-z0-9]org)(?![a-z])")
_CALLERS_STATUSES: Final = frozenset({400, 404, 413})
_ESCAPE: Final = re.compile(rb"\\u00([2-7][0-9a-fA-F])")
_MESSAGE: Final = "The upstream is busy. Nothing was charged; please try again in a few seconds."
_STREAM_MESSAGE: Final = "The upstream became unavailable in the middle of the answer; please try again."


class _Event(msgspec.Struct):
    request_id: str | None = None


_decode: Final = msgspec.json.Decoder(_Event).decode


def masked_answer(status: int, body: bytes, *, packed: bool = False) -> RelayError | None:
    """The answer to give instead of an upstream error that speaks of the operator's own account; None to pass it on.

    What is wrong with the caller's request (400, 404, 413) passes unless it is plainly the operator's; anything else must not
    even name his organization. `packed`: the body has a content coding, so nobody can tell.
    """
    if packed or status in _OPERATOR_STATUSES:
        return Overloaded(_MESSAGE)
    text = _unescaped(body.replace(b"\0", b""))  # UTF-16 reads like ASCII then
    if _is_operators(text) or (status not in _CALLERS_STATUSES and _names_operator(text)):
        return Overloaded(_MESSAGE)
    return None


def masked_event_data(data: bytes, *, frame: bytes = b"") -> bytes | None:
    """The data of an `error` event to send instead of the upstream's; None to pass it on.

    `frame` is the whole event: comments and other fields can name the operator too, and a line end can part a word. The answer is
    always of the form `{"type":"error","error":{…},"request_id":"…"}`, in this order and without spaces.
    """
    for part in (data.replace(b"\n", b""), frame):
        text = _unescaped(part)
        if _is_operators(text) or _names_operator(text):
            return error_body("overloaded_error", _STREAM_MESSAGE, _request_id(data))
    return None


def broken_stream_event(request_id: str) -> bytes:
    """The event that ends a stream whose upstream broke: SDKs raise it, where a clean end would pass for success."""
    body = error_body("api_error", _STREAM_MESSAGE, request_id)
    return b"event: error\ndata: " + body + b"\n\n"


def _is_operators(text: bytes) -> bool:
    """Whether it speaks of limits, holds or billing of the operator's account, his key, or the id of his organization."""
    return (
        any(phrase in text for phrase in _OPERATORS)
        or _OPERATORS_TYPE.search(text) is not None
        or _ORGANIZATION_ID.search(text) is not None
    )


def _names_operator(text: bytes) -> bool:
    return any(name in text for name in _NAMES_OPERATOR) or _ORG.search(text) is not None


def _unescaped(text: bytes) -> bytes:
    r"""`text` in lower case, `\u0020` to `\u007f` spelled out; quotes and backslashes stay, so that no string ends early."""
    return (_ESCAPE.sub(_plain, text) if rb"\u00" in text else text).lower()


def _plain(escape: re.Match[bytes]) -> bytes:
    char = bytes.fromhex(escape[1].decode())
    return escape[0] if char in b'"\\' else char


def _request_id(data: bytes) -> str:
    try:
        request_id = _decode(data).request_id or ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return request_id if re.fullmatch("[A-Za-z0-9_-]{1,64}", request_id) else ""
