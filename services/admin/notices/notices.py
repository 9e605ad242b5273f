"""What the relay tells people outside of it: a notice, where it goes, and that it did not arrive. Pure.

A notice holds names, amounts and times, never a key, a token or a password: it leaves for machines that are not ours.
"""

import re
from typing import Final, Literal

import msgspec

from libs.common import clock

Kind = Literal["webhook", "email", "slack", "telegram", "feishu", "wecom", "dingtalk"]

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_TITLE_CHARS_MAX: Final = 200
_TEXT_CHARS_MAX: Final = 4_000


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell. Raises ValueError for an id or a title that cannot stand in a header."""

    id: str
    """The same for every attempt, so that receivers can drop repetitions: letters, digits, `_` and `-`."""
    kind: str
    """E.g. alert.opened, alert.closed, alert.test."""
    title: str
    """One line."""
    text: str
    severity: str
    account_id: str
    at_ms: int
    """When it happened, Unix milliseconds; not when it is sent."""
    data: dict[str, str | int | None] = {}

    def __post_init__(self) -> None:
        if _ID.fullmatch(self.id) is None:
            raise ValueError("the id of a notice is 1 to 128 letters, digits, _ and -")
        if _CONTROL.search(self.title) or not 1 <= len(self.title) <= _TITLE_CHARS_MAX:
            raise ValueError(f"the title of a notice is one line of 1 to {_TITLE_CHARS_MAX} characters")
        if len(self.text) > _TEXT_CHARS_MAX:
            raise ValueError(f"the text of a notice has at most {_TEXT_CHARS_MAX} characters")

    def json(self) -> bytes:
        """The body of a webhook, in the shape of the Standard Webhooks specification."""
        told = {
            "account_id": self.account_id,
            "severity": self.severity,
            "title": self.title,
            "text": self.text,
            "details": self.data,
        }
        return msgspec.json.encode({"type": self.kind, "timestamp": clock.iso_utc(self.at_ms), "data": told})

    def lines(self) -> str:
        """What follows the title in an e-mail or a chat: the text, then one line for each fact."""
        text = [_one_line(line) for line in self.text.splitlines()]
        facts = {"severity": self.severity, "account": self.account_id, **self.data, "time": clock.iso_utc(self.at_ms)}
        told = [f"{_one_line(name)}: {_one_line(str(value))}" for name, value in facts.items() if value is not None]
        return "\n".join([*text, "", *told] if text else told)


class ChannelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where notices go. `address` and `secret` are both kept sealed: the address of a chat lets anybody write there.

    kind                    address                                     secret
    webhook                 https://…                                   whsec_ and base64 of 24 to 64 bytes
    email                   somebody@example.com                        -
    slack, feishu, wecom    the URL the service gives for its robot     -
    dingtalk                the URL the service gives for its robot     SEC…, or empty if it is not signed
    telegram                id of a chat, or @name                      the bot's token
    """

    kind: Kind
    address: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"ChannelTarget(kind={self.kind!r})"


class Undelivered(Exception):
    """A notice did not arrive. `reason` is one sentence that may be shown to the customer."""

    def __init__(self, reason: str, *, retryable: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable


def refusal(status: int) -> Undelivered:
    """For an HTTP answer that is no success: worth another try unless it is the request that is wrong."""
    return Undelivered(
        f"The receiver answered with status {status}.", retryable=not 400 <= status < 500 or status in {408, 429}
    )


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text)
