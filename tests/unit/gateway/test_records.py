"""Records of the spool: what was written is read again, and what was torn or flipped costs itself and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common import ids
from services.gateway import records
from services.gateway.records import Damaged, Record

KINDS = [records.OPEN, records.USAGE, records.CLOSE, records.DONE]
Written = tuple[bytes, str, bytes]
WRITTEN = st.lists(
    st.tuples(st.sampled_from(KINDS), st.builds(ids.new_request_id), st.binary(max_size=300)), min_size=1, max_size=12
)
ROOM = st.integers(0, 300)


def segment_of(written: list[Written]) -> bytes:
    return records.MAGIC + b"".join(records.encode(*record) for record in written)


def read(segment: bytes) -> list[Written]:
    return [
        (one.kind, one.request_id, segment[one.offset : one.offset + one.length])
        for one in records.scan(segment)
        if isinstance(one, Record)
    ]


@given(WRITTEN, ROOM)
def test_what_was_written_is_read(written: list[Written], room: int) -> None:
    segment = segment_of(written) + bytes(room)
    assert read(segment) == written
    assert [one for one in records.scan(segment) if not isinstance(one, Record)] == ["clean"]


@given(WRITTEN, ROOM, st.data())
def test_a_torn_end_is_found_and_what_came_before_it_is_read(
    written: list[Written], room: int, data: st.DataObject
) -> None:
    whole = segment_of(written)
    cut = data.draw(st.integers(0, len(whole) - 1))
    segment = whole[:cut] + bytes(room)
    found = read(segment)
    assert found == written[: len(found)]
    ends, at = [], len(records.MAGIC)
    for record in written:
        at += len(records.encode(*record))
        ends.append(at)
    # zeros may stand where zeros were cut off: then the record is whole after all
    assert len(found) >= sum(end <= cut for end in ends)
    if segment[: len(segment_of(found))].rstrip(b"\0") != segment.rstrip(b"\0"):
        assert list(records.scan(segment))[-1] == "torn"


@given(WRITTEN, ROOM, st.data())
def test_a_flipped_bit_costs_the_record_it_is_in(written: list[Written], room: int, data: st.DataObject) -> None:
    segment = bytearray(segment_of(written) + bytes(room))
    at = data.draw(st.integers(len(records.MAGIC), len(segment_of(written)) - 1))
    segment[at] ^= 1 << data.draw(st.integers(0, 7))
    begin, hit = len(records.MAGIC), 0
    for number, record in enumerate(written):
        if begin <= at:
            hit = number
        begin += len(records.encode(*record))
    found = list(records.scan(bytes(segment)))
    assert read(bytes(segment)) == written[:hit] + written[hit + 1 :]
    assert found[-1] == "torn" if hit == len(written) - 1 else any(isinstance(one, Damaged) for one in found)


@given(st.binary(max_size=2_000))
def test_anything_can_be_scanned(segment: bytes) -> None:
    assert list(records.scan(segment))[-1] in ("clean", "torn")


def test_the_id_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="req_1"):
        records.encode(records.OPEN, "req_1", b"")
