"""What the resources share: reading a body into a type, answering with one, and who is asking."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from libs.common import clock
from libs.common.balances import Balances
from services.admin.control import Control
from services.admin.ledger import Ledger
from services.admin.problems import BadInput, TooLarge, Unauthorized

BODY_BYTES_MAX: Final = 64 * 1024
ACTOR: Final = "operator"
_Body = TypeVar("_Body")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What handlers work with; one per process."""

    control: Control
    ledger: Ledger
    balances: Balances
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
    query: tuple[str, ...] = ()


async def read(request: Request, kind: type[_Body]) -> _Body:
    """The body as `kind`. Raises BadInput that names the field, TooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"A request may hold at most {BODY_BYTES_MAX} bytes.")
    try:
        return msgspec.json.decode(bytes(body), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"The body cannot be read: {error}.") from None


def respond(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def authorize(request: Request, admin_token: str) -> None:
    """Raise Unauthorized unless the bearer token is the operator's; compared in constant time."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), admin_token.encode()):
        raise Unauthorized("Send the admin token as Authorization: Bearer.")


def time_of(milliseconds: int) -> str:
    """RFC 3339."""
    return clock.iso_utc(milliseconds)
