"""Heads, paths and connections that are wrong, slow or odd: refused in Anthropic's shape, and nobody waits for them."""

import contextlib
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.bodies import ANSWER, BODY, JSON
from tests.e2e.relay import Gateway, Relay
from tests.e2e.test_bad_input import HOST, refused
from tests.e2e.waiting import wait_until
from tests.e2e.wire import Caller, ScriptedUpstream, playing

LIMIT_S: Final = 1.0


@pytest.fixture(scope="module")
def gateway(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """One that waits for nobody for long."""
    settings = {"RELAY_BODY_SECONDS": str(LIMIT_S), "RELAY_HEAD_SECONDS": str(LIMIT_S)}
    with relay.second_gateway(upstream.url, **settings) as running:
        yield running


POST: Final = b"POST /v1/messages HTTP/1.1\r\n"
LENGTH: Final = b"content-length: %d\r\n" % len(BODY)
HEADS: Final = {
    "101 headers": (POST + HOST + LENGTH + b"".join(b"x-h%d: 1\r\n" % number for number in range(99)), 431),
    "33 KB of headers": (POST + HOST + LENGTH + b"x-long: " + b"x" * 33_000 + b"\r\n", 431),
    "a header without an end": (POST + HOST + b"x-long: " + b"x" * 40_000, 431),
    "two keys": (POST + HOST + LENGTH + b"x-api-key: sk-cr-other\r\n", 400),
    "two hosts": (POST + HOST + HOST + LENGTH, 400),
    "two content types": (POST + HOST + LENGTH + b"content-type: application/json\r\n" * 2, 400),
    "no host": (POST + LENGTH, 400),
    "not ascii": (POST + HOST + LENGTH + b"x-name: na\xc3\xafve\r\n", 400),
    "nul": (POST + HOST + LENGTH + b"x-name: a\0b\r\n", 400),
    "bare cr": (POST + HOST + LENGTH + b"x-name: a\rb\r\n", 400),
    "folded": (POST + HOST + LENGTH + b"x-name: a\r\n b\r\n", 400),
    "space before the colon": (POST + HOST + LENGTH + b"x-name : a\r\n", 400),
    "no colon": (POST + HOST + LENGTH + b"nonsense\r\n", 400),
    "both lengths": (POST + HOST + LENGTH + b"transfer-encoding: chunked\r\n", 400),
    "two content lengths": (POST + HOST + LENGTH + b"content-length: 5\r\n", 400),
    "negative length": (POST + HOST + b"content-length: -5\r\n", 400),
    "length with a plus": (POST + HOST + b"content-length: +5\r\n", 400),
    "huge length": (POST + HOST + b"content-length: 99999999999999999999999\r\n", 400),
    "gzip, chunked": (POST + HOST + b"transfer-encoding: gzip, chunked\r\n", 400),
    "chunked twice": (POST + HOST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
    "http/2": (b"PRI * HTTP/2.0\r\n", 400),
    "http/3.7": (b"POST /v1/messages HTTP/3.7\r\n" + HOST + LENGTH, 400),
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n", 400),
    "absolute target": (b"POST http://elsewhere/v1/messages HTTP/1.1\r\n" + HOST + LENGTH, 400),
    "connect": (b"CONNECT elsewhere:443 HTTP/1.1\r\n" + HOST, 400),
    "odd method": (b"BREW /v1/messages HTTP/1.1\r\n" + HOST + LENGTH, 400),
}


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("name", HEADS)
def test_absurd_heads(caller: Caller, key: bytes, name: str) -> None:
    """The connection is closed behind the answer: what comes next on it could be anything."""
    head, status = HEADS[name]
    caller.send(head + b"x-api-key: " + key + b"\r\n\r\n" + BODY)
    refused(caller.answer(), status, "invalid_request_error")
    caller.wait_closed()


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/../v1/messages", 400),
        ("/../v1/messages", 400),
        ("/v1/messages/..", 400),
        ("/v1/./messages", 400),
        ("/v1/%2e%2e/messages", 400),
        ("/v1%2Fmessages", 400),
        ("/v1/messages%2fcount_tokens", 400),
        ("/v1%5cmessages", 400),
        ("/v1\\messages", 400),
        ("//v1/messages", 400),
        ("/v1//messages", 400),
        ("/v1/messages;x=1", 400),
        ("/v1/messages#x", 400),
        ("/v1/messages%00", 400),
        ("/v1/models/..%2fmessages", 400),
        ("/v1/messages/", 404),
        ("/v1/message", 404),
        ("/V1/messages", 404),
        ("/v1/messages/batches", 404),
        ("/v1/complete", 404),
        ("/v1/files", 404),
        ("/v1/organizations/usage", 404),
        ("/v1/%6dessages", 404),
        ("/admin", 404),
    ],
)
def test_paths_that_are_none(caller: Caller, key: bytes, path: str, status: int) -> None:
    caller.post(path, [(b"x-api-key", key), *JSON], BODY)
    refused(caller.answer(), status, {400: "invalid_request_error", 404: "not_found_error"}[status])


