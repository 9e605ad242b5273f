"""What the relay cannot take: the documented error in Anthropic's shape, at once, with nothing charged and nothing forwarded."""

import json
from typing import Any, Final

import pytest

from libs.common import apikeys
from tests.e2e.bodies import ANSWER, BODY, JSON, MODEL
from tests.e2e.relay import UPSTREAM_KEY, Relay
from tests.e2e.wire import Caller, Head, Headers, ScriptedUpstream, playing

LIMIT: Final = 32 * 1024 * 1024
HOST: Final = b"host: relay\r\n"


def refused(answer: tuple[Head, bytes], status: int, kind: str, *, retry: bool | None = None) -> str:
    """Check an error of the relay's own; its message."""
    head, body = answer
    value: dict[str, Any] = json.loads(body)
    assert (head.status, value["error"]["type"]) == (status, kind), value
    assert set(value) == {"type", "error", "request_id"} and value["type"] == "error"
    assert value["request_id"].encode() == head.get(b"request-id") == head.get(b"x-relay-request-id")
    assert value["request_id"].startswith("req_") and head.get(b"content-type") == b"application/json"
    assert head.get(b"x-should-retry") == {None: None, True: b"true", False: b"false"}[retry]
    message = str(value["error"]["message"])
    assert message.isascii() and 10 < len(message) < 300
    assert not any(word in message for word in ("Traceback", "Error(", ".py", UPSTREAM_KEY, "sk-ant"))
    return message


# -- who calls ---------------------------------------------------------------------------------------------------------

