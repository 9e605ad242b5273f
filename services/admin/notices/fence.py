"""Which addresses a customer's webhook may lead to: global unicast alone, unless an operator allows more. Pure.

The lists are IANA's registries of special-purpose addresses. `ipaddress.is_global` is not asked: until Python 3.11.10
it took some of them for global. Addresses that carry an IPv4 address inside are judged by it. A NAT64 prefix of the
network's own looks like any other address: where there is one, it must not translate to private networks.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_V4_CLOSED: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
            "168.63.129.16/32",  # Azure's host, seen from its machines: metadata behind an address that looks public
        ),
    )
)  # fmt: skip
_V6_OPEN: Final = ipaddress.IPv6Network("2000::/3")
_V6_CLOSED: Final = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Fence:
    """Judges addresses. Raises ValueError for an allowed network that cannot be read."""

    def __init__(self, allowed_networks: Sequence[str] = ()) -> None:
        self._allowed: list[Network] = [ipaddress.ip_network(text.strip()) for text in allowed_networks]

    @property
    def allows_more(self) -> bool:
        """Whether an operator allows anything beside global addresses."""
        return bool(self._allowed)

    def is_allowed(self, text: str) -> bool:
        """Whether an operator named this address: there, http:// will do. Raises ValueError for no address."""
        address = _plain(text)
        return any(address in network for network in self._allowed)

    def is_open(self, text: str) -> bool:
        """Whether a webhook may be sent to this address. Raises ValueError for no address."""
        return self.is_allowed(text) or _is_global(_plain(text))


def _plain(text: str) -> Address:
    """An IPv4 address in IPv6 clothes is dialled as IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_global(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _V4_CLOSED)
    if address in _NAT64:
        return _is_global(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None:
        return _is_global(address.sixtofour)
    return address in _V6_OPEN and not any(address in network for network in _V6_CLOSED)