@pytest.mark.usefixtures("nothing_happens")
def test_wrong_methods(caller: Caller, key: bytes) -> None:
    for method, path, allowed in ((b"GET", b"/v1/messages", b"POST"), (b"DELETE", b"/v1/models", b"GET, HEAD")):
        caller.send(method + b" " + path + b" HTTP/1.1\r\n" + HOST + b"x-api-key: " + key + b"\r\n\r\n")
        head, body = caller.answer()
        refused((head, body), 405, "invalid_request_error")
        assert head.get(b"allow") == allowed


def test_pipelined_requests_are_answered_one_after_another(
    relay: Relay, gateway: Gateway, upstream: ScriptedUpstream
) -> None:
    """Each is answered on its own merits, in order, and each that was served has its row."""
    account, key = relay.new_account()
    answers = [ANSWER[:-1] + b' ,"number":%d}' % number for number in range(3)]
    waiting = list(answers)
    upstream.script = lambda wire, request: playing(200, JSON, [waiting.pop(0)], framing="length")(wire, request)

    def request(body: bytes) -> bytes:
        return POST + HOST + b"x-api-key: %s\r\ncontent-length: %d\r\n\r\n" % (key.encode(), len(body)) + body

    with Caller.to(gateway.url) as caller:
        caller.send(request(BODY) + request(b"no json") + request(BODY) + request(BODY))
        assert caller.answer()[1] == answers[0]
        refused(caller.answer(), 400, "invalid_request_error")
        assert caller.answer()[1] == answers[1]
        assert caller.answer()[1] == answers[2]
    relay.rows(account, 3)


def _trickle(caller: Caller, data: bytes) -> int:
    """Send byte after byte, with a pause after each, until an answer comes; how many went out."""
    caller.socket.settimeout(LIMIT_S / 5)
    for number in range(len(data)):
        with contextlib.suppress(TimeoutError):
            caller.wait_readable()
            return number
        caller.send(data[number : number + 1])
    raise AssertionError("the relay took it all")


@pytest.mark.usefixtures("nothing_happens")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_a_few_bytes_a_second(caller: Caller, key: bytes, chunked: bool) -> None:
    head = POST + HOST + b"x-api-key: " + key + b"\r\n"
    if chunked:
        caller.send(head + b"transfer-encoding: chunked\r\n\r\n")
        sent = _trickle(caller, b"".join(b"1\r\n%c\r\n" % byte for byte in BODY))
    else:
        caller.send(head + LENGTH + b"\r\n")
        sent = _trickle(caller, BODY)
    assert sent < 40
    refused(caller.answer(), 408, "timeout_error")
    caller.wait_closed()


@pytest.mark.usefixtures("nothing_happens")
def test_a_head_at_a_few_bytes_a_second(caller: Caller) -> None:
    assert _trickle(caller, POST + HOST * 20) < 40
    refused(caller.answer(), 408, "timeout_error")
    caller.wait_closed()


@pytest.mark.usefixtures("nothing_happens")
def test_many_who_say_nothing_hinder_nobody(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    with contextlib.ExitStack() as silent:
        callers = [silent.enter_context(Caller.to(gateway.url)) for _ in range(200)]
        for caller in callers[::2]:
            caller.send(b"POST /v1/mess")
        with Caller.to(gateway.url) as one:
            one.send(b"HEAD /api/hello HTTP/1.1\r\n" + HOST + b"\r\n")
            assert one.head().status == 200
        for caller in callers[::2]:
            refused(caller.answer(), 408, "timeout_error")
    wait_until(lambda: gateway.gauge("relay_requests_in_flight") == 0, "nobody is left")
