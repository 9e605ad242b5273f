"""Every answer the relay itself gives instead of the upstream's, in Anthropic's error shape.

    RelayError                    status  type
    ├── BadRequest                400     invalid_request_error
    ├── Unauthenticated           401     authentication_error      x-should-retry: false
    ├── InsufficientBalance       402     insufficient_balance      x-should-retry: false
    ├── NotFound                  404     not_found_error
    ├── MethodNotAllowed          405     invalid_request_error     allow
    ├── RequestTooLarge           413     request_too_large
    ├── RateLimited               429     rate_limit_error          retry-after
    ├── InternalError             500     api_error
    ├── UpstreamFailed            502     api_error
    ├── UpstreamTimedOut          504     timeout_error
    └── Overloaded                529     overloaded_error          retry-after

Statuses and types: PROTOCOL.md, section 4. A message says what happened and what to do; it never carries upstream text.
"""

import math
from typing import Any, ClassVar, Final

import msgspec

_RETRY_AFTER_S_MAX: Final = 60
_encode = msgspec.json.Encoder().encode


def error_body(kind: str, message: str, request_id: str, **fields: Any) -> bytes:
    """The JSON body of an error: `{"type":"error","error":{"type":…,"message":…, **fields},"request_id":…}`."""
    return _encode({"type": "error", "error": {"type": kind, "message": message, **fields}, "request_id": request_id})


class RelayError(Exception):
    """An answer to the caller. `headers` are extra response headers, `fields` extra members of the `error` object."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "api_error"

    def __init__(self, message: str, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}
        self.fields = fields

    def body(self, request_id: str) -> bytes:
        """The bytes of the answer."""
        return error_body(self.kind, self.message, request_id, **self.fields)


class BadRequest(RelayError):
    """The request cannot be read, or asks for something whose cost is not clear."""

    status = 400
    kind = "invalid_request_error"


class Unauthenticated(RelayError):
    """No key, an unknown key, or one that is not active. Clients must not repeat it: Claude Code would for 183 s."""

    status = 401
    kind = "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class InsufficientBalance(RelayError):
    """The account cannot pay. `insufficient_balance` is the product's published name."""

    status = 402
    kind = "insufficient_balance"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message, headers={"x-should-retry": "false"}, **fields)


class NotFound(RelayError):
    """No such path, or no such model for this key."""

    status = 404
    kind = "not_found_error"


class MethodNotAllowed(RelayError):
    """A known path, another method."""

    status = 405
    kind = "invalid_request_error"


class RequestTooLarge(RelayError):
    """A body over the limit."""

    status = 413
    kind = "request_too_large"


class RateLimited(RelayError):
    """A limit of ours. `retry_after_s`: when it passes, told in whole seconds, 1 to 60; None: not soon (`x-should-retry: false`).

    Never more than a minute: SDKs sleep for as long as they are told.
    """

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float | None = 1.0) -> None:
        if retry_after_s is None:
            headers = {"x-should-retry": "false"}
        else:
            headers = {"retry-after": str(min(max(math.ceil(retry_after_s), 1), _RETRY_AFTER_S_MAX))}
        super().__init__(message, headers=headers)


class InternalError(RelayError):
    """Our own trouble. Nothing was sent upstream or nothing is charged."""

    status = 500
    kind = "api_error"


class UpstreamFailed(RelayError):
    """The upstream broke after it may have started to work: not repeated by us, free."""

    status = 502
    kind = "api_error"


class UpstreamTimedOut(RelayError):
    """The upstream sent nothing within the time limit."""

    status = 504
    kind = "timeout_error"


class Overloaded(RelayError):
    """Try again shortly: upstream busy, or a store the gateway needs is away."""

    status = 529
    kind = "overloaded_error"

    def __init__(self, message: str, *, retry_after_s: int = 2) -> None:
        super().__init__(message, headers={"retry-after": str(retry_after_s)})
