"""What the resources share: reading a body into a type, answering with one, and who is asking."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from libs.common import clock, ids
from libs.common.balances import Balances
from libs.common.sealing import Sealer
from libs.common.upstreams import Upstreams
from services.admin.control import Control
from services.admin.ledger import Ledger
from services.admin.problems import BadInput, TooLarge, Unauthorized

BODY_BYTES_MAX: Final = 64 * 1024
ACTOR: Final = "operator"
TEXT: Final = r"^(?![\s\S]*[\x00-\x1f\x7f])[\s\S]*\S"
"""What people write: something to see, and no control characters. Means the same to Python and to JSON Schema."""
_PATTERN_TOLD: Final = re.compile(r"Expected `str` matching regex '.*'", re.DOTALL)
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=TEXT)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=TEXT)]
_Body = TypeVar("_Body")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What handlers work with; one per process."""

    control: Control
    ledger: Ledger
    balances: Balances
    sealer: Sealer
    pool: Upstreams
    admin_token: str


Handler = Callable[[Context, Request], Awaitable[Response]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: what the router and the OpenAPI document are made from. Every one needs the token."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type
    status: int = 200
    body: type | None = None
    query: dict[str, str] = {}
    """Query parameters and what they mean; any other is refused, so that a misspelt filter does not list everything."""
    headers: dict[str, str] = {}
    """Request headers with a meaning of their own."""


async def read(request: Request, kind: type[_Body]) -> _Body:
    """The body as `kind`. Raises BadInput that names the field, TooLarge."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise TooLarge(f"A request may hold at most {BODY_BYTES_MAX} bytes.")
    except ClientDisconnect:
        raise BadInput("The body ended before it was whole.") from None
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            f"The body cannot be read: {_PATTERN_TOLD.sub('Expected text without control characters', str(error))}."
        ) from None


def given(body: msgspec.Struct, *names: str) -> dict[str, Any]:
    """Those of these fields that the body has."""
    return {name: value for name in names if (value := getattr(body, name)) is not msgspec.UNSET}


def respond(value: Any, status: int = 200) -> Response:
    """A value as JSON, for nobody's cache: it may hold a secret that is shown once."""
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


def authorize(request: Request, admin_token: str) -> None:
    """Raise Unauthorized unless the bearer token is the operator's; compared in constant time, whatever its length."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip(" \t")), _digest(admin_token)):
        raise Unauthorized("Send the admin token as Authorization: Bearer.")


def check_query(request: Request, known: dict[str, str]) -> None:
    """Raise BadInput for a query parameter that is unknown, or given twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise BadInput(f"There is no query parameter {name[:40]!r} here; known: {listed}.")
        if names.count(name) > 1:
            raise BadInput(f"The query parameter {name} is given more than once.")


def is_id(prefix: str, text: str) -> bool:
    """Whether it may be an id of ours. What passes holds no dot and no wildcard, so it may become part of a subject."""
    try:
        ids.id_bytes(text)
    except ValueError:
        return False
    return text.startswith(f"{prefix}_")


def time_of(milliseconds: int) -> str:
    """RFC 3339."""
    return clock.iso_utc(milliseconds)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
