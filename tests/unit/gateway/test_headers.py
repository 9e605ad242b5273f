"""Headers that cross the relay, both ways: PROTOCOL.md, section 3, line by line."""

import json
import re
from pathlib import Path

import pytest

from services.gateway.framing import connection_listed
from services.gateway.headers import (
    Headers,
    _is_forwarded,
    by_name,
    caller_response,
    client_family,
    credential,
    upstream_request,
    value,
)

OURS = [(b"x-api-key", b"sk-ant-operator"), (b"accept-encoding", b"identity")]


def sent_upstream(headers: Headers) -> Headers:
    return upstream_request(headers, credential=b"sk-ant-operator", connection_listed=connection_listed(headers))


def shown(headers: Headers, status: int = 200) -> Headers:
    return caller_response(headers, status, relay_request_id=b"req_relay")


def test_what_is_not_named_passes_in_its_order() -> None:
    headers = [
        (b"anthropic-version", b"2026-10-21"),
        (b"anthropic-beta", b"a-2025-01-01, b-2025-02-02"),
        (b"user-agent", b"Anthropic/Python 2.12.0"),
        (b"content-type", b"application/json"),
        (b"anthropic-beta", b"c"),
        (b"x-stainless-retry-count", b"0"),
        (b"x-claude-code-session-id", b"59f3"),
        (b"anthropic-dangerous-direct-browser-access", b"true"),
        (b"idempotency-key", b"k"),
        (b"accept", b"application/json"),
        (b"x-forward", b"not a forwarding header"),
    ]
    assert sent_upstream(headers) == headers + OURS


@pytest.mark.parametrize(
    "name",
    [
        b"x-api-key",
        b"authorization",
        b"proxy-authorization",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"content-length",
        b"expect",
        b"accept-encoding",
        b"cookie",
        b"anthropic-workspace-id",
        b"anthropic-user-profile-id",
        b"anthropic-organization-id",
        b"forwarded",
        b"via",
        b"x-forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-original-url",
        b"x-original-forwarded-for",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"x-envoy-external-address",
        b"cf-connecting-ip",
        b"cf-ray",
        b"x-relay-request-id",
    ],
)
def test_dropped_on_the_way_up(name: bytes) -> None:
    sent = sent_upstream([(b"a", b"1"), (name, b"caller's"), (b"b", b"2")])
    assert sent == [(b"a", b"1"), (b"b", b"2"), *OURS]


def test_what_connection_lists_is_dropped_but_never_what_decides() -> None:
    headers = [
        (b"connection", b"close, X-Hop , anthropic-version"),
        (b"connection", b"x-api-key,content-type,anthropic-beta,,"),
        (b"x-hop", b"1"),
        (b"anthropic-version", b"2023-06-01"),
        (b"anthropic-beta", b"b"),
        (b"content-type", b"application/json"),
    ]
    assert sent_upstream(headers) == [*headers[3:], *OURS]


def test_there_is_exactly_one_credential_upstream() -> None:
    both = [(b"authorization", b"Bearer sk-cr-1"), (b"x-api-key", b"sk-cr-2"), (b"cookie", b"sessionKey=3")]
    assert sent_upstream(both) == OURS


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bearer k")], b"k"),
        ([(b"authorization", b"BEARER   k ")], b"k"),
        ([(b"authorization", b" Bearer k")], b"k"),
        ([(b"x-api-key", b" k\t")], b"k"),
        ([(b"x-api-key", b"k"), (b"authorization", b"Bearer other")], b"k"),
        ([(b"authorization", b"Bearer other"), (b"x-api-key", b"k")], b"k"),
        ([(b"x-api-key", b""), (b"authorization", b"Bearer k")], b"k"),
        ([(b"x-api-key", b"  "), (b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"Basic dTpw")], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Bearerk")], None),
        ([(b"authorization", b"k")], None),
        ([(b"x-api-key", b"")], None),
        ([(b"proxy-authorization", b"Bearer k"), (b"cookie", b"x-api-key=k")], None),
        ([], None),
    ],
)
def test_credential(headers: Headers, key: bytes | None) -> None:
    assert credential(headers) == key


def test_response_headers_are_an_allowlist() -> None:
    kept = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"content-length", b"5"),
        (b"content-encoding", b"gzip"),
        (b"request-id", b"req_011"),
        (b"x-should-retry", b"true"),
        (b"cache-control", b"no-cache"),
        (b"content-disposition", b"attachment"),
    ]
    dropped = [
        b"set-cookie",
        b"anthropic-organization-id",
        b"anthropic-workspace-id",
        b"anthropic-ratelimit-requests-limit",
        b"anthropic-ratelimit-unified-status",
        b"anthropic-priority-input-tokens-limit",
        b"anthropic-fast-output-tokens-limit",
        b"cf-ray",
        b"cf-cache-status",
        b"server",
        b"server-timing",
        b"via",
        b"x-envoy-upstream-service-time",
        b"traceresponse",
        b"x-cloud-trace-context",
        b"strict-transport-security",
        b"content-security-policy",
        b"x-robots-tag",
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"trailer",
        b"upgrade",
        b"location",
        b"date",
        b"x-relay-request-id",
        b"x-api-key",
    ]
    assert shown([*kept, *((name, b"upstream's") for name in dropped)]) == [
        *kept,
        (b"x-relay-request-id", b"req_relay"),
    ]
    assert shown([(b"Content-Type", b"a/b")])[0] == (b"content-type", b"a/b")


