"""What the resources share: a call and who makes it, reading a body into a type, answering with one, pages and versions."""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from libs.common import addresses, clock, entities, ids
from libs.common.balances import Balances
from libs.common.sealing import Sealer
from libs.common.standing import Standings
from libs.common.upstreams import Upstreams
from services.admin.access import Principal, Roles
from services.admin.control import By, Control, Found
from services.admin.ledger import Ledger
from services.admin.mirror import Mirror
from services.admin.notices.senders import Senders
from services.admin.passwords import Passwords
from services.admin.problems import BadInput, Forbidden, Missing, PreconditionFailed, TooLarge
from services.admin.sessions import Sessions

BODY_BYTES_MAX: Final = 64 * 1024
TEXT: Final = r"^(?![\s\S]*[\x00-\x1f\x7f])[\s\S]*\S"
"""What people write: something to see, and no control characters. Means the same to Python and to JSON Schema."""
PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000
_WORD_TOLD: Final = re.compile(r"Invalid enum value '(.{40}).+'", re.DOTALL)
_PATTERN_TOLD: Final = re.compile(r"Expected `str` matching regex '.*'", re.DOTALL)
CHANGED: Final = "It has changed since you read it. Read it again, and decide anew."
_ETAG: Final = re.compile(r'"(\d{1,19})"', re.ASCII)
_KEY_CHARS_MAX: Final = 200
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=TEXT)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=500, pattern=TEXT)]
_Body = TypeVar("_Body")
_Item = TypeVar("_Item")
_Answered = TypeVar("_Answered")

PAGING: Final = {
    "limit": f"how many of a page, 1 to {PAGE_MAX}; {PAGE_DEFAULT} if not given",
    "cursor": "next_cursor of the page before",
}
IDEMPOTENT: Final = {
    "Idempotency-Key": f"1 to {_KEY_CHARS_MAX} characters: sent again with the same one, it is done once and answered alike"
}
MATCHED: Final = {"If-Match": "the ETag of what was read: 412 if it has changed since"}


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What handlers work with; one per process."""

    control: Control
    mirror: Mirror
    ledger: Ledger
    balances: Balances
    standings: Standings
    sealer: Sealer
    pool: Upstreams
    passwords: Passwords
    sessions: Sessions
    senders: Senders
    public_url: str = ""
    price_lead_seconds: float = 60.0
    """How long before it counts a price book is published at least."""


class Call(Request):
    """A request whose caller is known. `principal` is nobody's in an operation that is open to all."""

    def __init__(self, scope: Scope, receive: Receive, principal: Principal | None, operation: str = "") -> None:
        super().__init__(scope, receive)
        self._principal = principal
        self._operation = operation

    @property
    def principal(self) -> Principal:
        """Who calls."""
        assert self._principal is not None, "this operation is open to all"
        return self._principal

    @property
    def account_id(self) -> str:
        """The account of the path; empty in a path without one."""
        return str(self.path_params.get("account_id", ""))

    @property
    def address(self) -> str:
        """Where it comes from."""
        return self.client.host if self.client else ""

    @property
    def place(self) -> str:
        """What tries are counted for: an IPv4 address, the /64 of an IPv6 one, which one machine has whole."""
        try:
            return addresses.throttle_group(addresses.hex_address(self.address))
        except ValueError:
            return self.address

    def by(self, reason: str, request: str = "") -> By:
        """Whose change it is, for the audit log."""
        actor = self._principal.actor if self._principal else "nobody"
        return By(actor=actor, address=self.address, reason=reason, request=request)

    def derived_id(self, prefix: str, *parts: str) -> str | None:
        """The id that this call's Idempotency-Key makes, if it has one. Raises BadInput."""
        key = self.headers.get("idempotency-key")
        if key is None:
            return None
        if not 1 <= len(key) <= _KEY_CHARS_MAX:
            raise BadInput(f"Idempotency-Key must have 1 to {_KEY_CHARS_MAX} characters.")
        return ids.derived_id(prefix, self._operation, self.account_id, key, *parts)


