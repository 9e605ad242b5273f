"""Frames out of any chunking, against a reading of the whole stream at once."""

import itertools
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import sse
from services.gateway.sse import FRAME_BYTES_MAX, FrameSplitter

streams = st.lists(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"event: a", b"data: x", b"d", b":", b""]),
    max_size=30,
).map(b"".join)


def whole(stream: bytes) -> list[bytes]:
    """Frames by the definition: line ends made equal, cut at empty lines, empty ones left out."""
    text = re.sub(rb"\r\n|\r|\n", b"\n", stream)
    *frames, _ = re.split(rb"\n\n+", b"\n\n" + text)
    return [frame for frame in frames if frame]


def read(chunks: list[bytes]) -> tuple[list[bytes], FrameSplitter]:
    splitter = FrameSplitter()
    return [frame for chunk in chunks for frame in splitter.feed(chunk)], splitter


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({at % (len(stream) + 1) for at in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(places)]


@given(streams, st.lists(st.integers(0, 200), max_size=10))
def test_any_chunking_and_line_ends_give_the_same_frames(stream: bytes, cuts: list[int]) -> None:
    frames, splitter = read(cut(stream, cuts))
    assert frames == whole(stream)
    byte_by_byte, other = read([stream[at : at + 1] for at in range(len(stream))])
    assert byte_by_byte == frames
    assert other.unfinished == splitter.unfinished
    assert splitter.at_boundary is (not splitter.unfinished)


@pytest.mark.parametrize(
    ("chunks", "at_boundary", "unfinished"),
    [
        ([], True, b""),
        ([b"event: a\ndata: 1\n\n"], True, b""),
        ([b"event: a\ndata: 1\n"], False, b"event: a\ndata: 1\n"),
        ([b"event: a\ndata: 1\n\n", b"\n"], True, b""),
        ([b"event: a\ndata: 1\n", b"\n\n\n"], True, b""),
        ([b"event: a\r\n\r", b"\n"], True, b""),
        ([b"event: a\r\n\r\ne"], False, b"e"),
        ([b"\r\n", b"\r", b"\n"], True, b""),
    ],
)
def test_where_a_stream_stands(chunks: list[bytes], at_boundary: bool, unfinished: bytes) -> None:
    _, splitter = read(chunks)
    assert (splitter.at_boundary, splitter.unfinished) == (at_boundary, unfinished)


@pytest.mark.parametrize("chunk", [b"a\n\n", b"\na\n\n", b"\n\na\n\n", b"a\n\n\n", b"\n\n\n\na\n\n\n\n"])
def test_empty_lines_around_a_frame_mean_nothing(chunk: bytes) -> None:
    assert read([chunk])[0] == [b"a"]
    assert read([chunk, chunk])[0] == [b"a", b"a"]


def test_a_line_feed_behind_a_whole_crlf_is_an_empty_line() -> None:
    frames, _ = read([b"a\r", b"\n", b"\n", b"b\n\n"])
    assert frames == [b"a", b"b"]


@pytest.mark.parametrize("size", [1, 7, 300, 65_536])
def test_a_frame_over_the_limit_is_skipped_in_bounded_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    monkeypatch.setattr(sse, "FRAME_BYTES_MAX", limit)
    splitter = FrameSplitter()
    for _ in range(3 * limit // size):
        assert splitter.feed(b"x" * size) == []
        assert sys.getsizeof(splitter._kept) < 1.5 * limit + size
    assert not splitter.at_boundary
    assert splitter.unfinished == b""
    assert splitter.feed(b"\n\nnext\n\nand") == [b"next"]
    assert splitter.feed(b" one\n\n") == [b"and one"]
    assert splitter.feed(b"x" * (limit + 1)) + splitter.feed(b"\n\n") == []
    assert splitter.skipped == 2


def test_the_limit_is_the_limit() -> None:
    for size, skipped in ((FRAME_BYTES_MAX - 2, 0), (FRAME_BYTES_MAX, 1)):
        frames, splitter = read([b"x" * size, b"\n", b"\n", b"y\n\n"])
        assert (len(frames), splitter.skipped) == (2 - skipped, skipped)
        assert splitter.at_boundary


@pytest.mark.parametrize(
    ("frame", "name", "data"),
    [
        (b"event: a\ndata: 1", b"a", b"1"),
        (b"event:a\ndata:1", b"a", b"1"),
        (b"data: 1\nevent: a", b"a", b"1"),
        (b"event: a\nevent: b\ndata: 1", b"b", b"1"),
        (b"data:  two spaces", b"", b" two spaces"),
        (b"data: {\ndata: }\nid: 5", b"", b"{\n}"),
        (b"data:\ndata:", b"", b"\n"),
        (b": comment\nretry: 5", b"", b""),
        (b"event", b"", b""),
        (b"database: 1\nevents: 2", b"", b""),
        (b"\xef\xbb\xbfevent: a\ndata: 1", b"a", b"1"),
        (b"\xef\xbb\xbfdata: 1", b"", b"1"),
    ],
)
def test_fields(frame: bytes, name: bytes, data: bytes) -> None:
    assert (sse.event_name(frame), sse.data(frame)) == (name, data)


def test_line_feeds() -> None:
    assert sse.line_feeds(b"a\r\nb\rc\nd\n\re") == b"a\nb\nc\nd\n\ne"