UNKNOWN_KEY: Final = apikeys.generate().encode()


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "credentials",
    [
        [],
        [(b"x-api-key", b"")],
        [(b"authorization", b"Basic eDp5")],
        [(b"authorization", b"Bearer")],
        [(b"x-api-key", b"sk-cr-short")],
        [(b"x-api-key", b"sk-ant-api03-" + b"x" * 90)],
        [(b"x-api-key", UNKNOWN_KEY)],
        [(b"authorization", b"Bearer " + UNKNOWN_KEY)],
        [(b"x-api-key", UNKNOWN_KEY[:-1] + (b"0" if UNKNOWN_KEY[-1:] != b"0" else b"1"))],
        [(b"x-api-key", b"\x27 OR 1=1 --")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_no_valid_key(caller: Caller, credentials: Headers, path: str) -> None:
    caller.post(path, [*credentials, *JSON], BODY)
    refused(caller.answer(), 401, "authentication_error", retry=False)


@pytest.mark.usefixtures("nothing_happens")
def test_the_model_list_asks_for_a_key(caller: Caller) -> None:
    for path in (b"/v1/models", b"/v1/models/claude-sonnet-4-6"):
        caller.send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        refused(caller.answer(), 401, "authentication_error", retry=False)


def test_of_two_keys_x_api_key_decides(relay: Relay, upstream: ScriptedUpstream, caller: Caller) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    (one, key_one), (other, key_other) = relay.new_account(), relay.new_account()
    for first, second in ((key_one, key_other), (key_other, key_one)):
        caller.post(
            "/v1/messages", [(b"authorization", f"Bearer {second}".encode()), (b"x-api-key", first.encode())], BODY
        )
        assert caller.answer()[0].status == 200
    caller.post("/v1/messages", [(b"x-api-key", key_one.encode()), (b"authorization", b"Bearer nonsense")], BODY)
    assert caller.answer()[0].status == 200
    caller.post("/v1/messages", [(b"x-api-key", UNKNOWN_KEY), (b"authorization", f"Bearer {key_one}".encode())], BODY)
    refused(caller.answer(), 401, "authentication_error", retry=False)
    relay.rows(one, 2)
    relay.rows(other, 1)


def test_a_key_is_disabled_for_the_very_next_request(relay: Relay, upstream: ScriptedUpstream, caller: Caller) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    account, _ = relay.new_account()
    created = relay.new_key(account)
    path = f"/accounts/{account}/keys/{created['id']}"

    def answer() -> tuple[Head, bytes]:
        caller.post("/v1/messages", [(b"x-api-key", created["key"].encode())], BODY)
        return caller.answer()

    for _ in range(3):
        assert answer()[0].status == 200
        relay.admin.patch(path, json={"status": "disabled"}).raise_for_status()
        assert "not active" in refused(answer(), 401, "authentication_error", retry=False)
        relay.admin.patch(path, json={"status": "active"}).raise_for_status()
    relay.admin.delete(path).raise_for_status()
    refused(answer(), 401, "authentication_error", retry=False)
    relay.rows(account, 3)


def test_an_account_is_disabled_for_the_very_next_request(
    relay: Relay, upstream: ScriptedUpstream, caller: Caller
) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    account, key = relay.new_account()
    for status, expected in (("active", 200), ("disabled", 401), ("active", 200)):
        relay.admin.patch(f"/accounts/{account}", json={"status": status}).raise_for_status()
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            caller.post(path, [(b"x-api-key", key.encode())], BODY)
            assert caller.answer()[0].status == expected
    relay.rows(account, 2)


# -- bodies ------------------------------------------------------------------------------------------------------------

M: Final = MODEL.encode()


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"Hello",
        b"null",
        b"17",
        b'"text"',
        b"[]",
        b'[{"model":"%s"}]' % M,
        b"{",
        b'{"model":"%s"' % M,
        b'{"model":"%s"}}' % M,
        b'{"model":"%s"} {}' % M,
        b"{'model':'%s'}" % M,
        b'{"model":"%s",}' % M,
        b"\xff\xfe{\x00}\x00",
        b'{"max_tokens":5}',
        b'{"messages":[{"model":"%s"}]}' % M,
        b'{"model":null}',
        b'{"model":7}',
        b'{"model":["%s"]}' % M,
        b'{"model":"%s","model":"%s"}' % (M, M),
        rb'{"model":"%s","\u006dodel":"claude-haiku-4-5"}' % M,
        b'{"model":"%s","max_tokens":5,"x":1,"max_tokens":6}' % M,
        b'{"model":"%s","stream":true,"stream":false}' % M,
        b'{"model":"%s","stream":"yes"}' % M,
        b'{"model":"%s","billing_policy":{"type":"x"}}' % M,
        b'{"model":"%s","speed":"fast"}' % M,
        b'{"model":"%s","inference_geo":"mars"}' % M,
        b'{"model":"%s","x":%s}' % (M, b"[" * 200_000 + b"]" * 200_000),
    ],
    ids=lambda body: body[:60].decode("latin-1") if body else "empty",
)
def test_bodies_that_are_no_request(caller: Caller, key: bytes, body: bytes) -> None:
    caller.post("/v1/messages", [(b"x-api-key", key), *JSON], body)
    refused(caller.answer(), 400, "invalid_request_error")
    caller.post("/v1/messages", [(b"x-api-key", key), *JSON], body, pieces=[body[:3], body[3:]] if body[3:] else None)
    refused(caller.answer(), 400, "invalid_request_error")


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", ["claude-unpriced-1", "gpt-5", "", "claude-sonnet-4-6 ", "CLAUDE-SONNET-4-6", "../x"])
def test_models_without_a_price(caller: Caller, key: bytes, name: str) -> None:
    for body in (
        {"model": name},
        {"model": MODEL, "fallbacks": [{"model": name}]},
        {"model": MODEL, "tools": [{"type": "advisor_20260301", "name": "advisor", "model": name}]},
    ):
        caller.post("/v1/messages", [(b"x-api-key", key), *JSON], json.dumps(body).encode())
        head, answer = caller.answer()
        assert (head.status, json.loads(answer)["error"]) == (
            404,
            {"type": "not_found_error", "message": f"model: {name}"},
        )


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(caller: Caller, key: bytes, chunked: bool) -> None:
    """A declared length is refused before a byte of the body is sent; a chunked body once it is too long."""
    head = b"POST /v1/messages HTTP/1.1\r\n" + HOST + b"x-api-key: " + key + b"\r\n"
    if chunked:
        caller.send(head + b"transfer-encoding: chunked\r\n\r\n")
        caller.send(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
        for _ in range(LIMIT // 0x100000):
            caller.send(b"100000\r\n" + b" " * 0x100000 + b"\r\n")
    else:
        caller.send(head + b"content-length: %d\r\n\r\n" % (LIMIT + 1))
    assert "32 MB" in refused(caller.answer(), 413, "request_too_large")


def test_a_chunked_body_needs_no_length(relay: Relay, upstream: ScriptedUpstream, caller: Caller) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    account, key = relay.new_account()
    caller.post("/v1/messages", [(b"x-api-key", key.encode())], BODY, pieces=[bytes([byte]) for byte in BODY])
    assert caller.answer()[0].status == 200
    assert upstream.requests[-1].body == BODY
    (row,) = relay.rows(account, 1)
    assert row["bytes_in"] == len(BODY)


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    "kind", [b"text/plain", b"application/xml", b"multipart/form-data; boundary=x", b"json", b"*/*"]
)
def test_a_content_type_that_is_not_json(caller: Caller, key: bytes, kind: bytes) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        caller.post(path, [(b"x-api-key", key), (b"content-type", kind)], BODY)
        assert "content-type" in refused(caller.answer(), 400, "invalid_request_error")


@pytest.mark.parametrize("kind", [None, b"application/json", b"Application/JSON; charset=utf-8", b"application/x+json"])
def test_a_content_type_that_is_or_is_missing(
    upstream: ScriptedUpstream, caller: Caller, key: bytes, kind: bytes | None
) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    caller.post("/v1/messages", [(b"x-api-key", key), *([(b"content-type", kind)] if kind else [])], BODY)
    assert caller.answer()[0].status == 200
    assert upstream.requests[-1].head.get(b"content-type") == kind
