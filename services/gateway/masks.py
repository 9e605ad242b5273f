"""What of an upstream's answer is the operator's business, and what the caller sees instead. PROTOCOL.md, section 4."""

from typing import Final

import msgspec

from libs.common.errors import Overloaded, RelayError, error_body

_OPERATOR_STATUSES: Final = frozenset({401, 402, 403, 429})
_OPERATOR_PHRASES: Final = (
    b"specified API usage limits",
    b"enforced_spend_limit_reached",
    b"organization_on_hold",
    b"credit balance is too low",
)
_OPERATOR_TYPES: Final = frozenset({"authentication_error", "permission_error", "billing_error", "rate_limit_error"})
_MESSAGE: Final = "The upstream is busy. Nothing was charged; please try again in a few seconds."
_STREAM_MESSAGE: Final = "The upstream became unavailable in the middle of the answer; please try again."


class _ErrorInfo(msgspec.Struct):
    type: str = ""


class _Error(msgspec.Struct):
    error: _ErrorInfo
    request_id: str | None = None


_decode: Final = msgspec.json.Decoder(_Error).decode


def masked_answer(status: int, body: bytes) -> RelayError | None:
    """The answer to give instead of an upstream error that speaks of the operator's own account; None to pass it on."""
    if status in _OPERATOR_STATUSES or is_operators(body):
        return Overloaded(_MESSAGE)
    return None


def is_operators(body: bytes) -> bool:
    """Whether a text of the upstream's names limits, holds or billing of the operator's account."""
    return any(phrase in body for phrase in _OPERATOR_PHRASES)


def masked_event_data(data: bytes) -> bytes | None:
    """The data of an `error` event to send instead of the upstream's; None to pass it on."""
    try:
        event = _decode(data)
    except msgspec.MsgspecError:
        return error_body("api_error", _STREAM_MESSAGE, "")
    if event.error.type in _OPERATOR_TYPES or is_operators(data):
        return error_body("overloaded_error", _STREAM_MESSAGE, event.request_id or "")
    return None


def broken_stream_event(request_id: str) -> bytes:
    """The event that ends a stream whose upstream broke: SDKs raise it, where a clean end would pass for success."""
    body = error_body("api_error", _STREAM_MESSAGE, request_id)
    return b"event: error\ndata: " + body + b"\n\n"
