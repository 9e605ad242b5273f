"""Webhooks on real sockets: what the other side can verify, and what a hostile one cannot make the relay do."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import logging
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trustme
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from services.admin.notices import send_webhook
from services.admin.notices.notices import ChannelTarget, Undelivered
from services.admin.notices.senders import Senders, SenderSettings
from tests.integration.receivers import CANARY, Names, notice, server_context
from tests.unit.gateway.upstreams import Handler, Server, Wire, answering, serving

pytestmark = pytest.mark.anyio
HOST = "hooks.example"
KEY = b"0123456789abcdef-0123456789"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LOOPBACK = SenderSettings(allowed_networks=("127.0.0.1/32",))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The services run uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.asynccontextmanager
async def senders(
    trusting: ssl.SSLContext, names: send_webhook.Resolver, settings: SenderSettings = LOOPBACK
) -> AsyncIterator[Senders]:
    made = Senders(settings, resolver=names, ssl_context=trusting)
    try:
        yield made
    finally:
        made.close()


def hook(server: Server, host: str = HOST, path: str = f"/{CANARY}?t={CANARY}") -> ChannelTarget:
    return ChannelTarget(kind="webhook", address=f"{server.scheme}://{host}:{server.port}{path}", secret=SECRET)


async def deliver(
    handler: Handler, authority: trustme.CA, trusting: ssl.SSLContext, *names: Sequence[str]
) -> tuple[Server, Undelivered | None]:
    """One attempt at a receiver with a good certificate."""
    async with (
        serving(handler, context=server_context(authority, HOST)) as server,
        senders(trusting, Names(names or [["127.0.0.1"]])) as made,
    ):
        try:
            await made.send(hook(server), notice())
        except Undelivered as failure:
            return server, failure
    return server, None


async def test_the_receiver_can_verify_it(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    server, failure = await deliver(answering(OK), authority, trusting)
    assert failure is None
    (asked,) = server.wires[0].asked
    assert asked.line == f"POST /{CANARY}?t={CANARY} HTTP/1.1".encode()
    lines = [line.decode().split(": ", 1) for line in asked.head.split(b"\r\n")[1:] if line]
    headers = {name.lower(): value for name, value in lines}
    assert len(headers) == len(lines)
    assert headers["host"] == f"{HOST}:{server.port}"
    assert headers["webhook-id"] == "ntc_01"
    assert headers["content-type"] == "application/json"
    told = Webhook(SECRET).verify(asked.body, headers)
    assert told == json.loads(notice().json())
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    for body, secret in ((asked.body + b" ", SECRET), (asked.body, other)):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)


async def test_tls_is_asked_for_the_name_and_not_the_address(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    asked: list[str | None] = []
    context = server_context(authority, HOST)
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with serving(answering(OK), context=context) as server, senders(trusting, Names([["127.0.0.1"]])) as made:
        await made.send(hook(server), notice())
    assert asked == [HOST]


@pytest.mark.parametrize("fault", ["wrong name", "unknown authority", "expired"])
async def test_a_certificate_that_proves_nothing(fault: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    past = dt.datetime(2021, 1, 1, tzinfo=dt.UTC)
    match fault:
        case "wrong name":
            certificate = authority.issue_cert("127.0.0.1", "other.example")
        case "unknown authority":
            certificate = trustme.CA().issue_cert(HOST)
        case _:
            certificate = authority.issue_cert(HOST, not_before=past - dt.timedelta(days=9), not_after=past)
    certificate.configure_cert(context)
    async with serving(answering(OK), context=context) as server, senders(trusting, Names([["127.0.0.1"]])) as made:
        with pytest.raises(Undelivered, match="certificate of the receiver") as caught:
            await made.send(hook(server), notice())
    assert caught.value.retryable
    assert not server.bodies


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(200, None), (204, None), (301, True), (400, False), (408, True), (410, False), (429, True), (500, True)],
)
async def test_a_status_decides(
    status: int, retryable: bool | None, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    head = b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status
    _, failure = await deliver(answering(head), authority, trusting)
    assert (failure and failure.retryable) is retryable


async def test_a_redirect_is_not_followed(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    async with serving(answering(OK)) as inside:
        for status in (301, 302, 303, 307, 308):
            head = b"HTTP/1.1 %d Go\r\nlocation: %s/\r\ncontent-length: 0\r\n\r\n" % (status, inside.url.encode())
            server, failure = await deliver(answering(head), authority, trusting)
            assert failure is not None and str(status) in failure.reason
            assert len(server.bodies) == 1
        assert inside.wires == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1", "10.0.0.1"],
        ["8.8.8.8", "169.254.169.254", "1.1.1.1"],
        ["127.0.0.1", "::ffff:7f00:2"],
    ],
)
async def test_one_closed_address_among_open_ones(
    addresses: list[str], authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    server, failure = await deliver(answering(OK), authority, trusting, addresses)
    assert failure is not None and "not public" in failure.reason and not failure.retryable
    assert server.wires == []


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "017700000001"])
async def test_names_of_this_machine_are_closed(host: str, trusting: ssl.SSLContext) -> None:
    """As the system itself resolves them."""
    async with serving(answering(OK)) as server, senders(trusting, send_webhook.resolve, SenderSettings()) as made:
        target = ChannelTarget(kind="webhook", address=f"https://{host}:{server.port}/", secret=SECRET)
        with pytest.raises(Undelivered, match=r"not public|cannot be resolved"):
            await made.send(target, notice())
    assert server.wires == []


async def test_a_name_that_is_rebound_is_resolved_once(
    authority: trustme.CA, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 is open here and 127.0.0.2 is not; whoever asks for the name a second time is sent there."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def lying(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host not in {HOST, HOST.encode()}:
            return real(host, port, *rest, **options)
        asked.append(HOST)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.2", int(port)))
        ]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return [str(address[0]) for *_, address in lying(host, port)]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    context, inside = server_context(authority, HOST), []
    async with serving(answering(OK), context=context) as server, senders(trusting, resolve) as made:
        private = await asyncio.start_server(lambda *_: inside.append(1), "127.0.0.2", server.port)
        async with private:
            await made.send(hook(server), notice())
            assert len(server.bodies) == 1
            with pytest.raises(Undelivered, match="not public"):
                await made.send(hook(server), notice())
    assert (inside, len(asked)) == ([], 2)


async def test_the_next_address_is_tried_and_each_was_checked(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    settings = SenderSettings(allowed_networks=("127.0.0.0/8",))
    names = Names([["127.0.0.9", "127.0.0.1"]])
    context = server_context(authority, HOST)
    async with serving(answering(OK), context=context) as server, senders(trusting, names, settings) as made:
        await made.send(hook(server), notice())
    assert names.asked == [(HOST, server.port)]
    assert len(server.bodies) == 1


async def test_http_reaches_allowed_networks_only(trusting: ssl.SSLContext) -> None:
    async with serving(answering(OK)) as server:
        async with senders(trusting, Names([["127.0.0.1"]])) as made:
            await made.send(hook(server), notice())
        async with senders(trusting, Names([["127.0.0.1", "8.8.8.8"]])) as made:
            with pytest.raises(Undelivered, match="not public"):
                await made.send(hook(server), notice())
    assert len(server.bodies) == 1


async def test_a_proxy_of_the_environment_is_not_asked(
    authority: trustme.CA, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(answering(OK)) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.url)
        _, failure = await deliver(answering(OK), authority, trusting)
    assert failure is None
    assert proxy.wires == []


async def drip(wire: Wire) -> None:
    await wire.request()
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x-slow: 1\r\n" * 100:
        wire.send(bytes([byte]))
        await asyncio.sleep(0.2)


async def test_a_slow_receiver_is_cut_at_5_s(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    began = time.monotonic()
    _, failure = await deliver(drip, authority, trusting)
    assert failure is not None and "within 5 seconds" in failure.reason and failure.retryable
    assert 4.5 < time.monotonic() - began < 6.5


async def silent(wire: Wire) -> None:
    await wire.left()


@pytest.mark.parametrize("phase", ["name", "handshake", "answer"])
async def test_the_limit_is_for_everything(
    phase: str, authority: trustme.CA, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_webhook, "LIMIT_S", 0.3)

    async def stuck(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(30)
        return []

    names = stuck if phase == "name" else Names([["127.0.0.1"]])
    context = None if phase == "handshake" else server_context(authority, HOST)
    async with serving(silent, context=context) as server, senders(trusting, names) as made:
        target = ChannelTarget(kind="webhook", address=f"https://{HOST}:{server.port}/", secret=SECRET)
        began = time.monotonic()
        with pytest.raises(Undelivered, match="did not answer") as caught:
            await made.send(target, notice())
        assert caught.value.retryable and time.monotonic() - began < 2


def flooding(head: bytes, piece: bytes, sent: list[int]) -> Handler:
    async def handler(wire: Wire) -> None:
        await wire.request()
        wire.send(head)
        for _ in range(2_000):
            wire.send(piece)
            await wire.writer.drain()
            sent.append(len(piece))

    return handler


@pytest.mark.parametrize(
    ("head", "piece", "arrives"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n", b"x" * 65536, True),
        (b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 32768 + b"\r\n", False),
        (b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"x" * 8000 + b"\r\n", False),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, False),
    ],
    ids=["body", "chunks", "head", "interim answers"],
)
async def test_a_huge_answer_is_not_read(
    head: bytes, piece: bytes, arrives: bool, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    sent: list[int] = []
    began = time.monotonic()
    _, failure = await deliver(flooding(head, piece, sent), authority, trusting)
    assert (failure is None) is arrives
    assert failure is None or failure.retryable
    assert time.monotonic() - began < 3
    assert sum(sent) < 20_000_000  # what the kernel's buffers take, not all of it


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-x\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"\0" * 99]
)
async def test_what_is_no_answer(answer: bytes, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    _, failure = await deliver(answering(answer, close=True), authority, trusting)
    assert failure is not None and failure.retryable


async def test_a_2xx_is_delivered_though_the_connection_breaks(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    _, failure = await deliver(answering(OK.replace(b" 0", b" 9"), close=True), authority, trusting)
    assert failure is None


async def test_nothing_that_is_raised_or_logged_holds_a_secret(
    authority: trustme.CA, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    attempts: list[tuple[Handler, Sequence[str]]] = [
        (answering(OK), ["127.0.0.1"]),
        (answering(OK.replace(b"200", b"500")), ["127.0.0.1"]),
        (answering(b"garbage\r\n\r\n", close=True), ["127.0.0.1"]),
        (answering(OK), ["10.0.0.1"]),
        (answering(OK), []),
    ]
    for handler, addresses in attempts:
        _, failure = await deliver(handler, authority, trusting, addresses)
        if failure is not None:
            shown = "".join(traceback.format_exception(failure)) + repr(failure)
            assert CANARY not in shown and SECRET not in shown and SECRET[6:] not in shown
            assert failure.__cause__ is None and failure.__context__ is None
    assert caplog.records
    assert CANARY not in caplog.text and SECRET[6:] not in caplog.text
