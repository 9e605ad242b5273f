"""Addresses as scripts compare them: as hex digits of one length, so that the order of texts is the order of addresses."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.addresses import address_ranges, hex_address


def test_both_kinds_have_one_length() -> None:
    assert hex_address("127.0.0.1") == "00000000000000000000ffff7f000001"
    assert hex_address("::ffff:127.0.0.1") == hex_address("127.0.0.1")
    assert hex_address("2001:DB8::1") == "20010db8000000000000000000000001"
    assert hex_address("fe80::1%eth0") == "fe800000000000000000000000000001"


@pytest.mark.parametrize("wrong", ["", "localhost", "1.2.3", "1.2.3.4:80", "[::1]", "0x7f.1"])
def test_anything_else_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError):
        hex_address(wrong)


@given(st.ip_addresses(), st.integers(0, 32))
def test_an_address_is_in_the_range_of_its_network_and_not_beyond(address: ipaddress.IPv4Address, prefix: int) -> None:
    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    low, _, high = address_ranges([str(network)]).partition("-")
    assert low <= hex_address(str(address)) <= high
    for outside, inside in ((int(network[0]) - 1, low), (int(network[-1]) + 1, high)):
        limit = 2**32 if address.version == 4 else 2**128
        if 0 <= outside < limit:
            beyond = hex_address(str(type(address)(outside)))
            assert beyond < low or beyond > high, inside


def test_several_networks_and_none() -> None:
    assert address_ranges([]) == ""
    assert address_ranges(["10.0.0.1", "::1"]) == (
        "00000000000000000000ffff0a000001-00000000000000000000ffff0a000001 "
        "00000000000000000000000000000001-00000000000000000000000000000001"
    )
    with pytest.raises(ValueError, match="nonsense"):
        address_ranges(["10.0.0.0/8", "nonsense"])