Handler = Callable[[Context, Call], Awaitable[Response]]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: what the router and the OpenAPI document are made from."""

    method: str
    path: str
    handler: Handler
    summary: str
    roles: Roles | None
    """Who may; None: it is open to all."""
    scope: entities.Scope | None = None
    """What a service token needs for it; None: it is for people who have signed in."""
    answer: Any = None
    """Type of the answer in JSON; None: it answers with text (see `media`), or with nothing."""
    media: Sequence[str] = ()
    """Other media types it can answer with."""
    status: int = 200
    body: type | None = None
    query: dict[str, str] = {}
    """Query parameters and what they mean; any other is refused, so that a misspelt filter does not list everything."""
    headers: dict[str, str] = {}
    """Request headers with a meaning of their own."""
    repeatable: Sequence[str] = ()
    """Query parameters that may be given more than once."""
    at_root: bool = False
    """Its path is the whole path: no prefix stands before it."""
    name: str = ""
    """Of a second operation with the same handler."""

    @property
    def id(self) -> str:
        """Its name in the document: `keys_create`."""
        return self.name or f"{self.resource}_{self.handler.__name__}"

    @property
    def resource(self) -> str:
        """What it is an operation of: the first part of its name."""
        return self.handler.__module__.rpartition(".")[2]


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
        raise BadInput(f"The body cannot be read: {_told(str(error))}.") from None


def _told(error: str) -> str:
    """What is wrong, without our pattern, and without the whole of what was sent in place of a word."""
    error = _PATTERN_TOLD.sub("Expected text without control characters", error)
    return _WORD_TOLD.sub(r"Invalid enum value '\1…'", error)


def given(body: msgspec.Struct, *names: str) -> dict[str, Any]:
    """Those of these fields that the body has."""
    return {name: value for name in names if (value := getattr(body, name)) is not msgspec.UNSET}


def digest(body: Any, *parts: str) -> str:
    """What is compared when an Idempotency-Key comes again: the body as it was understood, not its bytes."""
    return hashlib.sha256("\0".join((*parts, msgspec.json.encode(body, order="sorted").decode())).encode()).hexdigest()


def respond(value: Any, status: int = 200, *, version: int | None = None) -> Response:
    """A value as JSON, for nobody's cache: it may hold a secret that is shown once. `version` is its ETag."""
    headers = {"cache-control": "no-store"}
    if version is not None:
        headers["etag"] = f'"{version}"'
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


def check_match(call: Call, found: Found[Any]) -> None:
    """Raise PreconditionFailed if the call's If-Match names another version than the one that stands."""
    wanted = match_of(call)
    if wanted is None:
        return
    match = _ETAG.fullmatch(wanted)
    if match is None:
        raise BadInput('If-Match must be an ETag that an answer gave, such as "42".')
    if int(match[1]) != found.version:
        raise PreconditionFailed(CHANGED)


def match_of(request: Request) -> str | None:
    """The version that the call is about, as it is written; None if any will do."""
    wanted = request.headers.get("if-match", "*").strip()
    return None if wanted == "*" else wanted


def check_query(request: Request, known: Collection[str], repeatable: Collection[str] = ()) -> None:
    """Raise BadInput for a query parameter that is unknown, or given twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise BadInput(f"There is no query parameter {name[:40]!r} here; known: {listed}.")
        if name not in repeatable and names.count(name) > 1:
            raise BadInput(f"The query parameter {name} is given more than once.")


def page(call: Call, items: Sequence[_Item], id_of: Callable[[_Item], str]) -> tuple[list[_Item], str | None]:
    """The part of `items` (in the order of their ids) that was asked for, and the cursor of the next. Raises BadInput."""
    after, limit = cursor(call), page_limit(call)
    left = [item for item in items if id_of(item) > after]
    shown = left[:limit]
    return shown, encode_cursor(id_of(shown[-1])) if len(left) > limit else None


def page_limit(call: Call) -> int:
    """How many of a page. Raises BadInput."""
    text = call.query_params.get("limit", str(PAGE_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= PAGE_MAX):
        raise BadInput(f"limit must be a number from 1 to {PAGE_MAX}.")
    return int(text)


def cursor(call: Call) -> str:
    """The id after which a page begins; empty for the first one. Raises BadInput."""
    text = call.query_params.get("cursor", "")
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        if value:
            ids.id_bytes(value)
    except ValueError:
        raise BadInput("cursor must be one that an earlier answer gave.") from None
    if text and not value:
        raise BadInput("cursor must be one that an earlier answer gave.")
    return value


def encode_cursor(entity_id: str) -> str:
    """The id of the last one of a page, for the next."""
    return base64.urlsafe_b64encode(entity_id.encode()).decode().rstrip("=")


async def found(context: Context, kind: type[_Answered], call: Call, parameter: str, prefix: str) -> Found[_Answered]:
    """The entity whose id stands in the path, of the account in the path, not deleted. Raises Missing."""
    entity_id = str(call.path_params[parameter])
    one = await context.control.find(kind, entity_id) if is_id(prefix, entity_id) else None
    if one is None or getattr(one.entity, "account_id", "") != call.account_id or is_deleted(one.entity):
        raise Missing(f"There is no such {parameter.removesuffix('_id')} here.")
    return one


def is_deleted(entity: Any) -> bool:
    """Whether it is there for the history alone."""
    return getattr(entity, "status", "") == "deleted"


def forbid(condition: bool, detail: str) -> None:
    """Raise Forbidden, with what the caller may do instead."""
    if condition:
        raise Forbidden(detail)


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
