"""Where a caller is: never where he says he is, unless a load balancer of ours says so."""

import tracemalloc

import pytest

from libs.common.addresses import UNKNOWN, hex_address, throttle_group
from services.gateway.callers import _parsed, caller_address, trusted_networks

OURS = trusted_networks("10.0.0.0/8, 2001:db8:ff::/48")


def seen(peer: str | None, *forwarded: str) -> str:
    return caller_address(peer, [(b"x-forwarded-for", one.encode()) for one in forwarded], OURS)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),  # not ours: what he says does not count
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),  # he wrote the first himself
        ("10.1.1.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["198.51.100.7, 10.2.2.2"], "198.51.100.7"),  # two of ours in a row
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.1.1.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.1.1.1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("10.1.1.1", ["2001:db8::7"], "2001:db8::7"),
        ("2001:db8:ff::1", [" 198.51.100.7 "], "198.51.100.7"),
        ("::ffff:10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["198.51.100.7, ,"], "198.51.100.7"),
    ],
)
def test_the_address_of_a_caller(peer: str, forwarded: list[str], expected: str) -> None:
    assert seen(peer, *forwarded) == hex_address(expected)


@pytest.mark.parametrize("odd", ["unknown", "_hidden", "1.2.3.4.5", "\xff", "<script>", "a" * 10_000])
def test_who_is_behind_nonsense_is_unknown_and_not_somebody_further_left(odd: str) -> None:
    assert caller_address("10.1.1.1", [(b"x-forwarded-for", f"192.0.2.1, {odd}".encode("latin-1"))], OURS) == UNKNOWN


def test_of_a_long_header_little_is_remembered() -> None:
    _parsed.cache_clear()
    for number in range(100):
        seen("10.1.1.1", f"{number}" + "x" * 60_000)
    tracemalloc.start()
    for number in range(100, 200):
        seen("10.1.1.1", f"{number}" + "x" * 60_000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000


def test_a_socket_without_an_address() -> None:
    assert seen(None) == seen("") == seen("/run/relay.sock") == UNKNOWN


def test_without_proxies_of_ours_nothing_is_believed() -> None:
    assert caller_address("10.1.1.1", [(b"x-forwarded-for", b"192.0.2.1")], ()) == hex_address("10.1.1.1")


def test_a_setting_that_cannot_be_read_names_its_part() -> None:
    assert trusted_networks("") == trusted_networks(" , ") == ()
    with pytest.raises(ValueError, match="nonsense"):
        trusted_networks("10.0.0.0/8,nonsense")


def test_one_household_is_one_place() -> None:
    first, second, other = (hex_address(one) for one in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"))
    assert throttle_group(first) == throttle_group(second) != throttle_group(other)
    assert throttle_group(hex_address("192.0.2.1")) != throttle_group(hex_address("192.0.2.2"))
