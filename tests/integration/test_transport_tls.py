"""TLS and proxies: whose certificate is taken, what a proxy is told, and what happens when either fails. On both event loops."""

import asyncio
import base64
import contextlib
import datetime as dt
import ssl
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import trustme

from services.gateway.transport import TransportConfig, UpstreamTransport
from tests.unit.gateway.upstreams import OK, Handler, Wire, answering, ask, echo, fetch, read, serving, transport, until

pytestmark = pytest.mark.anyio
LARGE = b"x" * 8_000_000


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The services run uvloop; its transports differ from asyncio's where it hurts."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """The relay's context, which trusts the test's authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    return context_of(authority.issue_cert("127.0.0.1"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No error of the loop: no exception nobody looked at, no fatal error on a transport."""
    yield
    errors = [record.getMessage() for record in caplog.records if record.name == "asyncio" and record.levelno >= 40]
    assert errors == []


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    certificate.configure_cert(context)
    return context


def proxy(*, status: bytes = b"200 Connection established", asked: list[bytes]) -> Handler:
    """A proxy that knows CONNECT, and records what it was asked for."""

    async def handler(wire: Wire) -> None:
        head = (await wire.request()).head
        asked.append(head)
        host, _, port = head.split(b" ")[1].rpartition(b":")
        wire.send(b"HTTP/1.1 " + status + b"\r\nproxy-agent: test\r\n\r\n")
        if not status.startswith(b"2"):
            await wire.left()
            return
        reader, writer = await asyncio.open_connection(host.decode(), int(port))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(wire.reader, writer), pump(reader, wire.writer))
        finally:
            writer.transport.abort()

    return handler


# -- TLS ---------------------------------------------------------------------------------------------------------------


async def test_a_trusted_upstream_over_tls(trusting: ssl.SSLContext, server_tls: ssl.SSLContext) -> None:
    async with serving(echo, context=server_tls) as server, transport(ssl_context=trusting) as via:
        for body in (b"one", b"y" * 3_000_000):
            assert await fetch(via, server.url, body) == body
        secure = server.wires[0].writer.get_extra_info("ssl_object")
        assert secure.selected_alpn_protocol() == "http/1.1"
        assert via.stats.idle == 1
    assert len(server.wires) == 1


