"""The relay's own answers: the tree in the docstring is the tree of classes, and the bodies have Anthropic's shape."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import errors
from libs.common.errors import Overloaded, RateLimited, RelayError

# PROTOCOL.md, section 4: what each status of the relay's own answers is called.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
LEAF = re.compile(r"^ *[├└]── (\w+) +(\d{3}) +(\w+)(?: +(\S.*?))?$", re.MULTILINE)
KINDS = sorted(
    (kind for kind in RelayError.__subclasses__() if kind.__module__ == errors.__name__), key=lambda kind: kind.__name__
)


def tree() -> dict[str, tuple[int, str, set[str]]]:
    """Name → status, type, names of the headers it always carries."""
    rows = LEAF.findall(errors.__doc__ or "")
    return {
        name: (int(status), kind, {header.partition(":")[0].strip() for header in headers.split(",") if header.strip()})
        for name, status, kind, headers in rows
    }


def test_the_tree_is_complete() -> None:
    assert set(tree()) == {kind.__name__ for kind in KINDS}
    assert not [kind for kind in KINDS if kind.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_class_is_what_the_tree_and_the_protocol_say(kind: type[RelayError]) -> None:
    status, name, headers = tree()[kind.__name__]
    assert (kind.status, kind.kind) == (status, name)
    assert TYPES[status] == name
    # `allow` comes from the route that knows the methods.
    assert set(kind("x").headers) == headers - {"allow"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_headers_that_steer_clients(kind: type[RelayError]) -> None:
    """Clients repeat 401 and 402 without an explicit no (PROTOCOL.md, section 9); retry-after only on 429, 503, 529."""
    headers = kind("x").headers
    if kind.status in (401, 402):
        assert headers["x-should-retry"] == "false"
    if "retry-after" in headers:
        assert kind.status in (429, 503, 529)
        assert re.fullmatch(r"[1-9]|[1-5]\d|60", headers["retry-after"])
    assert all(name == name.lower() for name in headers)


def test_overloaded_says_when_to_come_back() -> None:
    assert Overloaded("x", retry_after_s=7).headers == {"retry-after": "7"}


@pytest.mark.parametrize(
    ("wait_s", "told"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (60.0, "60"), (86_400.0, "60")]
)
def test_rate_limited_says_when_it_passes_and_never_sends_a_client_to_sleep_for_a_day(wait_s: float, told: str) -> None:
    assert RateLimited("x", retry_after_s=wait_s).headers == {"retry-after": told}


def test_what_does_not_pass_by_waiting_says_so() -> None:
    assert RateLimited("x", retry_after_s=None).headers == {"x-should-retry": "false"}


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["needed", "available"]), st.integers() | st.text()))
def test_body(message: str, fields: dict[str, Any]) -> None:
    for kind in (RelayError, errors.InsufficientBalance):
        error = kind(message, **fields)
        assert json.loads(error.body("req_1")) == {
            "type": "error",
            "error": {"type": kind.kind, "message": message, **fields},
            "request_id": "req_1",
        }
        assert str(error) == message


def test_body_keeps_the_order_of_the_api() -> None:
    body = errors.error_body("api_error", "Grüße", "req_1")
    assert body == '{"type":"error","error":{"type":"api_error","message":"Grüße"},"request_id":"req_1"}'.encode()
    parsed = json.loads(body)
    assert list(parsed) == ["type", "error", "request_id"] and list(parsed["error"]) == ["type", "message"]


def test_headers_are_an_instances_own() -> None:
    first, second = errors.BadRequest("a"), errors.BadRequest("b")
    first.headers["x"] = "y"
    assert second.headers == {}
