"""Reading a body and answering, message by message."""

import json
from collections.abc import Iterable

import pytest
from starlette.types import Message, Receive

from libs.common.errors import Overloaded, RequestTooLarge
from services.gateway import asgi

pytestmark = pytest.mark.anyio


def received(*messages: Message) -> Receive:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


def pieces(chunks: Iterable[bytes], *, last: bytes = b"") -> list[Message]:
    more: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    return [*more, {"type": "http.request", "body": last, "more_body": False}]


GONE: Message = {"type": "http.disconnect"}


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        (pieces([]), b""),
        (pieces([], last=b"all"), b"all"),
        (pieces([b"a", b"", b"b"], last=b"c"), b"abc"),
        ([{"type": "http.request"}], b""),
    ],
)
async def test_a_body_is_joined(messages: list[Message], body: bytes) -> None:
    """And each of its bytes is counted, once."""
    held: list[int] = []
    assert await asgi.read_body(received(*messages), bytes_max=3, hold=held.append) == body
    assert sum(held) == len(body)


@pytest.mark.parametrize("messages", [[GONE], [*pieces([b"a"])[:1], GONE]])
async def test_who_leaves_before_his_body_is_whole(messages: list[Message]) -> None:
    with pytest.raises(asgi.CallerLeft):
        await asgi.read_body(received(*messages), bytes_max=10, hold=lambda size: None)


async def test_a_body_over_the_limit() -> None:
    messages = pieces([b"ab", b"cd"], last=b"never asked for")
    with pytest.raises(RequestTooLarge):
        await asgi.read_body(received(*messages), bytes_max=3, hold=lambda size: None)


async def test_who_counts_may_refuse() -> None:
    held: list[int] = []

    def hold(size: int) -> None:
        held.append(size)
        if sum(held) > 3:
            raise Overloaded("Full.")

    with pytest.raises(Overloaded):
        await asgi.read_body(received(*pieces([b"ab", b"cd"], last=b"never asked for")), bytes_max=99, hold=hold)
    assert held == [2, 2]


async def test_waiting_for_the_caller_to_leave() -> None:
    await asgi.until_disconnect(received(*pieces([]), GONE))


async def test_an_error_is_one_answer_in_anthropics_shape() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await asgi.answer_error(send, Overloaded("Full.", retry_after_s=3), "req_1")
    start, body = sent
    assert start["status"] == 529 and not body.get("more_body")
    assert dict(start["headers"]) == {
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(body["body"]),
        b"request-id": b"req_1",
        b"x-relay-request-id": b"req_1",
        b"retry-after": b"3",
    }
    assert json.loads(body["body"]) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Full."},
        "request_id": "req_1",
    }


def test_the_headers_of_a_scope_are_a_list_of_their_own() -> None:
    scope = {"headers": [(b"a", b"1")]}
    asgi.request_headers(scope).append((b"b", b"2"))
    assert scope == {"headers": [(b"a", b"1")]}
