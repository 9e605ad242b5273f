"""Seals secrets that must be read again: neither the stream of changes, nor Redis, nor a backup holds one in the clear.

Fernet of the library `cryptography`: AES-128-CBC and HMAC-SHA-256 in one text. The id of the entity is inside the seal, so
that nobody who can write to a store can put one entity's secret in the place of another's.
"""

import base64
import hmac
from typing import Final

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from libs.common.config import ConfigError

_DERIVING: Final = b"relay: secrets of keys"
"""What is derived is never made with the very key that seals."""
_MISSING: Final = "RELAY_SECRETS_KEY is not set: upstream credentials can be neither sealed nor opened."
_UNREADABLE: Final = (
    "RELAY_SECRETS_KEY holds what is no key: 32 bytes in URL-safe base64 are wanted, as new_key makes them."
)
_NOT_OURS: Final = (
    "RELAY_SECRETS_KEY does not open this credential: it was sealed with another key, or for another credential."
)


class SecretsKeyMissing(Exception):
    """There is no key to seal or open with."""


class CannotOpen(SecretsKeyMissing):
    """None of the keys opens it, or it was sealed for another credential."""


class UpstreamSecret(msgspec.Struct, frozen=True, kw_only=True):
    """What of a credential nobody may read. It does not show itself, so that no log does."""

    api_key: str
    proxy_url: str = ""
    """With user and password; empty: no proxy."""

    def __repr__(self) -> str:
        return "UpstreamSecret(…)"


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    credential_id: str
    api_key: str
    proxy_url: str


class _SealedText(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    entity_id: str
    text: str


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Sealed).decode
_decode_text: Final = msgspec.json.Decoder(_SealedText).decode


class Sealer:
    """`keys`: one key, or several separated by commas while they change: the first one seals, each opens. Raises ConfigError."""

    def __init__(self, keys: str) -> None:
        try:
            texts = [key.strip() for key in keys.split(",") if key.strip()]
            ferns = [Fernet(text) for text in texts]
            self._keys = [hmac.digest(base64.urlsafe_b64decode(text), _DERIVING, "sha256") for text in texts]
        except ValueError:
            raise ConfigError(_UNREADABLE) from None
        self._fernet = MultiFernet(ferns) if ferns else None

    def seal(self, credential_id: str, secret: UpstreamSecret) -> str:
        """Printable ASCII, different each time. Raises SecretsKeyMissing."""
        return self._encrypt(_Sealed(credential_id, secret.api_key, secret.proxy_url))

    def open(self, credential_id: str, sealed: str) -> UpstreamSecret:
        """What was sealed for that credential. Raises SecretsKeyMissing, CannotOpen."""
        try:
            inside = _decode(self._decrypt(sealed))
        except msgspec.MsgspecError:
            raise CannotOpen(_NOT_OURS) from None
        if inside.credential_id != credential_id:
            raise CannotOpen(_NOT_OURS)
        return UpstreamSecret(api_key=inside.api_key, proxy_url=inside.proxy_url)

    def seal_text(self, entity_id: str, text: str) -> str:
        """Any other secret of an entity; as `seal`. Raises SecretsKeyMissing."""
        return self._encrypt(_SealedText(entity_id, text))

    def open_text(self, entity_id: str, sealed: str) -> str:
        """What `seal_text` has sealed for that entity. Raises SecretsKeyMissing, CannotOpen."""
        try:
            inside = _decode_text(self._decrypt(sealed))
        except msgspec.MsgspecError:
            raise CannotOpen(_NOT_OURS) from None
        if inside.entity_id != entity_id:
            raise CannotOpen(_NOT_OURS)
        return inside.text

    def _encrypt(self, inside: _Sealed | _SealedText) -> str:
        if self._fernet is None:
            raise SecretsKeyMissing(_MISSING)
        return self._fernet.encrypt(_encode(inside)).decode()

    def _decrypt(self, sealed: str) -> bytes:
        if self._fernet is None:
            raise SecretsKeyMissing(_MISSING)
        try:
            return self._fernet.decrypt(sealed.encode())
        except (InvalidToken, UnicodeError):
            raise CannotOpen(_NOT_OURS) from None

    def derive(self, name: str) -> list[bytes]:
        """32 bytes that the name alone makes with the first key, then with each of the others. Raises SecretsKeyMissing."""
        if not self._keys:
            raise SecretsKeyMissing(_MISSING)
        return [hmac.digest(key, name.encode(), "sha256") for key in self._keys]


def new_key() -> str:
    """A key for RELAY_SECRETS_KEY: 44 characters."""
    return Fernet.generate_key().decode()
