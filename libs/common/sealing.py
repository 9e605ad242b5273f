"""Seals the secrets of upstream credentials: neither the stream of changes, nor Redis, nor a backup holds one in the clear.

Fernet of the library `cryptography`: AES-128-CBC and HMAC-SHA-256 in one text. The id of the credential is inside the seal, so
that nobody who can write to a store can put one credential's secret in the place of another's.
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


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Sealed).decode


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
        if self._fernet is None:
            raise SecretsKeyMissing(_MISSING)
        return self._fernet.encrypt(_encode(_Sealed(credential_id, secret.api_key, secret.proxy_url))).decode()

    def open(self, credential_id: str, sealed: str) -> UpstreamSecret:
        """What was sealed for that credential. Raises SecretsKeyMissing, CannotOpen."""
        if self._fernet is None:
            raise SecretsKeyMissing(_MISSING)
        try:
            inside = _decode(self._fernet.decrypt(sealed.encode()))
        except (InvalidToken, msgspec.MsgspecError, UnicodeError):
            raise CannotOpen(_NOT_OURS) from None
        if inside.credential_id != credential_id:
            raise CannotOpen(_NOT_OURS)
        return UpstreamSecret(api_key=inside.api_key, proxy_url=inside.proxy_url)

    def derive(self, name: str) -> list[bytes]:
        """32 bytes that the name alone makes with the first key, then with each of the others. Raises SecretsKeyMissing."""
        if not self._keys:
            raise SecretsKeyMissing(_MISSING)
        return [hmac.digest(key, name.encode(), "sha256") for key in self._keys]


def new_key() -> str:
    """A key for RELAY_SECRETS_KEY: 44 characters."""
    return Fernet.generate_key().decode()