@pytest.mark.parametrize("fault", ["wrong host", "unknown authority", "expired"])
async def test_a_certificate_that_proves_nothing_is_refused(
    fault: str, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    match fault:
        case "wrong host":
            certificate = authority.issue_cert("localhost")
        case "unknown authority":
            certificate = trustme.CA().issue_cert("127.0.0.1")
        case _:
            certificate = authority.issue_cert(
                "127.0.0.1",
                not_before=dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
                not_after=dt.datetime(2021, 1, 1, tzinfo=dt.UTC),
            )
    async with serving(echo, context=context_of(certificate)) as server, transport(ssl_context=trusting) as via:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await ask(via, server.url, b"secret")
        assert via.stats.open == 0
    assert server.bodies == []


async def test_the_machine_s_authorities_are_the_default(server_tls: ssl.SSLContext) -> None:
    async with serving(echo, context=server_tls) as server, transport() as via:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await ask(via, server.url)


async def test_an_upstream_that_does_not_speak_tls(trusting: ssl.SSLContext) -> None:
    async def handler(wire: Wire) -> None:
        wire.send(b"SSH-2.0-OpenSSH_9.6\r\n")
        await wire.left()

    async with serving(handler) as server, transport(ssl_context=trusting, connect_timeout_s=0.3) as via:
        with pytest.raises((httpx2.ConnectError, httpx2.ConnectTimeout)):
            await ask(via, server.url.replace("http:", "https:"))
        assert via.stats.open == 0


async def test_connecting_has_a_time_limit_tls_included(trusting: ssl.SSLContext) -> None:
    async def silent(wire: Wire) -> None:
        await wire.left()

    async with serving(silent) as server, transport(ssl_context=trusting, connect_timeout_s=0.1) as via:
        with pytest.raises(httpx2.ConnectTimeout):
            await ask(via, server.url.replace("http:", "https:"))
        assert via.stats.open == 0
        await server.tasks[0]


async def test_leaving_while_connecting(trusting: ssl.SSLContext) -> None:
    async def silent(wire: Wire) -> None:
        await wire.left()

    async with serving(silent) as server, transport(ssl_context=trusting) as via:
        tasks = len(asyncio.all_tasks())
        asking = asyncio.get_running_loop().create_task(ask(via, server.url.replace("http:", "https:")))
        await until(lambda: bool(server.wires))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert via.stats.open == 0
        await server.tasks[0]
        assert len(asyncio.all_tasks()) == tasks


async def test_closing_while_connecting(trusting: ssl.SSLContext) -> None:
    async with serving(echo) as server:
        via = UpstreamTransport(TransportConfig(ssl_context=trusting))
        asking = asyncio.get_running_loop().create_task(ask(via, server.url, b"x"))
        await asyncio.sleep(0)
        await via.aclose()
        with pytest.raises(httpx2.ConnectError):
            await asking
        assert via.stats.open == 0


async def test_a_stale_tls_connection_is_replaced(trusting: ssl.SSLContext, server_tls: ssl.SSLContext) -> None:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(OK)
        if wire.number == 0:
            await wire.reader.read(1)
            wire.close()
        else:
            await wire.left()

    async with serving(handler, context=server_tls) as server, transport(ssl_context=trusting) as via:
        await fetch(via, server.url)
        assert await fetch(via, server.url, b"again") == b"ok"
    assert server.bodies == [b"", b"again"]


@pytest.mark.parametrize("close", [False, True])
async def test_an_early_answer_over_tls(close: bool, trusting: ssl.SSLContext, server_tls: ssl.SSLContext) -> None:
    """The TLS transport says that all is sent when it has only been encrypted."""

    async def handler(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await asyncio.sleep(0.01)
        if close:
            wire.reset()

    async with serving(handler, context=server_tls) as server, transport(ssl_context=trusting) as via:
        response = await ask(via, server.url, LARGE)
        await server.tasks[0]
        assert response.status_code == 413
        assert await read(response) == b"large"
        assert via.stats.open == 0


@pytest.mark.parametrize("signed", [True, False])
async def test_a_body_until_the_end_must_end_as_tls_ends(
    signed: bool, trusting: ssl.SSLContext, server_tls: ssl.SSLContext
) -> None:
    """Else who sits on the line could cut an answer short unseen."""

    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello")
        await asyncio.sleep(0.02)
        wire.close() if signed else wire.writer.transport.abort()
        await wire.left()

    async with serving(handler, context=server_tls) as server, transport(ssl_context=trusting) as via:
        response = await ask(via, server.url)
        if signed:
            assert await read(response) == b"hello"
        else:
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                await read(response)
        assert via.stats.open == 0


async def test_a_slow_caller_gets_all_of_an_answer_after_which_tls_is_closed(
    trusting: ssl.SSLContext, server_tls: ssl.SSLContext
) -> None:
    """uvloop's TLS transport forgets what it holds when the peer closes while it is paused; so TCP below is paused."""
    body = b"z" * 400_000
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    handler = answering(answer, close=True)
    async with (
        serving(handler, context=server_tls) as server,
        transport(ssl_context=trusting, high_water_bytes=10_000) as via,
    ):
        response = await ask(via, server.url)
        await server.tasks[0]
        await asyncio.sleep(0.05)
        assert await read(response) == body


# -- proxies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_https_through_a_proxy(
    proxy_tls: bool, trusting: ssl.SSLContext, server_tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    """Also TLS within TLS."""
    asked: list[bytes] = []
    own = context_of(authority.issue_cert("127.0.0.1")) if proxy_tls else None
    async with serving(echo, context=server_tls) as server, serving(proxy(asked=asked), context=own) as middle:
        url = middle.url.replace("://", "://us%40er:pa%3Ass@")
        async with transport(ssl_context=trusting, proxy_url=url) as via:
            for body in (b"one", b"y" * 2_000_000):
                assert await fetch(via, server.url, body) == body
            assert via.stats.idle == 1
    name = server.url.removeprefix("https://").encode()
    credentials = base64.b64encode(b"us@er:pa:ss")
    assert asked == [
        b"CONNECT "
        + name
        + b" HTTP/1.1\r\nhost: "
        + name
        + b"\r\nproxy-authorization: Basic "
        + credentials
        + b"\r\n\r\n"
    ]
    assert b"proxy-authorization" not in server.wires[0].asked[0].head


@pytest.mark.parametrize("proxy_tls", [False, True])
async def test_http_through_a_proxy_is_asked_for_in_full(
    proxy_tls: bool, trusting: ssl.SSLContext, server_tls: ssl.SSLContext
) -> None:
    async with serving(echo, context=server_tls if proxy_tls else None) as middle:
        url = middle.url.replace("://", "://u:p@")
        async with transport(ssl_context=trusting, proxy_url=url) as via:
            assert await fetch(via, "http://api.invalid:81/v1/messages?beta=true", b"hi") == b"hi"
    head = middle.wires[0].asked[0].head
    assert head.startswith(
        b"POST http://api.invalid:81/v1/messages?beta=true HTTP/1.1\r\nhost: api.invalid:81\r\nproxy-authorization: Basic dTpw"
    )


@pytest.mark.parametrize("status", [b"407 Proxy Authentication Required", b"502 Bad Gateway"])
async def test_a_proxy_that_refuses(status: bytes, trusting: ssl.SSLContext) -> None:
    handler = proxy(status=status, asked=[])
    async with serving(handler) as middle, transport(ssl_context=trusting, proxy_url=middle.url) as via:
        with pytest.raises(httpx2.ProxyError, match=status[:3].decode()):
            await ask(via, "https://api.invalid/")
        assert via.stats.open == 0
        await middle.tasks[0]


async def test_a_proxy_that_refuses_a_plain_request() -> None:
    handler = answering(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
    async with serving(handler) as middle, transport(proxy_url=middle.url) as via:
        with pytest.raises(httpx2.ProxyError):
            await ask(via, "http://api.invalid/")
        assert via.stats.open == 0


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nextra", b"HTTP/1.1 200 " + b"a" * 20_000]
)
async def test_a_proxy_that_talks_nonsense(answer: bytes, trusting: ssl.SSLContext) -> None:
    async with (
        serving(answering(answer, close=True)) as middle,
        transport(ssl_context=trusting, proxy_url=middle.url) as via,
    ):
        with pytest.raises(httpx2.ProxyError):
            await ask(via, "https://api.invalid/")
        assert via.stats.open == 0


async def test_the_upstream_is_checked_behind_a_proxy_too(trusting: ssl.SSLContext) -> None:
    strange = context_of(trustme.CA().issue_cert("127.0.0.1"))
    async with (
        serving(echo, context=strange) as server,
        serving(proxy(asked=[])) as middle,
        transport(ssl_context=trusting, proxy_url=middle.url) as via,
    ):
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await ask(via, server.url, b"secret")
    assert server.bodies == []


async def test_a_proxy_is_checked_too(trusting: ssl.SSLContext) -> None:
    strange = context_of(trustme.CA().issue_cert("127.0.0.1"))
    async with serving(echo, context=strange) as middle, transport(ssl_context=trusting, proxy_url=middle.url) as via:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await ask(via, "https://api.invalid/", b"secret")
    assert middle.bodies == []


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "127.0.0.1:3128", "http://", "ftp://127.0.0.1"])
def test_a_proxy_of_another_kind_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="must be given as http"):
        UpstreamTransport(TransportConfig(proxy_url=url))
