"""Small ASGI pieces the handlers share: read a body, answer with bytes, answer with an error."""

from collections.abc import Callable
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from libs.common.errors import RelayError, RequestTooLarge
from services.gateway.headers import Headers

_JSON: Final = (b"content-type", b"application/json")


class CallerLeft(Exception):
    """The caller closed the connection before its request was complete: nobody is there to answer."""


async def read_body(receive: Receive, *, bytes_max: int, hold: Callable[[int], None]) -> bytes:
    """The whole request body, joined once. `hold` is told of every byte that is kept, and may refuse.

    Raises CallerLeft, RequestTooLarge, and what `hold` raises.
    """
    message = await receive()
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise CallerLeft
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise RequestTooLarge(f"The request is larger than {bytes_max // (1024 * 1024)} MB; send less.")
        hold(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunk if len(chunks) == 1 else b"".join(chunks)
        message = await receive()


async def until_disconnect(receive: Receive) -> None:
    """Return when the caller has closed the connection. Only after the whole request was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A whole answer at once."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_json(send: Send, body: bytes, request_id: str, extra: Headers) -> None:
    """An answer of the relay itself, for this caller alone, under our request id; `extra` headers beside its own."""
    identifier = request_id.encode()
    headers: Headers = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"request-id", identifier),
        (b"x-relay-request-id", identifier),
    ]
    await answer(send, 200, headers + extra, body)


async def answer_error(send: Send, error: RelayError, request_id: str, extra: Headers | None = None) -> None:
    """An error of ours, in Anthropic's shape, under our request id; `extra` headers beside its own."""
    status, headers, body = answer_of(error, request_id)
    await answer(send, status, headers + (extra or []), body)


def answer_of(error: RelayError, request_id: str) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error the relay itself answers."""
    body = error.body(request_id)
    identifier = request_id.encode()
    headers: Headers = [
        _JSON,
        (b"content-length", b"%d" % len(body)),
        (b"request-id", identifier),
        (b"x-relay-request-id", identifier),
    ]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return error.status, headers, body


def request_headers(scope: Scope) -> Headers:
    """The headers of a request, typed."""
    headers: Any = scope["headers"]
    return list(headers)
