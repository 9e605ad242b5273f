"""Sends notices to channels. START HERE for notifications: each kind of channel has a file of its own, send_*.py.

`Senders.send` makes one attempt within a time limit and says by Undelivered whether another one makes sense. When to try
again is the caller's business. No exception of a library leaves here, and no sentence holds a URL, a token or a password.
"""

import ssl

import msgspec

from services.admin.notices import send_chat, send_mail, send_webhook
from services.admin.notices.fence import Fence
from services.admin.notices.notices import ChannelTarget, Notice, Undelivered
from services.admin.notices.send_chat import ChatSender
from services.admin.notices.send_mail import MailSender
from services.admin.notices.send_webhook import Resolver, WebhookSender

__all__ = ["ChannelTarget", "SenderSettings", "Senders", "Undelivered", "check_target"]


class SenderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator decides."""

    smtp_url: str = ""
    """smtp[s]://[user:password@]host[:port][?starttls=1]; empty: no e-mail is sent."""
    smtp_from: str = ""
    allowed_networks: tuple[str, ...] = ()
    """CIDRs that webhooks may reach beside global addresses; there, and only there, http:// is allowed too."""

    def __repr__(self) -> str:
        return f"SenderSettings(allowed_networks={self.allowed_networks!r})"


def check_target(target: ChannelTarget, settings: SenderSettings = SenderSettings()) -> None:  # noqa: B008 - frozen
    """Raises ValueError with a sentence for the customer. What a name leads to is judged when something is sent there."""
    match target.kind:
        case "webhook":
            send_webhook.check(target, Fence(settings.allowed_networks))
        case "email":
            send_mail.check(target)
        case _:
            send_chat.check(target)


class Senders:
    """All channels. Raises ValueError for settings that cannot be read."""

    def __init__(
        self,
        settings: SenderSettings,
        *,
        resolver: Resolver = send_webhook.resolve,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        server = send_mail.mail_server(settings.smtp_url, settings.smtp_from) if settings.smtp_url else None
        self._webhooks = WebhookSender(Fence(settings.allowed_networks), resolver=resolver, ssl_context=ssl_context)
        self._mail = MailSender(server, ssl_context=ssl_context)
        self._chats = ChatSender()

    def check(self, target: ChannelTarget) -> None:
        """As `check_target`, with these settings."""
        check_target(target, self._settings)

    async def send(self, channel: ChannelTarget, notice: Notice) -> None:
        """One attempt. Raises Undelivered."""
        try:
            check_target(channel, self._settings)
        except ValueError as error:
            raise Undelivered(str(error), retryable=False) from None
        match channel.kind:
            case "webhook":
                await self._webhooks.send(channel, notice)
            case "email":
                await self._mail.send(channel, notice)
            case _:
                await self._chats.send(channel, notice)

    def close(self) -> None:
        """Forget what has not begun; what is under way ends within its limits."""
        self._mail.close()
        self._chats.close()
