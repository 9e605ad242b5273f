"""Channels as senders want them: address and secret, sealed in the entity, opened to send."""

import secrets
from base64 import b64encode
from typing import Final
from urllib.parse import urlsplit

import msgspec

from libs.common.entities import Channel
from libs.common.sealing import Sealer
from services.admin.notices.notices import ChannelTarget, Kind

_SECRET_BYTES: Final = 32
_TAIL_CHARS: Final = 4


class _Inside(msgspec.Struct, frozen=True):
    address: str
    secret: str


def seal(sealer: Sealer, channel_id: str, target: ChannelTarget) -> str:
    """Address and secret. Raises SecretsKeyMissing."""
    return sealer.seal_text(channel_id, msgspec.json.encode(_Inside(target.address, target.secret)).decode())


def opened(sealer: Sealer, channel: Channel) -> ChannelTarget:
    """Where a channel leads. Raises SecretsKeyMissing, CannotOpen."""
    inside = msgspec.json.decode(sealer.open_text(channel.id, channel.sealed), type=_Inside)
    return ChannelTarget(kind=channel.kind, address=inside.address, secret=inside.secret)


def new_secret() -> str:
    """What webhooks are signed with."""
    return "whsec_" + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint(kind: Kind, address: str) -> str:
    """Enough to tell channels apart; the URL of a chat lets anybody write there."""
    match kind:
        case "email":
            name, _, domain = address.rpartition("@")
            return f"{name[:1]}…@{domain}"
        case "telegram":
            return f"…{address[-_TAIL_CHARS:]}"
        case _:
            return f"{urlsplit(address).hostname or ''}…{address[-_TAIL_CHARS:]}"
