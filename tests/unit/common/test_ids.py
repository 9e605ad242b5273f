"""Ids: UUIDv7 as RFC 9562 lays it out, the time inside, and what is refused."""

import uuid
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import clock, ids


def test_uuid7_layout_and_time() -> None:
    before = clock.unix_ms()
    made = [uuid.UUID(hex=ids.uuid7_hex()) for _ in range(500)]
    after = clock.unix_ms()
    for value in made:
        assert (value.version, value.variant) == (7, uuid.RFC_4122)
        assert before <= value.int >> 80 <= after


def test_all_74_random_bits_are_used() -> None:
    fixed = (1 << 128) - 1 - (((1 << 12) - 1 << 64) | ((1 << 62) - 1))
    ones, zeros = 0, 0
    values = [int(ids.uuid7_hex(), 16) for _ in range(500)]
    for value in values:
        ones |= value
        zeros |= ~value
    assert (ones & zeros | fixed) == (1 << 128) - 1
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (ids.new_request_id, "req_"),
        (ids.new_account_id, "acct_"),
        (ids.new_key_id, "key_"),
        (ids.new_credit_id, "cred_"),
    ],
)
def test_prefixes(make: object, prefix: str) -> None:
    assert callable(make)
    before, made, after = clock.unix_ms(), make(), clock.unix_ms()
    assert made.startswith(prefix) and len(made) == len(prefix) + 32
    assert ids.id_bytes(made).hex() == made.removeprefix(prefix)
    assert before <= ids.id_time_ms(made) == ids.own_time_ms(made) <= after


def test_ids_sort_by_time() -> None:
    known = "req_0192aabbccdd7000" + "8" + "0" * 15
    assert ids.id_time_ms(known) == 0x0192AABBCCDD
    assert known < ids.new_request_id()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "req_",
        "0" * 32,
        "_" + "0" * 32,
        "req_" + "0" * 31,
        "req_" + "0" * 33,
        "req_" + "g" * 32,
        "req_" + "A" * 32,
        "req_" + "0" * 32 + "\n",
        "req_" + "00 " * 10 + "00",  # bytes.fromhex would take it, and give eleven bytes
        "req_" + "٠" * 32,
        "REQ_" + "0" * 32,
        "req_x_" + "0" * 32,
        "r{q}_" + "0" * 32,
        "req_011CVnC4xGzV3rU5Qk2ZtM9b",
    ],
)
def test_what_is_no_id_of_ours(wrong: str) -> None:
    with pytest.raises(ValueError):
        ids.id_bytes(wrong)
    with pytest.raises(ValueError):
        ids.id_time_ms(wrong)


@given(st.text(max_size=50))
def test_partition_is_crc32(account_id: str) -> None:
    assert ids.partition(account_id) == zlib.crc32(account_id.encode()) % 64


def test_partitions_are_all_used_and_never_move() -> None:
    """The stored keys and subjects of every account stand under this number."""
    assert ids.partition("acct_00000000000070008000000000000000") == 11
    assert {ids.partition(ids.new_account_id()) for _ in range(3_000)} == set(range(64))
