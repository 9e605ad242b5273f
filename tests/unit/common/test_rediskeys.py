"""Redis keys: one hash slot for everything of an account, reckoned as Redis Cluster reckons it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import ids, rediskeys

SLOTS = 16_384


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM, bit by bit, from the Redis Cluster specification."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def slot(key: str) -> int:
    """The hash slot of a key: of what stands between the first `{` and the next `}`, if that is not empty."""
    raw = key.encode()
    match = re.search(rb"\{([^}]+)\}", raw)
    start = raw.find(b"{")
    hashed = match[1] if match is not None and match.start() == start else raw
    return crc16(hashed) % SLOTS


def test_the_oracle_itself() -> None:
    assert crc16(b"123456789") == 0x31C3  # the specification's own check value
    assert slot("foo{bar}baz") == slot("bar")
    assert slot("foo{}{bar}") == crc16(b"foo{}{bar}") % SLOTS


account_ids = st.builds(lambda n: f"acct_{n:032x}", st.integers(0, 2**128 - 1))


@given(account_ids, st.text(max_size=20))
def test_everything_of_an_account_shares_the_slot_of_its_partition(account_id: str, key_id: str) -> None:
    request_id = ids.new_request_id()
    keys = [
        rediskeys.account(account_id),
        rediskeys.api_key(account_id, key_id),
        rediskeys.credits_taken(account_id),
        rediskeys.settled(account_id, request_id),
        rediskeys.member(account_id, key_id),
        rediskeys.leases(account_id),
        rediskeys.lease_index(ids.partition(account_id)),
        rediskeys.slots(account_id, account_id),
        rediskeys.slots(account_id, key_id),
    ]
    assert {slot(key) for key in keys} == {slot(f"{{p{ids.partition(account_id):02d}}}")}
    assert len(set(keys)) == len(keys)


def test_partitions_spread_over_the_slots() -> None:
    found = {slot(f"{{p{number:02d}}}") for number in range(ids.PARTITIONS)}
    assert len(found) == ids.PARTITIONS
    for third in range(3):
        inside = [value for value in found if value * 3 // SLOTS == third]
        assert len(inside) > 10  # three masters each get a fair part


def test_names_are_written_down() -> None:
    """What stands in a running Redis is found under these names: a change is a migration."""
    account_id, request_id = "acct_00000000000070008000000000000000", "req_0192aabbccdd700080000000000000fe"
    assert rediskeys.key_hash("ab" * 32) == "keyhash:" + "ab" * 32
    assert rediskeys.account(account_id) == f"{{p11}}account:{account_id}"
    assert rediskeys.api_key(account_id, "key_1") == "{p11}key:key_1"
    assert rediskeys.credits_taken(account_id) == f"{{p11}}credits:{account_id}"
    assert rediskeys.member(account_id, "memb_1") == "{p11}member:memb_1"
    assert rediskeys.leases(account_id) == f"{{p11}}leases:{account_id}"
    assert rediskeys.lease_index(11) == "{p11}leases"
    assert rediskeys.slots(account_id, "key_1") == "{p11}slots:key_1"
    assert rediskeys.throttled("ab") == "unknown:ab"
    assert rediskeys.settled(account_id, request_id) == f"{{p11}}settled:{0x0192AABBCCDD // 3_600_000}:fe"


def test_a_request_id_that_is_none_of_ours_has_no_place() -> None:
    for wrong in ("req_1", "", "req_" + "0" * 31 + "}", "msg_" + "Z" * 32):
        with pytest.raises(ValueError):
            rediskeys.settled("acct_1", wrong)


def test_settled_is_kept_longer_than_an_event_may_be_old() -> None:
    assert rediskeys.SETTLED_KEPT_S >= 72 * 3600 + rediskeys.SETTLED_BUCKET_S
