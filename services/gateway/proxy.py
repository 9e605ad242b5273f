"""START HERE. The data plane as one ASGI endpoint: what happens to a request, in order.

targets.py     which path of our table is meant; the upstream's path is built from the table, never from the caller's text
admission.py   who calls, and may he
peek.py        what the body asks for
exchange.py    to the upstream and back, and the one event at the end
free.py        the paths that cost nothing
"""

from typing import Final, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common import ids
from libs.common.errors import BadRequest, MethodNotAllowed, NotFound, Overloaded, RelayError
from libs.common.metrics import Metrics
from services.gateway import admission, asgi, callers, own_usage, peek, ratelimits
from services.gateway.admission import Gate, Principal, Request
from services.gateway.callers import Networks
from services.gateway.cycle import BodyBudget
from services.gateway.exchange import Exchange, Services
from services.gateway.framing import connection_listed
from services.gateway.free import FreePaths, Visit
from services.gateway.headers import Headers, by_name, client_family
from services.gateway.outlet import outlet_of
from services.gateway.prices import Prices
from services.gateway.targets import Refusal, Route, Target, resolve
from services.gateway.upstream import Call

_TOO_FULL: Final = "The relay is busy with other requests. Nothing was charged; please try again."
_ACCOUNT_TOO_FULL: Final = "This account has too many large requests under way. Nothing was charged; please try again."
_JSON: Final = b"application/json"
_ACCOUNTS_SHARE: Final = 4
"""One account may hold this part of the bytes that all may hold."""
_REFUSALS: Final[dict[int, type[RelayError]]] = {400: BadRequest, 404: NotFound, 405: MethodNotAllowed}


