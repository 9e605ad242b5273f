"""Which bytes the edge takes for a request: what is not clear no application sees, and it ends the connection."""

import hashlib
from collections.abc import Iterator

import pytest
from starlette.types import Receive, Scope, Send

from services.gateway.framing import ServerLimits
from tests.integration.edge_rig import GET, HOST, Edge, answer, chunked, post, read_all, running

POST = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"

UNCLEAR = {
    "both lengths": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nhello",
    "both, the other way round": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two equal lengths": POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "two lengths": POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a list of lengths": POST + b"content-length: 5, 5\r\n\r\nhello",
    "a negative length": POST + b"content-length: -5\r\n\r\nhello",
    "a signed length": POST + b"content-length: +5\r\n\r\nhello",
    "a hexadecimal length": POST + b"content-length: 0x5\r\n\r\nhello",
    "a length with a space": POST + b"content-length: 5 0\r\n\r\nhello",
    "no length": POST + b"content-length:\r\n\r\nhello",
    "an endless length": POST + b"content-length: 184467440737095516160\r\n\r\nhello",
    "chunked and more": POST + b"transfer-encoding: chunked, identity\r\n\r\n" + LAST,
    "more and chunked": POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + LAST,
    "chunked twice": POST + b"transfer-encoding: chunked, chunked\r\n\r\n" + LAST,
    "chunked on two lines": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + LAST,
    "nearly chunked": POST + b"transfer-encoding: xchunked\r\n\r\n" + LAST,
    "chunked in quotes": POST + b'transfer-encoding: "chunked"\r\n\r\n' + LAST,
    "chunked with a parameter": POST + b"transfer-encoding: chunked;q=1\r\n\r\n" + LAST,
    "chunked behind a control byte": POST + b"transfer-encoding: \x0bchunked\r\n\r\n" + LAST,
    "a coding that is not said": POST + b"transfer-encoding:\r\n\r\n" + LAST,
    "identity": POST + b"transfer-encoding: identity\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n" + LAST,
    "space before the colon": POST + b"content-length : 5\r\n\r\nhello",
    "tab before the colon": POST + b"transfer-encoding\t: chunked\r\n\r\n" + LAST,
    "space before a name": b"POST / HTTP/1.1\r\n host: relay\r\n\r\n",
    "folded": POST + b"x-a: 1\r\n 2\r\n\r\n",
    "folded with a tab": POST + b"transfer-encoding:\r\n\tchunked\r\n\r\n" + LAST,
    "bare LF": b"POST / HTTP/1.1\nhost: relay\n\n",
    "bare LF behind a header": b"POST / HTTP/1.1\r\nhost: relay\ncontent-length: 5\r\n\r\nhello",
    "bare LF at the end": b"POST / HTTP/1.1\r\nhost: relay\r\n\nhello",
    "bare CR": POST + b"x-a: 1\rcontent-length: 5\r\n\r\nhello",
    "NUL in a value": POST + b"x-a: 1\x002\r\n\r\n",
    "NUL in a name": POST + b"x\x00a: 1\r\n\r\n",
    "a control byte": POST + b"x-a: \x01\r\n\r\n",
    "not ASCII in a value": POST + b"x-a: \xc3\xa9\r\n\r\n",
    "not ASCII in the target": b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "no colon": POST + b"nonsense\r\n\r\n",
    "no name": POST + b": 1\r\n\r\n",
    "a name in parentheses": POST + b"x(a): 1\r\n\r\n",
    "two hosts": POST + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
    "two keys": POST + b"x-api-key: a\r\nX-Api-Key: a\r\n\r\n",
    "two authorizations": POST + b"authorization: a\r\nauthorization: b\r\n\r\n",
    "two content types": POST + b"content-type: a/b\r\ncontent-type: a/b\r\n\r\n",
    "two versions": POST + b"anthropic-version: 1\r\nanthropic-version: 2\r\n\r\n",
    "absolute form": b"GET http://relay/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT elsewhere:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel to a path": b"CONNECT /v1/messages HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": b"GET / HTTP/3.7\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "an SSH client": b"SSH-2.0-OpenSSH_9.7\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "only zeros": bytes(64),
}
BROKEN_CHUNKS = {
    "no size": b"\r\nhello\r\n" + LAST,
    "not hexadecimal": b"5g\r\nhello\r\n" + LAST,
    "0x": b"0x5\r\nhello\r\n" + LAST,
    "signed": b"+5\r\nhello\r\n" + LAST,
    "negative": b"-5\r\nhello\r\n" + LAST,
    "a space before": b" 5\r\nhello\r\n" + LAST,
    "a space behind": b"5 \r\nhello\r\n" + LAST,
    "an underscore": b"1_0\r\n0123456789abcdef\r\n" + LAST,
    "too many bits": b"10000000000000005\r\nhello\r\n" + LAST,
    "bare LF behind the size": b"5\nhello\r\n" + LAST,
    "bare LF behind the data": b"5\r\nhello\n" + LAST,
    "longer than it says": b"5\r\nhello!\r\n" + LAST,
    "nothing behind the data": b"5\r\nhello0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n" + LAST,
    "a folded trailer": b"0\r\nx: 1\r\n 2\r\n\r\n",
    "a trailer without a colon": b"0\r\nnonsense\r\n\r\n",
}


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    with running(ServerLimits(body_bytes_max=1 << 20)) as running_edge:
        yield running_edge


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_refused_unseen(edge: Edge, name: str) -> None:
    calls = edge.calls
    with edge.caller() as caller:
        caller.send(UNCLEAR[name])
        refused = caller.answer()
        assert refused.status == 400 and refused.error["type"] == "invalid_request_error"
        assert refused.headers["connection"] == "close"
        assert caller.is_closed()
    assert edge.calls == calls


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_broken_chunks_end_the_request(edge: Edge, name: str) -> None:
    with edge.caller() as caller:
        caller.send(CHUNKED + BROKEN_CHUNKS[name])
        refused = caller.answer()
        assert refused.status == 400 and refused.error["type"] == "invalid_request_error"
        assert caller.is_closed()


