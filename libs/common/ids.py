"""Identifiers: UUIDv7 with a prefix, and the partition an account lives in."""

import functools
import hashlib
import os
import re
import zlib
from typing import Final

from libs.common import clock

PARTITIONS: Final = 64
_ID: Final = re.compile(r"[a-z]{1,16}_([0-9a-f]{32})", re.ASCII)
_RANDOM_MASK_A: Final = (1 << 12) - 1
_RANDOM_MASK_B: Final = (1 << 62) - 1


def uuid7_hex() -> str:
    """32 hex digits of a UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (clock.unix_ms() << 80) | (0x7 << 76) | ((random >> 62 & _RANDOM_MASK_A) << 64) | (0b10 << 62)
    return f"{value | random & _RANDOM_MASK_B:032x}"


def new_request_id() -> str:
    """`req_` + 32 hex digits; sorts by time."""
    return "req_" + uuid7_hex()


def new_account_id() -> str:
    """`acct_` + 32 hex digits."""
    return "acct_" + uuid7_hex()


def new_key_id() -> str:
    """`key_` + 32 hex digits: the public name of an API key, never the secret."""
    return "key_" + uuid7_hex()


def new_credit_id() -> str:
    """`cred_` + 32 hex digits."""
    return "cred_" + uuid7_hex()


def new_member_id() -> str:
    """`memb_` + 32 hex digits."""
    return "memb_" + uuid7_hex()


def new_upstream_id() -> str:
    """`upst_` + 32 hex digits."""
    return "upst_" + uuid7_hex()


def new_repair_id() -> str:
    """`rep_` + 32 hex digits."""
    return "rep_" + uuid7_hex()


def new_id(prefix: str) -> str:
    """`<prefix>_` + 32 hex digits of a UUIDv7; for kinds that have no function of their own."""
    return f"{prefix}_{uuid7_hex()}"


def derived_id(prefix: str, *parts: str) -> str:
    """`<prefix>_` + 32 hex digits made from `parts` alone: the same parts are the same entity. Holds no time."""
    return f"{prefix}_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}"


def new_book_id() -> str:
    """`book_` + 32 hex digits."""
    return "book_" + uuid7_hex()


def id_bytes(identifier: str) -> bytes:
    """The 16 bytes behind any of our ids. Raises ValueError for anything but `prefix_` + 32 lower-case hex digits."""
    match = _ID.fullmatch(identifier)
    if match is None:
        raise ValueError(f"not an id of ours: {identifier[:64]!r}")
    return bytes.fromhex(match[1])


def id_time_ms(identifier: str) -> int:
    """Unix milliseconds inside the UUIDv7 of an id. Raises ValueError as `id_bytes` does."""
    return int.from_bytes(id_bytes(identifier)[:6], "big")


def own_time_ms(identifier: str) -> int:
    """The same of an id this process has made, which is not looked at any further: 0.16 µs instead of 0.6."""
    return int(identifier[-32:-20], 16)


@functools.lru_cache(maxsize=4096)
def partition(account_id: str) -> int:
    """0..63, crc32 of the account id: names the Redis hash slot and the NATS subject of everything of that account."""
    return zlib.crc32(account_id.encode()) % PARTITIONS
