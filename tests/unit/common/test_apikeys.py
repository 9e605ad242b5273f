"""The format of our keys, and that the checksum sees every slip of a finger."""

import hashlib
import re
import zlib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from libs.common import apikeys

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Fixed for ever: a change of the format would turn away every key that was ever issued.
GOLDEN = b"sk-cr-" + b"0" * 43 + b"345oOc"


def test_format() -> None:
    for _ in range(200):
        key = apikeys.generate()
        assert re.fullmatch(r"sk-cr-[0-9A-Za-z]{43}[0-9A-Za-z]{6}", key, re.ASCII)
        assert apikeys.is_well_formed(key.encode())


def test_256_random_bits() -> None:
    """Forty-three digits hold them all, and over many keys every bit is seen both ways and none leans."""
    values = [value_of(apikeys.generate()) for _ in range(2_000)]
    assert len(set(values)) == len(values)
    assert all(value < 2**256 for value in values) and 62**43 >= 2**256
    for bit in range(256):
        ones = sum(value >> bit & 1 for value in values)
        assert 800 < ones < 1_200, bit  # nine standard deviations


def value_of(key: str) -> int:
    value = 0
    for digit in key[6:49]:
        value = value * 62 + ALPHABET.index(digit)
    return value


def test_the_format_stays_what_it_is() -> None:
    assert apikeys.is_well_formed(GOLDEN)


def with_checksum(body: bytes) -> bytes:
    crc = zlib.crc32(body)
    return body + "".join(ALPHABET[crc // 62**place % 62] for place in range(5, -1, -1)).encode()


keys = st.integers(0, 2**32).map(lambda _: apikeys.generate().encode())


@given(keys, st.integers(0, 54), st.integers(1, 255))
def test_every_changed_character_is_noticed(key: bytes, place: int, change: int) -> None:
    wrong = bytearray(key)
    wrong[place] ^= change
    assert not apikeys.is_well_formed(bytes(wrong))


def test_every_single_slip_in_one_key() -> None:
    """The property above, all of it, for one key."""
    key = apikeys.generate().encode()
    wrong = list(slips(key))
    assert len(wrong) == 53 * 61 + 2 * 62  # the two dashes are not in the alphabet
    assert not [slip for slip in wrong if apikeys.is_well_formed(slip)]


def slips(key: bytes) -> Iterator[bytes]:
    for place in range(len(key)):
        for digit in ALPHABET.encode():
            if digit != key[place]:
                yield key[:place] + bytes([digit]) + key[place + 1 :]


@given(keys, st.integers(0, 53))
def test_swapped_neighbours_are_noticed(key: bytes, place: int) -> None:
    swapped = bytearray(key)
    swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
    assert apikeys.is_well_formed(bytes(swapped)) is (bytes(swapped) == key)


@given(st.binary(max_size=80))
def test_arbitrary_bytes(key: bytes) -> None:
    assert not apikeys.is_well_formed(key)
    assert not apikeys.is_well_formed(b"sk-cr-" + key)


def test_other_lengths() -> None:
    for digits in (0, 1, 42, 44, 80):  # with a checksum that fits
        assert apikeys.is_well_formed(with_checksum(b"sk-cr-" + b"7" * digits)) is False
    assert apikeys.is_well_formed(with_checksum(b"sk-cr-" + b"7" * 43))
    assert not apikeys.is_well_formed(with_checksum(b"sk-rc-" + b"7" * 43))
    key = apikeys.generate().encode()
    for wrong in (key + b"0", key[:-1], key[1:], b" " + key, key + b"\n", key * 2, b""):
        assert not apikeys.is_well_formed(wrong)


def test_only_the_hash_is_kept_and_only_a_hint_is_shown() -> None:
    key = apikeys.generate()
    assert apikeys.hash_key(key.encode()) == hashlib.sha256(key.encode()).hexdigest()
    assert apikeys.hint(key) == key[:10] + "…"
