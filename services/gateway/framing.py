"""Which request heads the relay reads, and how much of anything one connection may send. Pure; connection.py obeys it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from libs.common.errors import BadRequest, RelayError, RequestTooLarge
from services.gateway.headers import Headers

_SWEEP_SECONDS_MAX: Final = 1.0
_SINGLETONS: Final = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"x-api-key",
        b"authorization",
        b"anthropic-version",
    }
)
_LISTS_MAX: Final = 16
"""What is remembered of `connection` has a bound: nearly all say keep-alive, and one of 32 KB may name 8,000 headers."""
_NOTHING: Final[frozenset[bytes]] = frozenset()
_END_TO_END: Final = _SINGLETONS | {b"anthropic-beta"}


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one connection may do. Bytes, seconds, counts."""

    headers_max: int = 100
    head_bytes_max: int = 32 * 1024
    head_seconds: float = 10.0
    """From its first byte to its blank line."""
    body_bytes_max: int = 32 * 1024 * 1024
    body_seconds: float = 30.0
    """For a body to be complete, plus its size over `body_bytes_per_second_min`."""
    body_bytes_per_second_min: int = 64 * 1024
    reader_stalled_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    """Without a request: after an answer, and for a new connection that sends nothing."""
    pipelined_bytes_max: int = 64 * 1024
    """Read ahead while an answer is under way; beyond it the socket is not read."""
    linger_seconds: float = 10.0
    """How long a refused caller may go on sending, so that no reset destroys the answer before he has read it."""
    linger_bytes_max: int = 64 * 1024 * 1024

    @property
    def sweep_seconds(self) -> float:
        """Between two looks at the deadlines; shorter where a limit is short."""
        shortest = min(
            self.head_seconds,
            self.body_seconds,
            self.reader_stalled_seconds,
            self.keep_alive_seconds,
            self.linger_seconds,
        )
        return min(_SWEEP_SECONDS_MAX, shortest / 4)


class HeadTooLarge(RelayError):
    """Too many headers, or too many bytes of them."""

    status = 431
    kind = "invalid_request_error"

    def __init__(self, limits: ServerLimits) -> None:
        super().__init__(
            f"The request has more than {limits.headers_max} headers, or more than {limits.head_bytes_max} bytes of them."
        )


class HeadTimedOut(RelayError):
    """The headers came too slowly."""

    status = 408
    kind = "timeout_error"

    def __init__(self) -> None:
        super().__init__("The request's headers did not arrive in time.")


class BodyTimedOut(RelayError):
    """The body came too slowly."""

    status = 408
    kind = "timeout_error"

    def __init__(self) -> None:
        super().__init__("The request's body did not arrive in time.")


def too_large(limits: ServerLimits) -> RequestTooLarge:
    """The refusal of a body over the limit."""
    return RequestTooLarge(f"The request is larger than {limits.body_bytes_max // (1024 * 1024)} MB; send less.")


def head_error(
    target: bytes,
    version: str,
    headers: Headers,
    by_name: Mapping[bytes, bytes],
    body_bytes: int,
    limits: ServerLimits,
) -> RelayError | None:
    """Why this head is refused, or None. `by_name` is `dict(headers)`.

    llhttp has done its part: no bare LF, no folded line, no control byte, one content-length of digits, not both lengths.
    """
    if len(headers) > limits.headers_max:
        return HeadTooLarge(limits)
    if version not in ("1.1", "1.0"):
        return BadRequest("The relay speaks HTTP/1.1.")
    if not target.startswith(b"/"):
        return BadRequest("The request target must be a path on this server.")
    if len(by_name) != len(headers) and (name := _doubled(headers)):
        return BadRequest(f"The header {name.decode()} stands more than once.")
    if version == "1.1" and not by_name.get(b"host"):
        return BadRequest("The header host is missing.")
    coding = by_name.get(b"transfer-encoding")
    if coding is not None and (coding.strip().lower() != b"chunked" or version == "1.0"):
        return BadRequest("The length of the body is not clear: use content-length, or chunked alone.")
    if body_bytes > limits.body_bytes_max:
        return too_large(limits)
    return None


def _doubled(headers: Headers) -> bytes | None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and name in _SINGLETONS:
            return name
        seen.add(name)
    return None


def connection_listed(headers: Headers) -> frozenset[bytes]:
    """Header names that `connection` declares hop-by-hop, lower case.

    Never one that says who pays or how the body is read: no sender may list those (RFC 9110, 7.6.1), and a proxy that obeyed
    `Connection: anthropic-version` would forward another request than the one that was sent.
    """
    sent = [value for name, value in headers if name == b"connection"]
    return _listed(b",".join(sent)) if sent else _NOTHING


@lru_cache(maxsize=_LISTS_MAX)
def _listed(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip() for token in value.lower().split(b",")) - _END_TO_END - {b""}
