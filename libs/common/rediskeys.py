"""Names of Redis keys. Everything of an account that a script touches shares the hash slot of its partition."""

from functools import lru_cache
from typing import Final

from libs.common import ids

_TAGS: Final = tuple(f"{{p{partition:02d}}}" for partition in range(ids.PARTITIONS))
SETTLED_BUCKET_S: Final = 3600
SETTLED_KEPT_S: Final = 73 * 3600


def key_hash(sha256: str) -> str:
    """String `<account_id> <key_id>` under the SHA-256 of a key. Written once, never changed, so it may be cached."""
    return f"keyhash:{sha256}"


def account(account_id: str) -> str:
    """Hash: version, status, multiplier_ppm, on_disconnect, zone, limits; balance, held, spent, granted (nano-dollars); buckets,
    used. The last two, and limits, as lua/include/ reads them."""
    return f"{_tag(account_id)}account:{account_id}"


def api_key(account_id: str, key_id: str) -> str:
    """Hash: version, status, member_id, limits, models, addresses, expires_at_ms; held, spent (nano-dollars); buckets, used."""
    return f"{_tag(account_id)}key:{key_id}"


def member(account_id: str, member_id: str) -> str:
    """Hash: version, status, limits; held, spent (nano-dollars); buckets, used."""
    return f"{_tag(account_id)}member:{member_id}"


def leases(account_id: str) -> str:
    """Hash: request id → lease, `<request id>:memo` → memo (lua/include/lease.lua), from admission until its event is settled."""
    return f"{_tag(account_id)}leases:{account_id}"


def lease_index(partition: int) -> str:
    """Sorted set of a partition: `<account_id> <request_id>` → Unix microsecond at which the lease ends."""
    return f"{_TAGS[partition]}leases"


def price_books() -> str:
    """Hash: version → `<effective_at_ms> <id> <JSON>` of each published price book. Written once, never changed."""
    return "pricebooks"


def gate(partition: int) -> str:
    """String: run id of the Redis server for which a partition is open; absent: Redis has lost it (gates.py)."""
    return f"{_TAGS[partition]}gate"


def marks(partition: int) -> str:
    """Hash: the last sequences of USAGE and CONTROL that were settled in a partition."""
    return f"{_TAGS[partition]}marks"


def claim(partition: int) -> str:
    """String: who settles a closed partition again; expires by itself."""
    return f"{_TAGS[partition]}claim"


def rebuilding(partition: int) -> str:
    """String: while a partition is rebuilt, the Unix millisecond before which the archive counts as its base."""
    return f"{_TAGS[partition]}rebuilding"


def slots(account_id: str, owner_id: str) -> str:
    """Sorted set of an account, a member or a key: request id in flight → Unix microsecond at which its slot ends."""
    return f"{_tag(account_id)}slots:{owner_id}"


def session(sha256: str) -> str:
    """String: who has signed in to the control plane, under the SHA-256 of his token; expires by itself."""
    return f"session:{sha256}"


def tries(what: str, digest: str) -> str:
    """String: how often somebody has tried what can be guessed; expires by itself."""
    return f"tries:{what}:{digest}"


def lock(name: str) -> str:
    """String: which process of the control plane does a chore that one of them does; expires by itself."""
    return f"lock:{name}"


def throttled(address: str) -> str:
    """String: the bucket of an address that tries keys which do not exist."""
    return f"unknown:{address}"


def credits_taken(account_id: str) -> str:
    """Hash: credit id → amount. A credit is applied once, whoever brings it."""
    return f"{_tag(account_id)}credits:{account_id}"


def settled(account_id: str, request_id: str) -> str:
    """Hash: request id → `version:cost`. Small (one hour, 1/256 of it), so that Redis keeps it as a listpack."""
    hour = ids.id_time_ms(request_id) // 1000 // SETTLED_BUCKET_S
    return f"{_tag(account_id)}settled:{hour}:{request_id[-2:]}"


@lru_cache(maxsize=4096)
def _tag(account_id: str) -> str:
    return _TAGS[ids.partition(account_id)]
