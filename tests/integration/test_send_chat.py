"""Chats: what each service receives, over TLS under its own name, on a loopback that stands in for all of them."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import socket
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests.adapters
import trustme
import urllib3.util.connection

from services.admin.notices import send_chat
from services.admin.notices.notices import ChannelTarget, Notice, Undelivered
from services.admin.notices.senders import Senders, SenderSettings
from tests.integration.receivers import CANARY, notice, server_context
from tests.unit.gateway.upstreams import Asked, Handler, Server, Wire, answering, serving

pytestmark = pytest.mark.anyio
BOT = f"123456:{CANARY}-{'a' * 30}"
TARGETS = {
    "slack": ChannelTarget(kind="slack", address=f"https://hooks.slack.com/services/T01/B02/{CANARY}"),
    "feishu": ChannelTarget(kind="feishu", address=f"https://open.feishu.cn/open-apis/bot/v2/hook/{CANARY}-1"),
    "wecom": ChannelTarget(kind="wecom", address=f"https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={CANARY}-2"),
    "dingtalk": ChannelTarget(
        kind="dingtalk", address=f"https://oapi.dingtalk.com/robot/send?access_token={CANARY}3", secret=f"SEC{CANARY}"
    ),
    "telegram": ChannelTarget(kind="telegram", address="-1001234567890", secret=BOT),
}
HOSTS = {
    "slack": "hooks.slack.com",
    "feishu": "open.feishu.cn",
    "wecom": "qyapi.weixin.qq.com",
    "dingtalk": "oapi.dingtalk.com",
    "telegram": "api.telegram.org",
}
TAKEN = {
    "slack": b"ok",
    "feishu": b'{"code":0,"data":{},"msg":"success"}',
    "wecom": b'{"errcode":0,"errmsg":"ok"}',
    "dingtalk": b'{"errcode":0,"errmsg":"ok"}',
    "telegram": b'{"ok":true,"result":{}}',
}
FACTS = "severity: critical\naccount: acct_1\nbalance_usd: 4.99\ntime: 2026-11-18T11:06:40.123Z"


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Internet:
    """Where the five services are: one loopback server, whose certificate has their names."""

    def __init__(self, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.authority = authority
        self.dialled: list[tuple[str, int]] = []
        self._port = 0
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "ca.pem"))
        monkeypatch.setattr(urllib3.util.connection, "create_connection", self._dial)

    def _dial(self, address: tuple[str, int], timeout: Any, **_: Any) -> socket.socket:
        self.dialled.append(address)
        return socket.create_connection(("127.0.0.1", self._port), timeout)

    @contextlib.asynccontextmanager
    async def of(self, handler: Handler, *names: str) -> AsyncIterator[tuple[Server, Senders]]:
        context = server_context(self.authority, *(names or HOSTS.values()))
        made = Senders(SenderSettings())
        async with serving(handler, context=context) as server:
            self._port = server.port
            try:
                yield server, made
            finally:
                made.close()


@pytest.fixture
def internet(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Internet:
    return Internet(authority, monkeypatch, tmp_path)


async def told(internet: Internet, kind: str, what: Notice | None = None) -> tuple[Asked, Any]:
    """The one request a service gets, and its body."""
    async with internet.of(answering(http(TAKEN[kind]))) as (server, made):
        await made.send(TARGETS[kind], what or notice())
    assert internet.dialled == [(HOSTS[kind], 443)]
    (asked,) = server.wires[0].asked
    assert f"\r\nhost: {HOSTS[kind]}\r\n".encode() in asked.head.lower()
    return asked, json.loads(asked.body)


async def test_slack(internet: Internet) -> None:
    asked, body = await told(internet, "slack")
    assert asked.line == f"POST /services/T01/B02/{CANARY} HTTP/1.1".encode()
    assert body == {
        "mrkdwn": False,
        "attachments": [
            {
                "title": "余额 &lt;below&gt; $5 &amp; falling",
                "text": f"Top up, or requests will be &lt;refused&gt;.\n\n{FACTS}",
                "color": "#A32037",
            }
        ],
    }


async def test_feishu(internet: Internet) -> None:
    asked, body = await told(internet, "feishu")
    assert asked.line == f"POST /open-apis/bot/v2/hook/{CANARY}-1/ HTTP/1.1".encode()
    text = f"{notice().title}\r\n{notice().lines()}"
    assert body == {"msg_type": "text", "content": {"text": text}}


async def test_wecom(internet: Internet) -> None:
    asked, body = await told(internet, "wecom")
    assert asked.line == f"POST /cgi-bin/webhook/send?key={CANARY}-2 HTTP/1.1".encode()
    assert body["msgtype"] == "text"
    assert body["text"]["content"].split() == f"{notice().title} {notice().lines()}".split()


async def test_wecom_has_room_for_the_longest_notice(internet: Internet) -> None:
    _, body = await told(internet, "wecom", notice(title="余" * 200, text="额" * 4_000))
    content = body["text"]["content"]
    assert content.startswith("余" * 200) and "额" * 400 in content
    assert len(content.encode()) <= 2_048


async def test_dingtalk(internet: Internet) -> None:
    asked, body = await told(internet, "dingtalk")
    assert body["msgtype"] == "text"
    assert body["text"]["content"].split() == f"{notice().title} {notice().lines()}".split()
    query = parse_qs(urlsplit(asked.line.split()[1].decode()).query)
    assert query["access_token"] == [f"{CANARY}3"]
    (timestamp,), secret = query["timestamp"], f"SEC{CANARY}"
    digest = hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()
    assert query["sign"] == [base64.b64encode(digest).decode()]


async def test_telegram(internet: Internet) -> None:
    asked, body = await told(internet, "telegram")
    assert asked.line == f"POST /bot{BOT}/sendMessage HTTP/1.1".encode()
    assert body["chat_id"] == -1001234567890
    assert body["parse_mode"] == "HTML"
    text = f"{notice().title}\n{notice().lines()}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert body["text"].replace("<b>", "").replace("</b>", "").split() == text.split()


@pytest.mark.parametrize(
    ("kind", "answer", "retryable"),
    [
        ("slack", http(b"no_service", 404), False),
        ("slack", http(b"invalid_payload"), False),
        ("slack", http(b"", 429), True),
        ("feishu", http(b'{"code":19001,"msg":"param invalid"}'), False),
        ("feishu", http(b'{"code":11232,"msg":"frequency limited"}'), True),
        ("wecom", http(b'{"errcode":93000,"errmsg":"invalid webhook url"}'), False),
        ("wecom", http(b'{"errcode":45009,"errmsg":"freq out of limit"}'), True),
        ("dingtalk", http(b'{"errcode":310000,"errmsg":"sign not match"}'), False),
        ("dingtalk", http(b'{"errcode":-1,"errmsg":"busy"}'), True),
        ("telegram", http(b'{"ok":false,"error_code":403}', 403), False),
        ("telegram", http(b"", 502), True),
    ],
)
async def test_no_is_no_also_with_status_200(kind: str, answer: bytes, retryable: bool, internet: Internet) -> None:
    async with internet.of(answering(answer)) as (server, made):
        with pytest.raises(Undelivered) as caught:
            await made.send(TARGETS[kind], notice())
    assert caught.value.retryable is retryable
    assert len(server.bodies) == 1


@pytest.mark.parametrize("kind", TARGETS)
async def test_a_redirect_is_not_followed(kind: str, internet: Internet) -> None:
    async with serving(answering(http(TAKEN[kind]))) as inside:
        for status in (302, 307):
            answer = b"HTTP/1.1 %d Go\r\nlocation: %s/\r\ncontent-length: 0\r\n\r\n" % (status, inside.url.encode())
            async with internet.of(answering(answer)) as (server, made):
                with pytest.raises(Undelivered, match=str(status)):
                    await made.send(TARGETS[kind], notice())
            assert len(server.bodies) == 1
    assert inside.wires == []


async def test_a_proxy_of_the_environment_is_not_asked(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await told(internet, "slack")


async def test_the_certificate_must_be_the_services_own(internet: Internet) -> None:
    async with internet.of(answering(http(b"ok")), "other.example") as (server, made):
        with pytest.raises(Undelivered, match="cannot be reached"):
            await made.send(TARGETS["slack"], notice())
    assert server.bodies == []


async def endless(wire: Wire) -> None:
    await wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n")
    for _ in range(1_000):
        wire.send(b"x" * 65536)
        await wire.writer.drain()


async def test_a_huge_answer_is_not_read(internet: Internet) -> None:
    began = time.monotonic()
    async with internet.of(endless) as (_, made):
        with pytest.raises(Undelivered):
            await made.send(TARGETS["slack"], notice())
    assert time.monotonic() - began < 3


async def test_a_service_that_hangs_is_left(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_chat, "LIMIT_S", 0.3)

    async def silent(wire: Wire) -> None:
        await wire.left()

    async with internet.of(silent) as (_, made):
        began = time.monotonic()
        with pytest.raises(Undelivered, match="did not answer") as caught:
            await made.send(TARGETS["slack"], notice())
        assert caught.value.retryable and time.monotonic() - began < 2


async def test_two_at_once_keep_their_answers_apart(internet: Internet) -> None:
    async def by_path(wire: Wire) -> None:
        asked = await wire.request()
        await asyncio.sleep(0.1)
        wire.send(http(b"ok") if b"/services/" in asked.line else http(b"", 500))

    async with internet.of(by_path) as (_, made):
        sent = [made.send(TARGETS[kind], notice()) for kind in ("slack", "telegram", "slack", "telegram")]
        results = await asyncio.gather(*sent, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Undelivered] * 2


@pytest.mark.parametrize("kind", TARGETS)
async def test_nothing_that_is_raised_or_logged_holds_a_secret(
    kind: str, internet: Internet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("apprise").setLevel(logging.DEBUG)
    async with internet.of(answering(http(TAKEN[kind]), close=True)) as (_, made):
        await made.send(TARGETS[kind], notice())
    for answer in (http(b"{}", 500), http(b"no", 404), b"garbage\r\n\r\n"):
        async with internet.of(answering(answer, close=True)) as (_, made):
            with pytest.raises(Undelivered) as caught:
                await made.send(TARGETS[kind], notice())
        assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert internet.dialled
    assert CANARY not in caplog.text
