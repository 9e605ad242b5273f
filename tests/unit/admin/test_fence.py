"""Which addresses are open. The closed ones are written out here once more, by the RFC that closes them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin.notices.fence import Fence

NAT64 = ipaddress.ip_network("64:ff9b::/96")
OPEN = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "192.0.1.1", "100.128.0.1", "223.255.255.255", "2606:4700::1111", "2a00::1"]
CARRIED_OPEN = ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
CLOSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "100::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
    "ff02::1", "2001::1", "2001:2::1", "2001:db8::1", "3fff::1", "4000::1", "5f00::1", "64:ff9b:1::808:808",
]  # fmt: skip
CARRIED_CLOSED = [
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1", "2002:a00:1::1", "2002:c0a8:101::1",
]  # fmt: skip


@pytest.mark.parametrize("address", OPEN + CARRIED_OPEN)
def test_global_unicast_is_open(address: str) -> None:
    assert Fence().is_open(address)
    assert not Fence().is_allowed(address)


@pytest.mark.parametrize("address", CLOSED + CARRIED_CLOSED)
def test_everything_else_is_closed(address: str) -> None:
    assert not Fence().is_open(address)


def test_an_operator_opens_a_network_and_no_more() -> None:
    fence = Fence(["10.1.0.0/16", " fd00::/64"])
    assert fence.allows_more and not Fence().allows_more
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::5"):
        assert fence.is_open(address) and fence.is_allowed(address)
    for address in ("10.2.0.1", "fd00:0:0:1::5", "127.0.0.1", "64:ff9b::a01:203"):
        assert not fence.is_open(address)
    assert fence.is_open("8.8.8.8") and not fence.is_allowed("8.8.8.8")


@pytest.mark.parametrize("network", ["10.1.0.5/16", "nowhere", "10.0.0.0/33"])
def test_a_network_that_cannot_be_read_is_refused(network: str) -> None:
    with pytest.raises(ValueError):
        Fence([network])


@given(st.ip_addresses())
def test_nothing_is_open_that_the_standard_library_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Carriers of an IPv4 address aside, which it takes for what they are outside."""
    carried = address in NAT64 or (address.version == 6 and (address.sixtofour or address.ipv4_mapped) is not None)
    if address.is_private or address.is_multicast or address.is_reserved or address.is_link_local:
        assert carried or not Fence().is_open(str(address))
