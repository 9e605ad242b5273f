"""Internet addresses as scripts compare them: 32 hex digits, an IPv4 address as ::ffff:a.b.c.d."""

import ipaddress
from collections.abc import Sequence
from typing import Final

UNKNOWN: Final = "0" * 32
_MAPPED_HEX: Final = "0" * 20 + "ffff"
_MAPPED: Final = 0xFFFF << 32


def hex_address(text: str) -> str:
    """32 hex digits. Raises ValueError for anything but an address."""
    return _hex(ipaddress.ip_address(text.partition("%")[0]))


def throttle_group(address: str) -> str:
    """What is counted as one place, of 32 hex digits: an IPv4 address, the /64 of an IPv6 one."""
    return address if address.startswith(_MAPPED_HEX) else address[:16]


def address_ranges(allowlist: Sequence[str]) -> str:
    """`lo-hi lo-hi …` of addresses and networks (CIDR); `` for none. Raises ValueError that names the one that cannot be read."""
    networks = [ipaddress.ip_network(entry, strict=False) for entry in allowlist]
    return " ".join(f"{_hex(network[0])}-{_hex(network[-1])}" for network in networks)


def _hex(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    number = int(address)
    return f"{number | _MAPPED if address.version == 4 else number:032x}"
