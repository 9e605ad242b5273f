"""Which request heads are refused, and with what: a table."""

import pytest

from services.gateway.framing import (
    BodyTimedOut,
    HeadTimedOut,
    ServerLimits,
    _listed,
    connection_listed,
    head_error,
    too_large,
)
from services.gateway.headers import Headers

LIMITS = ServerLimits(headers_max=5, body_bytes_max=2 * 1024 * 1024)
HOST = (b"host", b"relay")


def refused(
    headers: Headers, *, target: bytes = b"/v1/messages", version: str = "1.1", size: int = 0
) -> tuple[int, str] | None:
    error = head_error(target, version, headers, dict(headers), size, LIMITS)
    return None if error is None else (error.status, error.message)


@pytest.mark.parametrize(
    "headers",
    [
        [HOST],
        [HOST, (b"transfer-encoding", b"chunked")],
        [HOST, (b"transfer-encoding", b" Chunked ")],
        [HOST, (b"content-length", b"5"), (b"x-api-key", b"k"), (b"authorization", b"Bearer k")],
        [HOST, (b"anthropic-beta", b"a"), (b"anthropic-beta", b"b")],
        [HOST, (b"cookie", b"a"), (b"cookie", b"b"), (b"accept", b"a"), (b"accept", b"b")],
        [HOST, (b"connection", b"close"), (b"connection", b"x")],
    ],
)
def test_read(headers: Headers) -> None:
    assert refused(headers) is None
    assert refused(headers, target=b"/?q=/../%2e#x") is None
    assert refused(headers, size=LIMITS.body_bytes_max) is None


def test_http_1_0_needs_no_host_and_takes_no_chunks() -> None:
    assert refused([], version="1.0") is None
    assert refused([(b"content-length", b"5")], version="1.0", size=5) is None
    assert refused([HOST, (b"transfer-encoding", b"chunked")], version="1.0") is not None


@pytest.mark.parametrize(
    ("headers", "status", "says"),
    [
        ([HOST] + [(b"a", b"b")] * 5, 431, "5 headers"),
        ([], 400, "host is missing"),
        ([(b"host", b"")], 400, "host is missing"),
        ([HOST, (b"transfer-encoding", b"gzip")], 400, "length"),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], 400, "length"),
        ([HOST, (b"transfer-encoding", b"chunked, chunked")], 400, "length"),
        ([HOST, (b"transfer-encoding", b"identity")], 400, "length"),
        ([HOST, (b"transfer-encoding", b"")], 400, "length"),
    ],
)
def test_refused(headers: Headers, status: int, says: str) -> None:
    found = refused(headers)
    assert found is not None
    assert found[0] == status and says in found[1]


@pytest.mark.parametrize(
    "name",
    [
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"x-api-key",
        b"authorization",
        b"anthropic-version",
    ],
)
@pytest.mark.parametrize("values", [(b"a", b"a"), (b"a", b"b"), (b"", b"")])
def test_a_singleton_that_stands_twice(name: bytes, values: tuple[bytes, bytes]) -> None:
    others = [] if name == b"host" else [HOST]
    found = refused([*others, (name, values[0]), (b"x", b"y"), (name, values[1])])
    assert found == (400, f"The header {name.decode()} stands more than once.")


@pytest.mark.parametrize(
    "target",
    [
        b"http://relay/v1/messages",
        b"https://api.anthropic.com/v1/messages",
        b"*",
        b"relay:443",
        b"",
        b"v1/messages",
        b"?x",
    ],
)
def test_a_target_that_is_no_path(target: bytes) -> None:
    found = refused([HOST], target=target)
    assert found is not None and found[0] == 400 and "path" in found[1]


@pytest.mark.parametrize("version", ["0.9", "1.2", "2.0", "3.0", ""])
def test_another_version(version: str) -> None:
    found = refused([HOST], version=version)
    assert found is not None and found[0] == 400


def test_a_body_over_the_limit() -> None:
    found = refused([HOST], size=LIMITS.body_bytes_max + 1)
    assert found is not None and found[0] == 413 and "2 MB" in found[1]
    assert (too_large(ServerLimits()).kind, "32 MB" in too_large(ServerLimits()).message) == ("request_too_large", True)


def test_the_published_limits() -> None:
    limits = ServerLimits()
    assert (limits.headers_max, limits.head_bytes_max, limits.head_seconds) == (100, 32 * 1024, 10)
    assert (limits.body_seconds, limits.body_bytes_per_second_min) == (30, 64 * 1024)
    assert (limits.body_bytes_max, limits.reader_stalled_seconds) == (32 * 1024 * 1024, 60)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (ServerLimits(), 1.0),
        (ServerLimits(head_seconds=0.4), 0.1),
        (ServerLimits(body_seconds=2), 0.5),
        (ServerLimits(reader_stalled_seconds=1), 0.25),
        (ServerLimits(keep_alive_seconds=0.8), 0.2),
        (ServerLimits(linger_seconds=0.04), 0.01),
    ],
)
def test_deadlines_are_looked_at_often_enough(limits: ServerLimits, seconds: float) -> None:
    assert limits.sweep_seconds == pytest.approx(seconds)


def test_time_outs_have_the_shape_of_errors() -> None:
    assert [(error.status, error.kind) for error in (HeadTimedOut(), BodyTimedOut())] == [(408, "timeout_error")] * 2


@pytest.mark.parametrize(
    ("headers", "listed"),
    [
        ([], set()),
        ([(b"connection", b"close")], {b"close"}),
        ([(b"connection", b"Keep-Alive, X-A ,,x-b")], {b"keep-alive", b"x-a", b"x-b"}),
        ([(b"connection", b"x-a"), (b"connection", b"x-b")], {b"x-a", b"x-b"}),
        ([(b"connection", b"x-api-key, Authorization, host, content-length, transfer-encoding")], set()),
        ([(b"connection", b"anthropic-version, anthropic-beta, content-type, te")], {b"te"}),
        ([(b"proxy-connection", b"x-a")], set()),
    ],
)
def test_what_connection_lists(headers: Headers, listed: set[bytes]) -> None:
    assert connection_listed(headers) == listed


def test_what_is_remembered_of_connection_is_bounded() -> None:
    for number in range(100):
        assert connection_listed([(b"connection", b"x-%d" % number)]) == {b"x-%d" % number}
    assert _listed.cache_info().currsize <= 16