def test_nothing_hides_behind_a_body(edge: Edge) -> None:
    """What is called a body is a body, and what follows it a request."""
    inner = b"GET /inner HTTP/1.1\r\n" + HOST + b"\r\n"
    with edge.caller() as caller:
        caller.send(post(inner) + GET)
        assert caller.answer().seen["body"].encode() == inner
        assert caller.answer().seen["path"] == "/"


def test_chunk_extensions_and_trailers_go_nowhere(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(CHUNKED + b'5;a=b;c="d"\r\nhello\r\n3\r\n!!!\r\n0;e\r\nx-api-key: late\r\nhost: late\r\n\r\n')
        seen = caller.answer().seen
        assert seen["body"] == "hello!!!"
        assert seen["headers"] == [["host", "relay"], ["transfer-encoding", "chunked"]]
        caller.send(GET)
        assert caller.answer().status == 200


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"1;" + b"e" * 8_000 + b"\r\nx\r\n"),
        (b"", b"%b1\r\nx\r\n" % (b"0" * 8_000)),
        (b"0\r\n", b"x-t: 1\r\n" * 1_000),
        (b"0\r\nx-t: ", b"t" * 8_000),
    ],
    ids=["extensions", "zeros", "trailers", "one trailer"],
)
def test_what_frames_chunks_is_bounded(edge: Edge, start: bytes, more: bytes) -> None:
    with edge.caller() as caller:
        caller.send(CHUNKED + start)
        for _ in range(12):
            caller.send(more)
        assert caller.answer().status == 431
        assert caller.is_closed()


def test_one_byte_chunks_are_no_flood(edge: Edge) -> None:
    body = bytes(range(65, 91)) * 2_000
    with edge.caller() as caller:
        caller.send(chunked(*(body[at : at + 1] for at in range(len(body)))))
        assert caller.answer().seen["body"].encode() == body


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        (b"".join(b"x-%d: 1\r\n" % number for number in range(99)), 200),
        (b"".join(b"x-%d: 1\r\n" % number for number in range(100)), 431),
        (b"x-a: " + b"a" * 32_000 + b"\r\n", 200),
        (b"x-a: " + b"a" * 33_000 + b"\r\n", 431),
        (b"x-" + b"a" * 33_000 + b": 1\r\n", 431),
        (b"a: \r\n" * 90, 200),
    ],
    ids=["100 headers", "101 headers", "32 KB", "33 KB", "a long name", "empty values"],
)
def test_header_limits(edge: Edge, extra: bytes, status: int) -> None:
    with edge.caller() as caller:
        caller.send(b"GET / HTTP/1.1\r\n" + HOST + extra + b"\r\n")
        answered = caller.answer()
        assert answered.status == status
        if status == 431:
            assert answered.error["type"] == "invalid_request_error"
            assert caller.is_closed()