@pytest.mark.parametrize("status", [200, 400, 404, 413, 500, 502, 504])
def test_retry_after_is_not_for_this_status(status: int) -> None:
    assert value(shown([(b"retry-after", b"5")], status), b"retry-after") == b""


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize(
    ("upstreams", "callers"),
    [
        (b"5", b"5"),
        (b"0", b"0"),
        (b"60", b"60"),
        (b"86400", b"60"),
        (b"1.5", b""),
        (b"-1", b""),
        (b"Tue, 26 Mar 2024 20:00:00 GMT", b""),
        (b"9" * 5000, b""),
        (b"", b""),
    ],
)
def test_retry_after_is_a_small_number_of_seconds(status: int, upstreams: bytes, callers: bytes) -> None:
    assert value(shown([(b"Retry-After", upstreams)], status), b"retry-after") == callers


@pytest.mark.parametrize("odd", [b"a\r\nset-cookie: x", b"a\nb", b"a\0", b"na\xc3\xafve", b"\x7f"])
def test_no_odd_byte_reaches_a_header(odd: bytes) -> None:
    assert shown([(b"content-disposition", odd)]) == [(b"x-relay-request-id", b"req_relay")]


def test_value_is_the_first_one() -> None:
    assert value([(b"X-A", b"1"), (b"x-a", b"2")], b"x-a") == b"1"
    assert value([], b"x-a") == b""
    assert by_name([(b"x-a", b"1"), (b"x-b", b""), (b"x-a", b"2")]) == {b"x-a": b"1", b"x-b": b""}


def test_what_is_remembered_of_names_is_bounded() -> None:
    for number in range(600):
        name = b"x-%d" % number
        assert sent_upstream([(name, b"1"), (b"x-forwarded-%d" % number, b"1")]) == [(name, b"1"), *OURS]
        assert client_family(b"curl/%d" % number) == "curl"
    for remembered in (_is_forwarded, client_family):
        assert remembered.cache_info().currsize <= 256


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        (b"claude-cli/2.1.330 (external, sdk-cli)", "claude-code"),
        (b"claude-code/2.1.330", "claude-code"),
        (b"Anthropic/Python 2.12.0", "anthropic-python"),
        (b"AsyncAnthropic/Python 2.12.0", "anthropic-python"),
        (b"Anthropic/JS 1.12.0", "anthropic-typescript"),
        (b"opencode/1.18.0 ai-sdk/anthropic", "opencode"),
        (b"ai-sdk/anthropic/3.0", "ai-sdk"),
        (b"curl/8.5.0", "curl"),
        (b"Zed/0.210", "zed"),
        (b"litellm/1.80", "litellm"),
        (b"Anthropic/Elixir 1.0", "other"),
        (b"Anthropic", "other"),
        (b"claude-cli", "claude-code"),
        (b"claude-clique/1", "other"),
        (b"Mozilla/5.0", "other"),
        (b"\xff/", "other"),
        (b"", ""),
    ],
)
def test_client_family(agent: bytes, family: str) -> None:
    assert client_family(agent) == family


def test_recorded_clients(corpus: Path) -> None:
    """Each real client's request: its family, its key, and nothing lost on the way up but what must be."""
    families = {"claude-code": "claude-code", "python": "anthropic-python", "ts": "anthropic-typescript"}
    gone = {"host", "connection", "accept-encoding", "content-length", "authorization", "x-api-key"}
    seen = 0
    for path in sorted((corpus / "_clients").glob("*.json")):
        if path.stem.endswith("_hello"):
            continue
        seen += 1
        recorded = json.loads(path.read_bytes())["headers"]
        headers = [(name.lower().encode(), text.encode()) for name, text in recorded]
        assert client_family(value(headers, b"user-agent")) == families[re.split(r"-\d", path.stem)[0]], path.stem
        assert str(credential(headers)).startswith("b'sk-cr-"), path.stem
        kept = [pair for pair in headers if pair[0].decode() not in gone]
        assert sent_upstream(headers) == kept + OURS, path.stem
    assert seen > 8


@pytest.mark.parametrize(
    "name",
    [b"x_api_key", b"anthropic_workspace_id", b"if-none-match", b"range", b"x-http-method-override", b"max-forwards"],
)
def test_what_another_server_could_take_for_something_else(name: bytes) -> None:
    sent = upstream_request([(name, b"1"), (b"x_odd", b"2")], credential=b"ours", connection_listed=frozenset())
    assert name not in dict(sent)
    assert dict(sent)[b"x_odd"] == b"2"