class Proxy:
    """Answers the relay's own paths, and hands the local ones (health, metrics) to `local`."""

    def __init__(
        self,
        *,
        local: ASGIApp,
        gate: Gate,
        services: Services,
        free: FreePaths,
        prices: Prices,
        metrics: Metrics,
        body_budget: BodyBudget,
        body_bytes_max: int,
        trusted_proxies: Networks = (),
    ) -> None:
        self._local = local
        self._gate = gate
        self._services = services
        self._free = free
        self._prices = prices
        self._metrics = metrics
        self._body_budget = body_budget
        self._body_bytes_max = body_bytes_max
        self._trusted_proxies = trusted_proxies
        self._account_bytes: dict[str, int] = {}
        """Bytes of bodies in hand, by account: none may take so many that the others are refused."""
        self._account_bytes_max = max(body_budget.bytes_max // _ACCOUNTS_SHARE, body_bytes_max)
        self._in_flight = 0
        metrics.gauge("relay_requests_in_flight", lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._local(scope, receive, send)
            return
        target = resolve(scope["method"], scope["raw_path"], scope["query_string"])
        if isinstance(target, Target) and target.route is Route.LOCAL:
            await self._local(scope, receive, send)
            return
        request_id = ids.new_request_id()
        self._in_flight += 1
        try:
            await self._answer(target, request_id, scope, receive, send)
        except RelayError as error:
            self._metrics.add("relay_refusals_total", error.kind)
            await asgi.answer_error(send, error, request_id)
        except asgi.CallerLeft:
            self._metrics.add("relay_refusals_total", "caller_left")
        finally:
            self._in_flight -= 1

    async def _answer(
        self, target: Target | Refusal, request_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if isinstance(target, Refusal):
            raise _REFUSALS[target.status](target.message, headers=target.headers)
        self._metrics.add("relay_requests_total", target.route.value)
        match target.route:
            case Route.HELLO:
                await asgi.answer(send, 200, [(b"x-relay-request-id", request_id.encode())], b"")
            case Route.MESSAGES:
                await self._messages(target, request_id, scope, receive, send)
            case Route.USAGE:
                await self._own_usage(request_id, scope, receive, send)
            case _:
                await self._without_charge(target, request_id, scope, receive, send)

    async def _messages(self, target: Target, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = asgi.request_headers(scope)
        address = self._address(scope, headers)
        principal = await self._gate.authenticate(headers, address)
        named = by_name(headers)
        _check_content_type(named)
        book = self._prices.of_request(request_id)
        with self._share(principal) as share:
            body = await self._read(receive, share)
            ask = peek.peek(body)
            request = Request(
                id=request_id,
                principal=principal,
                address=address,
                ask=ask,
                book=book,
                models=admission.priced_models(book, ask),
                path=target.upstream.partition(b"?")[0].decode("ascii"),
                client=client_family(named.get(b"user-agent", b"")),
                bytes_in=len(body),
            )
            granted = await self._gate.admit(request)
            call = Call(
                method="POST",
                target=target.upstream,
                headers=headers,
                body=body,
                connection_listed=connection_listed(headers),
            )
            outlet = outlet_of(scope, receive, send)
            exchange = Exchange(self._services, request=request, granted=granted, call=call, outlet=outlet)
            del body, call  # the exchange lets go of it when it has been sent
            await exchange.run()

    async def _without_charge(
        self, target: Target, request_id: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = asgi.request_headers(scope)
        address = self._address(scope, headers)
        principal = await self._gate.authenticate(headers, address)
        counts = target.route is Route.COUNT_TOKENS
        if counts:
            _check_content_type(by_name(headers))
        book = self._prices.of_request(request_id)
        with self._share(principal) as share:
            body = await self._read(receive, share)
            models = admission.priced_models(book, peek.peek(body)) if counts else ()
            checked = await self._gate.check(principal, address, models)
            call = Call(
                method="POST" if counts else "GET",
                target=target.upstream,
                headers=headers,
                body=body if counts else b"",
                connection_listed=connection_listed(headers),
            )
            visit = Visit(request_id, principal.account_id, checked, book)
            match target.route:
                case Route.COUNT_TOKENS:
                    await self._free.forward(call, receive, send, visit)
                case Route.MODEL:
                    await self._free.model(call, target.model, receive, send, visit)
                case _:
                    await self._free.models(call, receive, send, visit)

    async def _own_usage(self, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = asgi.request_headers(scope)
        address = self._address(scope, headers)
        principal = await self._gate.authenticate(headers, address)
        with self._share(principal) as share:
            await self._read(receive, share)
            checked, standing = await self._gate.standing(principal, address)
        body = own_usage.body(principal.account_id, principal.key_id, standing)
        await asgi.answer_json(send, body, request_id, ratelimits.headers(checked.figures))

    def _address(self, scope: Scope, headers: Headers) -> str:
        client = scope.get("client")
        return callers.caller_address(client[0] if client else None, headers, self._trusted_proxies)

    def _share(self, principal: Principal) -> "_Share":
        return _Share(self._account_bytes, principal.account_id, self._account_bytes_max)

    async def _read(self, receive: Receive, share: "_Share") -> bytes:
        if self._body_budget.is_exhausted:
            raise Overloaded(_TOO_FULL)
        return await asgi.read_body(receive, bytes_max=self._body_bytes_max, hold=share.hold)


class _Share:
    """Of the bytes of bodies in hand, what one request holds: for as long as it is worked on, they count as its account's."""

    __slots__ = ("_account_bytes", "_account_id", "_bytes_max", "_held")

    def __init__(self, account_bytes: dict[str, int], account_id: str, bytes_max: int) -> None:
        self._account_bytes = account_bytes
        self._account_id = account_id
        self._bytes_max = bytes_max
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def hold(self, size: int) -> None:
        """Bytes more. Raises Overloaded if they are too many for one account."""
        self._held += size
        account = self._account_bytes[self._account_id] = self._account_bytes.get(self._account_id, 0) + size
        if account > self._bytes_max:
            raise Overloaded(_ACCOUNT_TOO_FULL)

    def __exit__(self, *_: object) -> None:
        left = self._account_bytes.get(self._account_id, 0) - self._held
        if left:
            self._account_bytes[self._account_id] = left
        else:
            self._account_bytes.pop(self._account_id, None)


def _check_content_type(named: dict[bytes, bytes]) -> None:
    """A body that says it is something else than plain JSON is refused; one that says nothing is taken for JSON.

    What we judge must be what the upstream reads: no content coding, no other character set.
    """
    content_type = named.get(b"content-type", b"")
    if content_type != _JSON:
        _check_media_type(content_type)
    if named.get(b"content-encoding", b"").strip().lower() not in (b"", b"identity"):
        raise BadRequest("content-encoding: send the body as it is, not compressed")


def _check_media_type(content_type: bytes) -> None:
    media_type, _, parameters = content_type.lower().partition(b";")
    media_type = media_type.strip()
    if media_type and media_type != _JSON and not media_type.endswith(b"+json"):
        raise BadRequest("content-type: must be application/json")
    if b"charset" in parameters and b"utf-8" not in parameters and b"utf8" not in parameters:
        raise BadRequest("content-type: the charset must be utf-8")
