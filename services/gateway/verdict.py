"""What an upstream's answer, or its silence, says of the credential it was given to, and whether another try makes sense. Pure.

The word of a status counts, and of the API's own error fields; a phrase inside a text never does, because an error may quote
the request (masks.py). Even so a 400 or a 403 may be about the request alone: such a verdict is `doubtful`, and takes a
credential out of service only if another one took the same request.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import httpx2
import msgspec

from libs.common.errors import RelayError
from libs.common.upstreams import Kind
from services.gateway import masks
from services.gateway.headers import Headers, value

NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""Nobody can have worked for a request that ended so."""
RETRIED: Final = frozenset({500, 502, 503, 504, 529})
_SENTENCES: Final[Sequence[tuple[Kind, str]]] = (
    ("spend", r"You have reached your (?:specified )?API usage limits"),
    ("spend", r"Your credit balance is too low to access the \w+(?: \w+)* API"),
    ("spend", r"Your organization's credit balance is too low"),
    ("hold", r"This organization has been disabled"),
)
_OWN_WORDS: Final = [
    # from the first word to the last: a colon that is none of the time of day ends the name of a field, which callers choose
    (kind, re.compile(rf"{sentence}\b(?:[^:]|: your organization has |(?<=\d):(?=\d))*"))
    for kind, sentence in _SENTENCES
]
_CODES: Final[dict[str, Kind]] = {"organization_on_hold": "hold", "enforced_spend_limit_reached": "spend"}
_SECONDS: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring."""

    again: Literal["no", "elsewhere", "anywhere"] = "no"
    """Whether another try makes sense: with another credential only, or after a while with this one too."""
    kind: Kind | None = None
    """What is held against the credential."""
    doubtful: bool = False
    """It may be the request's own fault."""
    retry_after_s: float | None = None
    """The upstream's word."""
    masked: RelayError | None = None
    """It is the operator's business: what the caller sees instead."""


class _Error(msgspec.Struct):
    type: Any = None
    message: Any = None
    details: Any = None


class _Body(msgspec.Struct):
    error: _Error


_decode: Final = msgspec.json.Decoder(_Body).decode


def of_answer(status: int, headers: Headers, body: bytes, *, packed: bool = False) -> Verdict:
    """The verdict on an answer of 400 or more. `packed`: its body has a content coding, so nobody can read it."""
    masked = masks.masked_answer(status, body, packed=packed)
    wait = _retry_after(headers)
    if status >= 500:
        retried = status in RETRIED and value(headers, b"x-should-retry") != b"false"
        return Verdict(again="anywhere" if retried else "no", kind="server", retry_after_s=wait, masked=masked)
    kind, doubtful = _blame(status, b"" if packed else body)
    if kind is None:
        return Verdict(masked=masked)
    return Verdict(
        again="elsewhere",
        kind=kind,
        doubtful=doubtful,
        retry_after_s=wait if kind == "rate" else None,
        masked=masked,
    )


def of_failure(error: BaseException | None) -> Verdict:
    """The verdict where no answer came."""
    if isinstance(error, httpx2.PoolTimeout | httpx2.LocalProtocolError):  # ours, or the request's
        return Verdict(again="anywhere" if isinstance(error, NEVER_SENT) else "no")
    if isinstance(error, NEVER_SENT):
        return Verdict(again="anywhere", kind="connect")
    return Verdict(kind="server")  # it may have worked for it: never sent twice


def name_of_failure(error: BaseException | None) -> str:
    """As a ledger row has it."""
    if isinstance(error, NEVER_SENT):
        return "connect"
    return "timeout" if isinstance(error, httpx2.TimeoutException) else "broke"


def _blame(status: int, body: bytes) -> tuple[Kind | None, bool]:
    """What an answer holds against its credential, and whether that is in doubt."""
    match status:
        case 401:
            return "auth", False
        case 402:
            return "spend", False
        case 403:
            code = _code(body)
            return ("auth", True) if code is None else (code, False)
        case 429:
            return _code(body) or _own_word(body) or "rate", False
        case 400:
            return _code(body) or _own_word(body), True
    return None, False


def _code(body: bytes) -> Kind | None:
    error = _error(body)
    details = error.details if error is not None else None
    code = details.get("error_code") if isinstance(details, dict) else None
    return _CODES.get(code) if isinstance(code, str) else None


def _own_word(body: bytes) -> Kind | None:
    error = _error(body)
    message = error.message if error is not None else None
    if not isinstance(message, str):
        return None
    return next((kind for kind, words in _OWN_WORDS if words.fullmatch(message)), None)


def _error(body: bytes) -> _Error | None:
    try:
        return _decode(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _retry_after(headers: Headers) -> float | None:
    """Seconds; None for a date or nonsense."""
    text = value(headers, b"retry-after").strip()
    return float(text) if _SECONDS.fullmatch(text) else None
