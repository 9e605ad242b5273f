"""The format of the keys we issue: `sk-cr-` + 256 random bits in base62 + a checksum; and how a key is stored.

The checksum lets the gateway turn away a mistyped key without asking Redis. Only the SHA-256 of a key is ever kept.
"""

import hashlib
import secrets
import zlib
from typing import Final

PREFIX: Final = "sk-cr-"
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_DIGITS: Final = 43  # 62**43 > 2**256
_CHECKSUM_DIGITS: Final = 6  # 62**6 > 2**32
_LENGTH: Final = len(PREFIX) + _SECRET_DIGITS + _CHECKSUM_DIGITS


def _base62(value: int, digits: int) -> str:
    out = []
    for _ in range(digits):
        value, digit = divmod(value, 62)
        out.append(_ALPHABET[digit])
    return "".join(reversed(out))


def _checksum(body: bytes) -> bytes:
    return _base62(zlib.crc32(body), _CHECKSUM_DIGITS).encode()


def generate() -> str:
    """A new key, 55 characters. Show it once, then keep only `hash_key` of it."""
    return derived(secrets.token_bytes(32))


def derived(bits: bytes) -> str:
    """The key that 32 bytes make, which nobody else may know."""
    body = PREFIX + _base62(int.from_bytes(bits, "big"), _SECRET_DIGITS)
    return body + _checksum(body.encode()).decode()


def is_well_formed(key: bytes) -> bool:
    """Whether the prefix, the length and the checksum fit. Says nothing about whether we issued it."""
    if len(key) != _LENGTH or not key.startswith(b"sk-cr-"):
        return False
    return _checksum(key[:-_CHECKSUM_DIGITS]) == key[-_CHECKSUM_DIGITS:]


def hash_key(key: bytes) -> str:
    """64 hex digits of SHA-256. Enough for 256 random bits: there is nothing to guess, so no slow hash is needed."""
    return hashlib.sha256(key).hexdigest()


def hint(key: str) -> str:
    """What may be shown of a key afterwards: `sk-cr-Ab12…` and nothing more."""
    return key[: len(PREFIX) + 4] + "…"
