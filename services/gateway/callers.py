"""Where a caller is: the peer of the connection, or what a load balancer of ours says of him. Pure."""

import ipaddress
from functools import lru_cache
from typing import Final

from libs.common.addresses import UNKNOWN, hex_address
from services.gateway.headers import Headers

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
_MAPPED: Final = "0" * 20 + "ffff"
_HOPS_MAX: Final = 32
_HOP_BYTES_MAX: Final = 64
"""An address with its port is shorter; what is remembered of a header has a bound."""


def trusted_networks(setting: str) -> Networks:
    """Addresses and networks separated by commas. Raises ValueError that names the one that cannot be read."""
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in setting.split(",") if part.strip())


def caller_address(peer: str | None, headers: Headers, trusted: Networks) -> str:
    """32 hex digits; all zero where nobody can tell. From the right, the first hop of `x-forwarded-for` that is not ours."""
    address = _parsed(peer or "")
    if not trusted or not _is_trusted(address, trusted):
        return address
    listed = b",".join(sent for name, sent in headers if name == b"x-forwarded-for")
    for hop in reversed(listed.decode("ascii", "replace").split(",")[-_HOPS_MAX:]):
        if not hop.strip():
            continue
        address = _parsed(hop.strip()[:_HOP_BYTES_MAX])
        if not _is_trusted(address, trusted):
            return address
    return address


@lru_cache(maxsize=4096)
def _parsed(text: str) -> str:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return hex_address(text)
    except ValueError:
        return UNKNOWN


@lru_cache(maxsize=4096)
def _is_trusted(address: str, trusted: Networks) -> bool:
    number = int(address, 16)
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(number)
    if address.startswith(_MAPPED):
        found = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return any(found in network for network in trusted)
