"""What the benches send: the same for the same seed, of the size and kind that is said, at the cost the ledger is held to."""

import json
from typing import Any

import pytest

from bench import traffic


def bodies(kind: traffic.Kind) -> list[dict[str, Any]]:
    return [json.loads(body) for body in raw(kind)]


def raw(kind: traffic.Kind) -> list[bytes]:
    return [request.split(b"\r\n\r\n", 1)[1] for request in traffic.requests(kind, "http://a:1", "/v1/messages", {})]


def test_requests_carry_what_their_callers_need() -> None:
    (request,) = traffic.requests("json", "http://a:1", "/v1/other", {"x-api-key": "k"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/other HTTP/1.1\r\nhost: a:1\r\n")
    assert b"\r\nx-api-key: k\r\n" in head
    assert traffic.content_length(head) == len(body)


def test_the_mix_is_large_streams_and_marks_what_is_cached() -> None:
    assert raw("mix") == raw("mix")
    for body, text in zip(bodies("mix"), raw("mix"), strict=True):
        assert 45_000 <= len(text) <= 155_000
        assert body["stream"] and body["tools"] and body["system"][0]["cache_control"]
        assert body["messages"][-1]["content"][0]["cache_control"]


def test_three_of_ten_read_from_a_cache_and_cost_more() -> None:
    cached = [traffic.CACHED in body["messages"][0]["content"] for body in bodies("mix")]
    assert sum(cached) == len(cached) * 3 // 10
    assert traffic.costs("mix", len(cached))[traffic.CACHED_USD] == sum(cached)
    first = next(number for number, is_cached in enumerate(cached) if is_cached)
    assert traffic.costs("mix", first)[traffic.CACHED_USD] == 0
    assert traffic.costs("mix", first + 1)[traffic.CACHED_USD] == 1


def test_the_large_body_is_400_kb() -> None:
    assert 395_000 <= len(raw("body")[0]) <= 405_000


@pytest.mark.parametrize(
    ("answer", "stream", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{", False, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", False, True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", False, False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", False, True),
        (b"HTTP/1.1 200 OK\r\n\r\n1\r\nx\r\n0\r\n\r\n", True, True),
        (b"HTTP/1.1 529 Overloaded\r\ncontent-length: 2\r\n\r\n{", True, False),
        (b"HTTP/1.1 529 Overloaded\r\ncontent-length: 2\r\n\r\n{}", True, True),
    ],
)
def test_the_end_of_an_answer(answer: bytes, stream: bool, whole: bool) -> None:
    assert traffic.is_whole(bytearray(answer), stream=stream) is whole


def test_a_stream_without_its_end_is_not_right() -> None:
    assert not traffic.is_right(bytearray(b"HTTP/1.1 200 OK\r\n\r\n0\r\n\r\n"), stream=True)
    assert traffic.is_right(bytearray(b'HTTP/1.1 200 OK\r\n\r\n{"type":"message_stop"}0\r\n\r\n'), stream=True)
    assert not traffic.is_right(bytearray(b"HTTP/1.1 529 \r\n\r\n"), stream=False)
