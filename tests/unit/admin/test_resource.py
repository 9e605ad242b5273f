"""Reading bodies, knowing ids, judging tokens and query parameters."""

from typing import Any

import msgspec
import pytest
from starlette.requests import Request

from libs.common import ids
from services.admin.problems import BadInput, TooLarge
from services.admin.resource import BODY_BYTES_MAX, TEXT, check_query, is_id, read, respond
from services.admin.resources.accounts import NewAccount


def request(*, headers: dict[str, bytes] | None = None, query: bytes = b"", pieces: tuple[bytes, ...] = ()) -> Request:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": query,
        "headers": [(name.encode(), value) for name, value in (headers or {}).items()],
    }
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    return Request(scope, receive)


@pytest.mark.anyio
async def test_a_body_in_pieces() -> None:
    assert await read(request(pieces=(b'{"na', b'me":"\xc3', b'\xa9"}')), NewAccount) == NewAccount("é")


@pytest.mark.anyio
async def test_a_body_at_and_beyond_the_limit() -> None:
    body = b'{"name":"x"}'.ljust(BODY_BYTES_MAX)
    assert await read(request(pieces=(body,)), NewAccount) == NewAccount("x")
    with pytest.raises(TooLarge):
        await read(request(pieces=(body, b" ")), NewAccount)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"name":1}', b'{"name":"a\\tb"}', b'{"nom":"x"}', b"\xff", b"[" * 9999]
)
async def test_a_body_that_is_none(body: bytes) -> None:
    with pytest.raises(BadInput, match="The body cannot be read: ") as caught:
        await read(request(pieces=(body,)), NewAccount)
    assert "regex" not in caught.value.detail


@pytest.mark.parametrize("text", ["x", " x ", "Zoë 漢字 😀", "a'b\"c", "\u2028x"])
def test_names_people_write(text: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode({"name": text}), type=NewAccount).name == text


@pytest.mark.parametrize("text", ["", " ", "\t", "a\n", "\na", "a\x00b", "a\x7f", "\x1b[2J", "x" * 201])
def test_names_nobody_writes(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode({"name": text}), type=NewAccount)
    assert TEXT.startswith("^")


def test_query_parameters() -> None:
    check_query(request(query=b"a=1&b=2"), {"a": "", "b": ""})
    for query in (b"a=1&c=2", b"a=1&a=1", b"c", b"=1", b"%00=1"):
        with pytest.raises(BadInput):
            check_query(request(query=query), {"a": "", "b": ""})


def test_ids() -> None:
    assert is_id("acct", ids.new_account_id())
    for text in ("", "acct_", ids.new_key_id(), "acct_*", "acct_>", ids.new_account_id() + ".x", "acct_" + "G" * 32):
        assert not is_id("acct", text)


def test_answers_are_for_nobodys_cache() -> None:
    answer = respond({"a": 1}, 201)
    assert (answer.status_code, answer.body, answer.headers["cache-control"]) == (201, b'{"a":1}', "no-store")
