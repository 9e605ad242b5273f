"""Sends a notice as an e-mail, through the operator's mail server. The standard library's SMTP, in a thread."""

import contextlib
import functools
import re
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from libs.common import clock
from services.admin.notices.notices import ChannelTarget, Notice, Undelivered
from services.admin.notices.send_threads import SendThreads

LIMIT_S: Final = 15.0
"""For the whole conversation; each answer of the mail server has half of it."""
_ADDRESS: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?=[^@]{1,253}\Z)([A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}"
)
_ADDRESS_CHARS_MAX: Final = 254
_PRINTABLE: Final = re.compile(r"[ -~]*")
_PORTS: Final = {"smtp": 25, "starttls": 587, "smtps": 465}
_FORM: Final = "The mail server is given as smtp[s]://[user:password@]host[:port][?starttls=1]."


class MailServer(msgspec.Struct, frozen=True):
    """Where mail is handed in, and who sends it."""

    host: str
    port: int
    security: str
    """smtp, starttls or smtps."""
    user: str
    password: str
    sender: str
    """As the header From shows it."""
    sender_address: str

    def __repr__(self) -> str:
        return f"MailServer({self.host}:{self.port})"


def mail_server(smtp_url: str, smtp_from: str) -> MailServer:
    """Reads the settings. Raises ValueError, which repeats neither."""
    sender_address = parseaddr(smtp_from)[1]
    if _PRINTABLE.fullmatch(smtp_from) is None or not _is_address(sender_address):
        raise ValueError("The sender of e-mail is given as an address, or as: Name <address>.")
    try:
        url = urlsplit(smtp_url)
        port, options = url.port, parse_qs(url.query, strict_parsing=bool(url.query))
    except ValueError:
        raise ValueError(_FORM) from None
    extra = options.keys() - {"starttls"} or url.path not in {"", "/"} or url.fragment
    if url.scheme not in {"smtp", "smtps"} or not url.hostname or extra or not _PRINTABLE.fullmatch(smtp_url):
        raise ValueError(_FORM)
    security = "starttls" if url.scheme == "smtp" and options.get("starttls", ["0"]) == ["1"] else url.scheme
    user, password = unquote(url.username or ""), unquote(url.password or "")
    return MailServer(url.hostname, port or _PORTS[security], security, user, password, smtp_from, sender_address)


def check(target: ChannelTarget) -> None:
    """Raises ValueError for what is no address of one mailbox."""
    if not _is_address(target.address):
        raise ValueError("The address of an e-mail channel is one mailbox, such as somebody@example.com.")
    if target.secret:
        raise ValueError("An e-mail channel has no secret.")


class MailSender:
    """Sends e-mail. Raises Undelivered."""

    def __init__(self, server: MailServer | None, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._ssl_context = ssl_context or ssl.create_default_context()
        self._threads = SendThreads("send-mail")

    async def send(self, target: ChannelTarget, notice: Notice) -> None:
        """The mail server has taken it; whether it reaches the mailbox, nobody tells."""
        if self._server is None:
            raise Undelivered("This relay has no mail server.", retryable=False)
        message = compose(self._server, target.address, notice)
        late = f"The mail server did not take the message within {LIMIT_S:.0f} seconds."
        hand_in = functools.partial(_hand_in, self._server, self._ssl_context, message, target.address)
        await self._threads.run(hand_in, limit_s=LIMIT_S, late=late)

    def close(self) -> None:
        """Forget what has not begun."""
        self._threads.close()


def compose(server: MailServer, address: str, notice: Notice) -> EmailMessage:
    """The message. The same notice has the same Message-ID. EmailMessage itself refuses line ends in headers (ValueError)."""
    message = EmailMessage()
    message["From"] = server.sender
    message["To"] = address
    message["Subject"] = notice.title
    message["Date"] = format_datetime(clock.utc_now())
    message["Message-ID"] = f"<{notice.id}@{_domain(server)}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{notice.title}\n\n{notice.lines()}\n", cte="quoted-printable")
    return message


def _hand_in(server: MailServer, context: ssl.SSLContext, message: EmailMessage, address: str) -> None:
    try:
        connection = _connect(server, context)
        try:
            if server.security == "starttls":
                connection.starttls(context=context)
            if server.user:
                connection.login(server.user, server.password)
            connection.send_message(message, server.sender_address, [address])
            with contextlib.suppress(smtplib.SMTPException, OSError):
                connection.quit()  # the message is taken: how they part does not matter
        finally:
            connection.close()
    except (smtplib.SMTPException, OSError) as error:
        raise _undelivered(error) from None


def _connect(server: MailServer, context: ssl.SSLContext) -> smtplib.SMTP:
    named = _domain(server)  # else smtplib asks DNS who we are
    if server.security == "smtps":
        return smtplib.SMTP_SSL(server.host, server.port, named, timeout=LIMIT_S / 2, context=context)
    return smtplib.SMTP(server.host, server.port, named, timeout=LIMIT_S / 2)


def _undelivered(error: Exception) -> Undelivered:
    """What the mail server says is not repeated: it may name the operator's hosts and users."""
    match error:
        case smtplib.SMTPRecipientsRefused():
            status = max((code for code, _ in error.recipients.values()), default=0)
            return Undelivered(f"The mail server refuses the address (status {status}).", retryable=status < 500)
        case smtplib.SMTPAuthenticationError() | smtplib.SMTPSenderRefused() | smtplib.SMTPNotSupportedError():
            return Undelivered("The mail server does not take messages from this relay.", retryable=True)
        case smtplib.SMTPDataError():
            status = error.smtp_code
            return Undelivered(f"The mail server refuses the message (status {status}).", retryable=status < 500)
        case ssl.SSLError():
            return Undelivered("The mail server has no valid certificate.", retryable=True)
    return Undelivered("The mail server cannot be reached, or broke off.", retryable=True)


def _is_address(text: str) -> bool:
    return len(text) <= _ADDRESS_CHARS_MAX and _ADDRESS.fullmatch(text) is not None


def _domain(server: MailServer) -> str:
    return server.sender_address.rpartition("@")[2]
