"""What the upstream gets is what the caller sent, what the caller gets is what the upstream sent, and as soon as it was sent.

The seed of a run is printed; RELAY_TEST_SEED repeats it.
"""

import gzip
import os
import random
import secrets
from typing import Final

import pytest

from tests.e2e.bodies import ANSWER, BODY, JSON, MODEL, SSE, Texts, event
from tests.e2e.relay import UPSTREAM_KEY, Gateway, Relay
from tests.e2e.wire import Caller, Headers, Received, ScriptedUpstream, Wire, playing

LIMIT: Final = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def account(relay: Relay) -> tuple[str, str]:
    return relay.new_account(credit_usd="1000.00")


@pytest.fixture
def key(account: tuple[str, str]) -> Headers:
    return [(b"x-api-key", account[1].encode()), *JSON]


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("RELAY_TEST_SEED") or secrets.randbits(32))
    print(f"RELAY_TEST_SEED={seed}")
    return random.Random(seed)


# -- requests ----------------------------------------------------------------------------------------------------------


def test_any_request_body_arrives(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, chance: random.Random
) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    texts = Texts(chance)
    for _ in range(400):
        body = texts.request()
        caller.post("/v1/messages", key, body, pieces=texts.cut(body) if chance.random() < 0.3 else None)
        head, answer = caller.answer()
        assert head.status == 200, (body, answer)
        assert upstream.requests.pop().body == body
    assert not upstream.requests


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"%s","x":%s}' % (MODEL.encode(), b"[" * 50_000 + b"]" * 50_000),
        b'{"model":"%s","x":%s1%s}' % (MODEL.encode(), b'{"a":' * 20_000, b"}" * 20_000),
        rb'{"\u006dodel":"%s","\ud800":"\udfff","x":1,"x":2}' % MODEL.encode(),
        b'\n\r\t {"model":"%s","x":"\xf0\x9f\x98\x80 \xe4\xbd\xa0"}\n\n' % MODEL.encode(),
        b'{"model":"%s","stream":null,"max_tokens":1e3,"system":"%s"}' % (MODEL.encode(), b"x" * 3_000_000),
    ],
    ids=["lists in lists", "objects in objects", "escaped names", "raw utf-8", "3 MB"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_odd_request_bodies_arrive(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, body: bytes, chunked: bool
) -> None:
    upstream.script = playing(200, JSON, [ANSWER])
    caller.post("/v1/messages", key, body, pieces=[body[:7], body[7:]] if chunked else None)
    assert caller.answer()[0].status == 200
    assert upstream.requests.pop().body == body


@pytest.mark.parametrize("chunked", [False, True])
def test_the_largest_body_arrives_and_one_byte_more_does_not(
    relay: Relay, upstream: ScriptedUpstream, scripted_gateway: Gateway, key: Headers, chunked: bool
) -> None:
    upstream.script = playing(200, JSON, [ANSWER])
    start = b'{"model":"%s","messages":"' % MODEL.encode()
    body = start + os.urandom((LIMIT - len(start) - 2) // 2).hex().encode() + b'"}'
    body += b" " * (LIMIT - len(body))
    assert len(body) == LIMIT
    for extra, status in ((b"", 200), (b" ", 413)):
        sent = body + extra
        with Caller.to(scripted_gateway.url) as caller:
            caller.post(
                "/v1/messages", key, sent, pieces=[sent[:LIMIT], *([extra] if extra else [])] if chunked else None
            )
            head, answer = caller.answer()
        assert head.status == status
    (received,) = upstream.requests
    upstream.requests.clear()
    assert received.body == body
    assert b'"request_too_large"' in answer


def test_request_headers(upstream: ScriptedUpstream, caller: Caller, account: tuple[str, str]) -> None:
    """The caller's credential and what speaks of the way here are gone; all else is there, in order, values unchanged."""
    kept: Headers = [
        (b"Anthropic-Version", b"2026-10-21"),
        (b"anthropic-beta", b"a-2026-01-01,b-unknown"),
        (b"X-Stainless-Lang", b"python"),
        (b"User-Agent", b"Anthropic/Python 2.12.0"),
        (b"anthropic-beta", b"third"),
        (b"x-Claude-Code-Session-Id", b"s1"),
        (b"Accept", b"application/json"),
        (b"content-type", b"application/json"),
        (b"X-Empty", b""),
        (b"x-odd", b"a  b\tc; \"d\" = 'e'"),
    ]
    dropped: Headers = [
        (b"X-Api-Key", account[1].encode()),
        (b"Authorization", b"Bearer sk-cr-another"),
        (b"Accept-Encoding", b"gzip, br"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"TE", b"trailers"),
        (b"Proxy-Authorization", b"Basic eA=="),
        (b"Anthropic-Workspace-Id", b"wrkspc_1"),
        (b"anthropic-user-profile-id", b"user_1"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"X-Forwarded-Proto", b"https"),
        (b"Forwarded", b"for=10.0.0.1"),
        (b"Via", b"1.1 proxy"),
        (b"X-Real-IP", b"10.0.0.1"),
        (b"CF-Connecting-IP", b"10.0.0.1"),
        (b"Cookie", b"a=b"),
    ]
    mixed = [pair for group in zip(dropped, kept, strict=False) for pair in group] + dropped[len(kept) :]
    upstream.script = playing(200, JSON, [ANSWER])
    caller.post("/v1/messages?beta=true&x=%2F", mixed, BODY)
    caller.answer()
    head = upstream.requests.pop().head
    assert head.start == b"POST /v1/messages?beta=true&x=%2F HTTP/1.1"
    ours = [
        (b"host", upstream.url.removeprefix("http://").encode()),
        (b"x-api-key", UPSTREAM_KEY.encode()),
        (b"accept-encoding", b"identity"),
        (b"content-length", b"%d" % len(BODY)),
    ]
    lowered = [(name.lower(), value) for name, value in head.headers]
    assert sorted(ours) == sorted(pair for pair in lowered if pair in ours)
    assert [pair for pair in lowered if pair not in ours] == [(name.lower(), value) for name, value in kept]


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/v1/messages"])
def test_paths_with_a_prefix_too_many_or_too_few(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, path: str
) -> None:
    upstream.script = playing(200, JSON, [ANSWER], framing="length")
    for rest in ("", "?beta=true", "/count_tokens", "/count_tokens?beta=true"):
        caller.post(path + rest, key, BODY)
        assert caller.answer()[0].status == 200
        assert upstream.requests.pop().head.start == f"POST /v1/messages{rest} HTTP/1.1".encode()


def test_what_clients_ask_before_they_have_a_key(upstream: ScriptedUpstream, caller: Caller) -> None:
    for target in (b"/api/hello", b"/"):
        caller.send(b"HEAD " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert caller.head().status == 200
    assert not upstream.requests


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["chunked", "length", "eof"])
@pytest.mark.parametrize("kind", [b"application/json", b"application/octet-stream", b"text/html; charset=latin-1"])
def test_any_answer_comes_back(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, chance: random.Random, framing: str, kind: bytes
) -> None:
    texts = Texts(chance)
    for number in range(12):
        noise = chance.randbytes(chance.choice((0, 1, 100, 5_000, 400_000)))
        body = (
            texts.request() if number % 2 else noise.translate(None, b"oO")
        )  # chance writes "org" now and then: masked
        status = chance.choice((200, 200, 200, 400, 404, 413, 500))
        upstream.script = playing(status, [(b"Content-Type", kind)], _few(texts.cut(body)), framing=framing)
        caller.post("/v1/messages", key, BODY)
        head, received = caller.answer()
        assert (head.status, head.get(b"content-type")) == (status, kind)
        assert received == body


def _few(pieces: list[bytes], count: int = 2000) -> list[bytes]:
    return [*pieces[:count], b"".join(pieces[count:])] if len(pieces) > count else pieces


@pytest.mark.parametrize("framing", ["chunked", "length", "eof"])
def test_any_stream_comes_back(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, chance: random.Random, framing: str
) -> None:
    texts = Texts(chance)
    for _ in range(60):
        body = texts.stream()
        upstream.script = playing(200, SSE, texts.cut(body), framing=framing)
        caller.post("/v1/messages", key, BODY)
        head, received = caller.answer()
        assert head.get(b"content-type") == SSE[0][1]
        assert received == body


def test_a_stream_without_an_end_is_never_ended_politely(
    upstream: ScriptedUpstream, scripted_gateway: Gateway, key: Headers, chance: random.Random
) -> None:
    """All that came is passed; then an error event follows, or the connection breaks."""
    texts = Texts(chance)
    for _ in range(40):
        stream = texts.stream()
        body = stream[: chance.randrange(1, len(stream) - 40)]
        upstream.script = playing(200, SSE, texts.cut(body), framing=chance.choice(("chunked", "length", "eof")))
        with Caller.to(scripted_gateway.url) as caller:
            caller.post("/v1/messages", key, BODY)
            received, whole = caller.all_that_comes()
        assert received.startswith(body)
        appended = received[len(body) :]
        assert whole == appended.startswith(b"event: error\ndata: {"), (whole, appended)


def test_errors_inside_a_stream_that_are_the_callers_come_back(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, chance: random.Random
) -> None:
    texts = Texts(chance)
    for kind in (b"overloaded_error", b"api_error", b"invalid_request_error", b"timeout_error"):
        body = texts.stream()[:400].rpartition(b"\n\n")[0] + b"\n\n"
        body += event(b"error", b'{"type":"error",  "error":{"type":"%s","message":"x\\u00e9"}}' % kind)
        upstream.script = playing(200, SSE, texts.cut(body))
        caller.post("/v1/messages", key, BODY)
        assert caller.answer()[1] == body


@pytest.mark.parametrize(("tail", "polite"), [(b"\n\n", True), (b"\n", False), (b"", False), (b'"x', False)])
def test_an_error_event_that_is_cut_off_comes_back_too(
    upstream: ScriptedUpstream, scripted_gateway: Gateway, key: Headers, tail: bytes, polite: bool
) -> None:
    """It is held until it is whole; where the stream ends before, all of it is passed, and the connection is broken."""
    begun = Texts(random.Random(2)).stream()[:200].rpartition(b"\n\n")[0] + b"\n\n"
    body = begun + b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}' + tail
    for pieces in ([body], [body[:-60], body[-60:]]):
        upstream.script = playing(200, SSE, pieces)
        with Caller.to(scripted_gateway.url) as caller:
            caller.post("/v1/messages", key, BODY)
            received, whole = caller.all_that_comes()
        assert received == body and whole == polite


def test_response_headers(upstream: ScriptedUpstream, caller: Caller, key: Headers) -> None:
    """Only what is known to be harmless passes; who serves behind the relay is not told."""
    kept: Headers = [
        (b"Content-Type", b"application/json"),
        (b"request-id", b"req_011CabcDEF"),
        (b"X-Should-Retry", b"true"),
        (b"Cache-Control", b"no-cache"),
        (b"Content-Disposition", b"inline"),
    ]
    leaky: Headers = [
        (b"anthropic-organization-id", b"org-leak"),
        (b"anthropic-workspace-id", b"wrkspc_leak"),
        (b"Set-Cookie", b"__cf_bm=leak; domain=.anthropic.com"),
        (b"CF-Ray", b"leak"),
        (b"cf-cache-status", b"leak"),
        (b"Server", b"cloudflare-leak"),
        (b"Server-Timing", b"leak"),
        (b"via", b"1.1 leak"),
        (b"x-envoy-upstream-service-time", b"leak"),
        (b"traceresponse", b"leak"),
        (b"X-Cloud-Trace-Context", b"leak"),
        (b"strict-transport-security", b"leak"),
        (b"content-security-policy", b"leak"),
        (b"X-Robots-Tag", b"leak"),
        (b"anthropic-ratelimit-requests-limit", b"leak"),
        (b"anthropic-priority-input-tokens-limit", b"leak"),
        (b"anthropic-fast-output-tokens-limit", b"leak"),
        (b"Keep-Alive", b"timeout=leak"),
        (b"x-unheard-of", b"leak"),
        (b"retry-after", b"7"),
    ]
    for status, retried in ((200, False), (400, False), (500, False), (503, True), (529, True)):
        body = ANSWER if status == 200 else b'{"type":"error","error":{"type":"x","message":"y"}}'
        upstream.script = playing(status, [*leaky[:9], *kept, *leaky[9:]], [body], framing="length")
        caller.post("/v1/messages", key, BODY)
        head, received = caller.answer()
        assert received == body
        ours = {b"date", b"content-length", b"x-relay-request-id", b"connection"}
        assert not any(b"leak" in value for _, value in head.headers)
        sent = [(name.lower(), value) for name, value in head.headers]
        limits = {name for name, _ in sent if name.startswith(b"anthropic-ratelimit-")}
        assert len(limits) == 12  # the account's own
        passed = [(name, value) for name, value in sent if name not in ours | limits]
        expected = [(name.lower(), value) for name, value in kept]
        assert passed == [*expected, *([(b"retry-after", b"7")] if retried else [])]
        relay_id = head.get(b"x-relay-request-id") or b""
        assert relay_id.startswith(b"req_") and relay_id != b"req_011CabcDEF"


@pytest.mark.parametrize(("kind", "plain"), [(JSON, ANSWER), (SSE, Texts(random.Random(1)).stream())])
def test_a_coding_nobody_asked_for_passes_raw_and_is_metered(
    relay: Relay, upstream: ScriptedUpstream, caller: Caller, key: Headers, kind: Headers, plain: bytes
) -> None:
    zipped = gzip.compress(plain)
    upstream.script = playing(200, [*kind, (b"Content-Encoding", b"gzip")], [zipped[:11], zipped[11:]])
    caller.post("/v1/messages", key, BODY)
    head, received = caller.answer()
    assert received == zipped and head.get(b"content-encoding") == b"gzip"
    assert relay.receipt((head.get(b"x-relay-request-id") or b"").decode())["outcome"] == "measured"


def test_count_tokens_passes_both_ways(
    upstream: ScriptedUpstream, caller: Caller, key: Headers, chance: random.Random
) -> None:
    texts = Texts(chance)
    for status in (200, 200, 400, 404, 500):
        body, answer = texts.request(), texts.request()
        upstream.script = playing(status, JSON, texts.cut(answer), framing=chance.choice(("chunked", "length", "eof")))
        caller.post("/v1/messages/count_tokens?beta=true", key, body)
        head, received = caller.answer()
        request = upstream.requests.pop()
        assert (head.status, received, request.body) == (status, answer, body)
        assert request.head.start == b"POST /v1/messages/count_tokens?beta=true HTTP/1.1"


def test_the_entries_of_the_model_list_are_the_upstreams(
    upstream: ScriptedUpstream, caller: Caller, key: Headers
) -> None:
    """What the book does not price is left out; all else of an entry is as the upstream wrote it, spaces included."""
    kept = b'{"id" : "claude-sonnet-4-6", "x":1e400,  "name":"\\u00e9"}'
    upstream.script = playing(200, JSON, [b'{"data": [ {"id":"claude-unpriced-1"}, ' + kept + b' ], "has_more":false}'])
    for path in ("/v1/models?limit=1000", "/models", "/v1/v1/models"):
        caller.send(
            b"".join([f"GET {path} HTTP/1.1\r\nhost: x\r\n".encode(), *(b"%s: %s\r\n" % pair for pair in key), b"\r\n"])
        )
        head, received = caller.answer()
        assert head.status == 200 and received == b'{"data":[' + kept + b'],"has_more":false}'
        request = upstream.requests.pop()
        assert request.head.start == b"GET /v1/models%s HTTP/1.1" % (b"?limit=1000" if "?" in path else b"")
        assert request.body == b"" and request.head.get(b"content-length") is None


def test_interim_answers(upstream: ScriptedUpstream, caller: Caller, key: Headers) -> None:
    """The upstream's 1xx are not the answer; the caller's `Expect` is ours to meet, and meets no upstream."""

    def script(wire: Wire, request: Received) -> None:
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")
        playing(200, JSON, [ANSWER], framing="length")(wire, request)

    upstream.script = script
    for _ in range(2):
        caller.send(
            b"POST /v1/messages HTTP/1.1\r\nhost: relay\r\nexpect: 100-continue\r\ncontent-length: %d\r\n" % len(BODY)
        )
        caller.send(b"".join(b"%s: %s\r\n" % pair for pair in key) + b"\r\n")
        assert caller.head().start == b"HTTP/1.1 100 Continue"
        caller.send(BODY)
        head, received = caller.answer()
        assert (head.status, received, head.get(b"link")) == (200, ANSWER, None)
        request = upstream.requests.pop()
        assert request.body == BODY and request.head.get(b"expect") is None
        if head.get(b"connection") == b"close":
            return
