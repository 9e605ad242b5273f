"""E-mail to a real SMTP conversation: what is handed in, how it is protected, and what a refusal means."""

import contextlib
import logging
import ssl
import time
import traceback
from collections.abc import AsyncIterator
from email import message_from_bytes, policy

import pytest
import trustme

from services.admin.notices import send_mail
from services.admin.notices.notices import ChannelTarget, Undelivered
from services.admin.notices.senders import Senders, SenderSettings
from tests.integration.receivers import CANARY, MailServer, mail, notice, server_context

pytestmark = pytest.mark.anyio
BOX = ChannelTarget(kind="email", address="somebody@example.com")
FROM = "Relay <relay@example.com>"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.asynccontextmanager
async def senders(url: str, trusting: ssl.SSLContext) -> AsyncIterator[Senders]:
    made = Senders(SenderSettings(smtp_url=url, smtp_from=FROM), ssl_context=trusting)
    try:
        yield made
    finally:
        made.close()


async def test_a_message_is_handed_in(trusting: ssl.SSLContext) -> None:
    async with mail(MailServer()) as server, senders(f"smtp://127.0.0.1:{server.port}", trusting) as made:
        await made.send(BOX, notice())
    assert [line.split()[0] for line in server.commands] == ["ehlo", "mail", "rcpt", "data", "quit"]
    assert server.commands[0] == "ehlo example.com"
    assert server.commands[1].startswith("mail FROM:<relay@example.com>")
    assert server.commands[2] == "rcpt TO:<somebody@example.com>"
    message = message_from_bytes(server.messages[0], policy=policy.default)
    assert message["Subject"] == notice().title
    assert message["To"] == "somebody@example.com" and message["From"] == FROM
    assert message["Message-ID"] == "<ntc_01@example.com>"
    assert "balance_usd: 4.99" in message.get_content()


@pytest.mark.parametrize("scheme", ["smtps", "smtp"])
async def test_a_password_is_sent_over_tls(scheme: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    """smtps: from the first byte; smtp with starttls=1: before the login."""
    server = MailServer(context=server_context(authority, "localhost"))
    async with mail(server, tls_at_once=scheme == "smtps"):
        url = f"{scheme}://u%40x:{CANARY}@localhost:{server.port}{'?starttls=1' if scheme == 'smtp' else ''}"
        async with senders(url, trusting) as made:
            await made.send(BOX, notice())
    assert server.logins() == [f"\0u@x\0{CANARY}".encode()]
    assert len(server.messages) == 1
    verbs = [line.split()[0] for line in server.commands]
    if scheme == "smtp":
        assert verbs.index("STARTTLS") < verbs.index("AUTH")


@pytest.mark.parametrize("fault", ["no STARTTLS", "wrong name", "unknown authority"])
async def test_without_proof_there_is_no_login(fault: str, authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    known = trustme.CA() if fault == "unknown authority" else authority
    context = server_context(known, "localhost" if fault != "wrong name" else "other.example")
    server = MailServer(context=None if fault == "no STARTTLS" else context)
    async with mail(server), senders(f"smtp://u:{CANARY}@localhost:{server.port}?starttls=1", trusting) as made:
        with pytest.raises(Undelivered) as caught:
            await made.send(BOX, notice())
    assert caught.value.retryable
    assert server.logins() == [] and server.messages == []


@pytest.mark.parametrize(
    ("verb", "answer", "retryable", "reason"),
    [
        ("RCPT", b"550 no such user\r\n", False, "refuses the address (status 550)"),
        ("RCPT", b"451 greylisted\r\n", True, "refuses the address (status 451)"),
        ("DATA", b"554 spam\r\n", False, "refuses the message (status 554)"),
        ("END", b"552 too big\r\n", False, "refuses the message (status 552)"),
        ("END", b"452 disk full\r\n", True, "refuses the message (status 452)"),
        ("MAIL", b"553 not yours\r\n", True, "does not take messages from this relay"),
        ("AUTH", b"535 wrong\r\n", True, "does not take messages from this relay"),
        ("HELLO", b"421 busy\r\n", True, "cannot be reached"),
        ("HELLO", b"HTTP/1.1 400\r\n", True, "cannot be reached"),
    ],
)
async def test_a_refusal(
    verb: str, answer: bytes, retryable: bool, reason: str, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = MailServer(refusals={verb: answer})
    async with mail(server), senders(f"smtp://u:{CANARY}@127.0.0.1:{server.port}", trusting) as made:
        with pytest.raises(Undelivered) as caught:
            await made.send(BOX, notice())
    assert reason in caught.value.reason
    assert caught.value.retryable is retryable
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + caplog.text


async def test_a_message_that_was_taken_is_delivered_however_they_part(trusting: ssl.SSLContext) -> None:
    server = MailServer(refusals={"QUIT": b"500 what?\r\n"})
    async with mail(server), senders(f"smtp://127.0.0.1:{server.port}", trusting) as made:
        await made.send(BOX, notice())
    assert len(server.messages) == 1


async def test_a_mail_server_that_hangs_is_left(trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_mail, "LIMIT_S", 0.4)
    server = MailServer(refusals={"HELLO": b"220-"})
    async with mail(server), senders(f"smtp://127.0.0.1:{server.port}", trusting) as made:
        began = time.monotonic()
        with pytest.raises(Undelivered) as caught:
            await made.send(BOX, notice())
    assert caught.value.retryable and time.monotonic() - began < 2


@pytest.mark.parametrize("address", ["a@example.com\r\nRCPT TO:<x@example.com>", "a@example.com\nBcc: x@example.com"])
async def test_a_line_end_never_reaches_the_conversation(address: str, trusting: ssl.SSLContext) -> None:
    async with mail(MailServer()) as server, senders(f"smtp://127.0.0.1:{server.port}", trusting) as made:
        with pytest.raises(Undelivered, match="one mailbox") as caught:
            await made.send(ChannelTarget(kind="email", address=address), notice())
        assert not caught.value.retryable
        with pytest.raises(ValueError):
            notice(title="Hello\r\nBcc: x@example.com")
    assert server.commands == []


async def test_a_relay_without_a_mail_server_says_so(trusting: ssl.SSLContext) -> None:
    made = Senders(SenderSettings(), ssl_context=trusting)
    with pytest.raises(Undelivered, match="no mail server") as caught:
        await made.send(BOX, notice())
    assert not caught.value.retryable
    made.close()
