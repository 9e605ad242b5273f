"""What the upstream is sent, and what a caller is told when it cannot be had."""

import logging
from typing import Any

import httpx2
import pytest

from libs.common.errors import Overloaded, RelayError, UpstreamFailed, UpstreamTimedOut
from services.gateway.upstream import Call, Response, Upstream, read_whole
from tests.unit.gateway.upstreams import echo, serving, transport

pytestmark = pytest.mark.anyio
HEADERS = [
    (b"host", b"relay.example"),
    (b"x-api-key", b"sk-cr-caller"),
    (b"anthropic-version", b"2026-10-21"),
    (b"anthropic-beta", b"a-2026,b-2026"),
    (b"x-hop", b"1"),
    (b"content-type", b"application/json"),
]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def call(target: bytes = b"/v1/messages", body: bytes = b"{}", method: str = "POST") -> Call:
    return Call(method=method, target=target, headers=HEADERS, body=body, connection_listed=frozenset({b"x-hop"}))


async def whole(response: Response) -> bytes:
    try:
        return await read_whole(response, bytes_max=99)
    finally:
        await response.aclose()


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/messages",
        b"/v1/messages?beta=true",
        b"/v1/models?limit=1000&after_id=%zz",
        b"/v1/models?a='\"<>|[]{}^`\\&b=%2F+%20?",
        b"/v1/models?",
    ],
)
async def test_the_request_on_the_wire(target: bytes) -> None:
    body = b'{ "model":"m" ,"odd":"\xed\xa0\x80" }'
    async with serving(echo) as server, transport() as via:
        upstream = Upstream(via, url=server.url + "/base/", api_key="sk-ant-operator")
        for _ in range(2):
            assert await whole(await upstream.send(call(target, body))) == body
    host = server.url.removeprefix("http://").encode()
    expected = [
        b"POST /base" + target + b" HTTP/1.1",
        b"host: " + host,
        b"anthropic-version: 2026-10-21",
        b"anthropic-beta: a-2026,b-2026",
        b"content-type: application/json",
        b"x-api-key: sk-ant-operator",
        b"accept-encoding: identity",
        b"content-length: %d" % len(body),
    ]
    assert [asked.head for wire in server.wires for asked in wire.asked] == [b"\r\n".join(expected) + b"\r\n\r\n"] * 2


async def test_a_get_has_neither_body_nor_length() -> None:
    async with serving(echo) as server, transport() as via:
        upstream = Upstream(via, url=server.url, api_key="k")
        assert await whole(await upstream.send(call(b"/v1/models", b"", "GET"))) == b""
    assert b"content-length" not in server.wires[0].asked[0].head


async def test_another_transport_sees_an_ordinary_request() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, content=b"ok")

    upstream = Upstream(httpx2.MockTransport(handler), url="https://api/base", api_key="k")
    response = await upstream.send(call(b"/v1/models?limit=1", b"hello"))
    assert (response.status, await whole(response)) == (200, b"ok")
    (request,) = seen
    assert str(request.url) == "https://api/base/v1/models?limit=1"
    assert request.content == b"hello"
    assert request.headers["anthropic-version"] == "2026-10-21"


@pytest.mark.parametrize(
    ("error", "told", "status"),
    [
        (httpx2.ConnectError("refused"), Overloaded, 529),
        (httpx2.ConnectTimeout("slow"), Overloaded, 529),
        (httpx2.PoolTimeout("full"), Overloaded, 529),
        (httpx2.ProxyError("407"), Overloaded, 529),
        (httpx2.ReadTimeout("silent"), UpstreamTimedOut, 504),
        (httpx2.ReadError("reset"), UpstreamFailed, 502),
        (httpx2.RemoteProtocolError("nonsense"), UpstreamFailed, 502),
        (httpx2.LocalProtocolError("bad header"), UpstreamFailed, 502),
    ],
)
async def test_errors_are_answers_and_the_operator_learns_the_reason(
    error: httpx2.TransportError, told: type[RelayError], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise error

    upstream = Upstream(httpx2.MockTransport(handler), url="https://api", api_key="sk-ant-operator")
    with caplog.at_level(logging.WARNING), pytest.raises(told) as caught:
        await upstream.send(call(body=b"a prompt"))
    assert caught.value.status == status
    assert str(error) not in caught.value.message
    (record,) = caplog.records
    assert str(error) in record.getMessage()
    for secret in ("sk-", "prompt"):
        assert secret not in record.getMessage()
