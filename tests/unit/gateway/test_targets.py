"""Request targets: the table, its aliases, and everything that is not in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.targets import Refusal, Route, Target, resolve

PREFIXES = (b"", b"/v1", b"/v1/v1")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("method", "path", "route", "upstream"),
    [
        ("POST", b"/messages", Route.MESSAGES, b"/v1/messages"),
        ("POST", b"/messages/count_tokens", Route.COUNT_TOKENS, b"/v1/messages/count_tokens"),
        ("GET", b"/models", Route.MODELS, b"/v1/models"),
        ("HEAD", b"/models", Route.MODELS, b"/v1/models"),
    ],
)
@pytest.mark.parametrize("query", [b"", b"beta=true", b"a=%2e%2F;b=//&c=..", b"limit=1000&after_id=x%23", b"?"])
def test_the_table(prefix: bytes, method: str, path: bytes, route: Route, upstream: bytes, query: bytes) -> None:
    expected = upstream + b"?" + query if query else upstream
    assert resolve(method, prefix + path, query) == Target(route, expected)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["claude-haiku-4-5-20251001", "claude-sonnet-4-6", "a.b_c:d@1", "x" * 128])
def test_one_model(prefix: bytes, name: str) -> None:
    target = resolve("GET", prefix + b"/models/" + name.encode(), b"beta=true")
    assert target == Target(Route.MODEL, b"/v1/models/" + name.encode() + b"?beta=true", name)


@pytest.mark.parametrize("path", [b"/", b"/api/hello"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_hello_never_goes_upstream(method: str, path: bytes) -> None:
    assert resolve(method, path, b"x=1") == Target(Route.HELLO)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_own_usage_never_goes_upstream(prefix: bytes, method: str) -> None:
    assert resolve(method, prefix + b"/usage", b"x=1") == Target(Route.USAGE)
    refused = resolve("POST", prefix + b"/usage", b"")
    assert isinstance(refused, Refusal) and (refused.status, refused.headers) == (405, {"allow": "GET, HEAD"})
    for path in (b"/usage/", b"/usage/x", b"/Usage"):
        assert isinstance(resolve(method, prefix + path, b""), Refusal)


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz", b"/metrics"])
def test_local(path: bytes) -> None:
    assert resolve("GET", path, b"") == Target(Route.LOCAL)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/%2e%2e/messages",
        b"/v1/%2E/messages",
        b"/v1/messages%2fcount_tokens",
        b"/v1/messages%2Fbatches",
        b"/v1%5cmessages",
        b"/v1\\messages",
        b"/v1//messages",
        b"//v1/messages",
        b"/v1/messages;x=1",
        b"/v1/messages#x",
        b"/v1/messages/..",
        b"/v1/messages/../organizations",
        b"/v1/./messages",
        b"/v1/models/..",
        b"/v1/models/.",
        b"/v1/models/../messages",
        b"/v1/models/a%2f..%2fmessages",
        b"/v1/models/a//",
        b"/v1/messages%00",
        b"/v1/messages\x00",
        b"/v1/messages\n",
        b"/v1/mess ages",
        b"/v1/m\xc3\xa9ssages",
        b"http://api.anthropic.com/v1/messages",
        b"api.anthropic.com:443",
        b"*",
        b"",
        b"v1/messages",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_paths_that_could_be_read_in_two_ways(method: str, path: bytes) -> None:
    refusal = resolve(method, path, b"")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


@pytest.mark.parametrize(
    "path",
    [
        b"/v1",
        b"/v1/",
        b"/v1/messages/",
        b"/v1/Messages",
        b"/V1/messages",
        b"/v1/%6dessages",
        b"/v1/message%73",
        b"/v1/%256dessages",
        b"/v1/v1/v1/messages",
        b"/v2/messages",
        b"/v1/complete",
        b"/v1/messages/batches",
        b"/v1/messages/batches/msgbatch_1/results",
        b"/v1/files",
        b"/v1/skills",
        b"/v1/organizations/usage_report/messages",
        b"/v1/oauth/token",
        b"/api/hello/",
        b"/api/v1/accounts",
        b"/v1/models/",
        b"/v1/models/a/b",
        b"/v1/models/%61",
        b"/v1/models/" + b"x" * 129,
        b"/v1/models/a,b",
        b"/x",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_everything_else_is_not_found(method: str, path: bytes) -> None:
    refusal = resolve(method, path, b"")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", b"/v1/messages", "POST"),
        ("HEAD", b"/messages", "POST"),
        ("OPTIONS", b"/v1/messages", "POST"),
        ("PUT", b"/v1/messages/count_tokens", "POST"),
        ("POST", b"/v1/models", "GET, HEAD"),
        ("DELETE", b"/v1/models/claude-opus-4-7", "GET, HEAD"),
        ("POST", b"/api/hello", "GET, HEAD"),
        ("POST", b"/", "GET, HEAD"),
        ("POST", b"/metrics", "GET, HEAD"),
        ("post", b"/v1/messages", "POST"),
    ],
)
def test_another_method_is_told_which_ones_there_are(method: str, path: bytes, allow: str) -> None:
    refusal = resolve(method, path, b"")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.headers) == (405, {"allow": allow})


@pytest.mark.parametrize("query", [b"a#b", b"a b", b"\xff", b"a\nb", b"a\x00", b"\x7f"])
def test_a_query_that_cannot_stand_in_a_request_line(query: bytes) -> None:
    refusal = resolve("POST", b"/v1/messages", query)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


@given(
    st.sampled_from(["GET", "POST", "HEAD"]),
    st.lists(
        st.sampled_from([b"/", b"v1", b"messages", b"models", b"..", b".", b"%2f", b"a", b";", b"\\"]), max_size=8
    ),
    st.binary(max_size=3),
)
def test_what_goes_upstream_is_of_the_table(method: str, parts: list[bytes], tail: bytes) -> None:
    target = resolve(method, b"/" + b"".join(parts) + tail, b"")
    if isinstance(target, Target) and target.upstream:
        known = (b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/models")
        assert target.upstream in known or target.upstream == b"/v1/models/" + target.model.encode()
        assert b"/" not in target.model.encode() and target.model not in (".", "..")