def test_a_head_without_end_is_refused_while_it_comes(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"GET /" + b"a" * 40_000)
        assert caller.answer().status == 431
        caller.ahead = b""
    with edge.caller() as caller:
        caller.send(b"GET / HTTP/1.1\r\n" + b"x-a: 1\r\n" * 5_000)
        assert caller.answer().status == 431


def test_headers_arrive_as_they_were_sent(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"GET /a%20b?c=%0d%0a HTTP/1.1\r\nHost:relay\r\nX-Empty:\r\nX-Odd: \t a  b \t \r\nx-odd: c\r\n\r\n")
        seen = caller.answer().seen
    assert seen["headers"] == [["host", "relay"], ["x-empty", ""], ["x-odd", "a  b"], ["x-odd", "c"]]
    assert seen["path"] == "/a b"


@pytest.mark.parametrize(
    "upgrade",
    [
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n",
        b"connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n",
        b"upgrade: h2c\r\nupgrade: websocket\r\nconnection: keep-alive, upgrade\r\n",
        b"upgrade: h2c\r\n",
    ],
)
def test_upgrades_are_ignored(edge: Edge, upgrade: bytes) -> None:
    """The request is served as it is, its body read, and the connection lives on."""
    with edge.caller() as caller:
        for request in (post(b"hello", upgrade), chunked(b"hel", b"lo", extra=upgrade), post(b"hello", upgrade)):
            caller.send(request)
            answered = caller.answer()
            assert answered.status == 200 and answered.seen["body"] == "hello"


def test_http_1_0_is_answered_and_closed(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"POST / HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello")
        answered = caller.answer()
        assert answered.seen["body"] == "hello" and answered.headers["connection"] == "close"
        assert caller.is_closed()


def test_empty_lines_before_a_request(edge: Edge) -> None:
    with edge.caller() as caller:
        caller.send(b"\r\n\r\n" + GET + b"\r\n" + GET)
        assert caller.answer().status == caller.answer().status == 200


def test_pipelined_requests_are_answered_in_order(edge: Edge) -> None:
    bodies = [b"%d" % number for number in range(30)]
    with edge.caller() as caller:
        caller.send(b"".join(post(body) for body in bodies))
        assert [caller.answer().seen["body"].encode() for _ in bodies] == bodies


def test_a_request_behind_a_chunked_one_in_the_same_read(edge: Edge) -> None:
    """The parser cannot stop between them: the first answer says that it is the last, so the caller repeats the other."""
    with edge.caller() as caller:
        caller.send(chunked(b"first") + GET)
        answered = caller.answer()
        assert answered.seen["body"] == "first" and answered.headers["connection"] == "close"
        assert caller.is_closed()
    with edge.caller() as caller:
        caller.send(chunked(b"first"))
        assert caller.answer().seen["body"] == "first"
        caller.send(chunked(b"second"))
        assert caller.answer().seen["body"] == "second"


def test_who_asks_before_he_sends_is_told_to(edge: Edge) -> None:
    body = bytes(range(256)) * 2_000

    async def digest(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, hashlib.sha256(await read_all(receive)).hexdigest().encode())

    edge.app = digest
    head, _, _ = post(body, b"Expect: 100-Continue\r\n").partition(b"\r\n\r\n")
    with edge.caller() as caller:
        for _ in range(2):
            caller.send(head + b"\r\n\r\n")
            assert caller.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            caller.send(body)
            answered = caller.answer()
            assert answered.body.decode() == hashlib.sha256(body).hexdigest()
            assert "connection" not in answered.headers


def test_who_asks_before_he_sends_and_is_refused(edge: Edge) -> None:
    """His body may or may not follow: the connection ends behind the answer."""

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", status=401)

    edge.app = refuses
    with edge.caller() as caller:
        caller.send(b"POST / HTTP/1.1\r\n" + HOST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        answered = caller.answer()
        assert answered.status == 401 and answered.headers["connection"] == "close"
        assert caller.is_closed()
