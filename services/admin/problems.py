"""Errors of the control plane, in the form of RFC 9457 (`application/problem+json`).

Problem                  status  title
├── BadInput             400     the request cannot be read
├── Unauthorized         401     no valid token
├── Forbidden            403     not for this role
├── Missing              404     no such thing
├── WrongMethod          405     a known path, another method
├── Conflict             409     it has changed, or was done already
│   └── Overtaken        409     another change came first; 412 for a caller who has sent If-Match
├── PreconditionFailed   412     If-Match names another version
├── TooLarge             413     more than a request may hold
├── Unprocessable        422     readable, but not allowed
├── TooMany              429     tried too often
└── Unavailable          503     a store does not answer
"""

from typing import ClassVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

CONTENT_TYPE = "application/problem+json"


class ProblemBody(msgspec.Struct, kw_only=True):
    """What is sent."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"


class Problem(Exception):
    """An answer that is not a success. The detail says what happened and what to do."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self._headers = self.headers | headers

    def response(self) -> Response:
        """The answer."""
        body = msgspec.json.encode(ProblemBody(title=self.title, status=self.status, detail=self.detail))
        return Response(body, self.status, headers=self._headers, media_type=CONTENT_TYPE)


class BadInput(Problem):
    """The request cannot be read."""

    status = 400
    title = "Bad request"


class Unauthorized(Problem):
    """No valid token."""

    status = 401
    title = "Unauthorized"
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class Forbidden(Problem):
    """Not for this role."""

    status = 403
    title = "Forbidden"


class Missing(Problem):
    """No such thing."""

    status = 404
    title = "Not found"


class WrongMethod(Problem):
    """A known path, another method."""

    status = 405
    title = "Method not allowed"


class Conflict(Problem):
    """It has changed in the meantime, or was done already."""

    status = 409
    title = "Conflict"


class Overtaken(Conflict):
    """Another change came between reading and writing."""


class PreconditionFailed(Problem):
    """If-Match names another version."""

    status = 412
    title = "Precondition failed"


class TooLarge(Problem):
    """More than a request may hold."""

    status = 413
    title = "Content too large"


class Unprocessable(Problem):
    """Readable, but not allowed."""

    status = 422
    title = "Unprocessable content"


class TooMany(Problem):
    """Tried too often."""

    status = 429
    title = "Too many requests"


class Unavailable(Problem):
    """A store does not answer."""

    status = 503
    title = "Service unavailable"
    headers: ClassVar[dict[str, str]] = {"retry-after": "2"}


async def answer_problem(_: Request, error: Exception) -> Response:
    """Starlette's exception handler for Problem."""
    assert isinstance(error, Problem)
    return error.response()


async def answer_unexpected(_: Request, __: Exception) -> Response:
    """Starlette's handler for what nobody foresaw; the traceback is in the log, nothing of it in the answer."""
    return Problem("The control plane failed; the operator's log says why.").response()
