"""The screen: bytes pass at once in any chunking; an error event of the operator's never shows, however it is written."""

import itertools
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.screen import ErrorScreen

SECRET = b"organization 7f3c1de0 is over its limit"
OPERATORS = b'{"type":"error","error":{"type":"rate_limit_error","message":"' + SECRET + b'"},"request_id":"req_9"}'
PLAIN = b'{"type":"error","error":{"details":null,"type":"overloaded_error","message":"Overloaded"} }'
DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"an error: event: error"}}\n\n'
)
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
LEADS = [
    b"event: error\ndata: ",
    b"event:error\ndata:",
    b"event: error  \ndata:\t",
    b"id: 5\nevent: error\nretry: 3\ndata: ",
    b": a comment\nevent: error\n: another\ndata: ",
    b"data: ",
    b"data:",
    b"data:   ",
    b"event: ping\ndata: ",
]
cuts = st.lists(st.integers(0, 5_000), max_size=30)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({at % (len(stream) + 1) for at in places} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(marks)]


def shown(chunks: list[bytes]) -> bytes:
    screen = ErrorScreen()
    return b"".join(map(screen.feed, chunks)) + screen.flush()


def events(stream: bytes) -> list[tuple[str, str]]:
    """(event, data) as a client reads them."""
    found = []
    for frame in re.split(r"(?>\r\n|\r|\n){2}", stream.decode().removeprefix("\ufeff"))[:-1]:
        name, data = "", []
        for line in re.split(r"\r\n|\r|\n", frame):
            if line.startswith("event:"):
                name = line[6:].strip()
            elif line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
        if data:
            found.append((name, "\n".join(data)))
    return found


@given(
    st.lists(
        st.sampled_from(
            [
                DELTA,
                PING,
                b"event: error",
                b"event: err",
                b"data: ",
                b'{"type":"er',
                b"\n",
                b"\r",
                b"or\n",
                b"x",
                b"\xff",
            ]
        )
        | st.binary(max_size=20),
        max_size=20,
    ).map(b"".join),
    cuts,
)
@example(b"event: error\r\n\r\nevent: error\n\n", [])
def test_every_byte_comes_out_if_nothing_is_the_operators(stream: bytes, places: list[int]) -> None:
    assert shown(cut(stream, places)) == stream


@given(
    st.lists(st.sampled_from([DELTA, PING, b"event: errors\ndata: 1\n\n", b'data: {"type":"errors"}\n\n']), min_size=1),
    cuts,
)
def test_what_is_no_error_is_never_delayed(parts: list[bytes], places: list[int]) -> None:
    screen = ErrorScreen()
    for chunk in cut(b"".join(parts), places):
        assert screen.feed(chunk) == chunk
    assert screen.flush() == b""


@given(st.sampled_from(LEADS), line_ends, cuts)
def test_bytes_around_an_error_event_are_not_delayed(lead: bytes, line_end: bytes, places: list[int]) -> None:
    before, error = DELTA.replace(b"\n", line_end), (lead + PLAIN + b"\n\n").replace(b"\n", line_end)
    screen = ErrorScreen()
    fed = passed = 0
    for chunk in cut(before + error + before, places):
        fed += len(chunk)
        passed += len(screen.feed(chunk))
        if fed <= len(before) or fed >= len(before + error):
            assert passed == fed
    assert screen.masked == 0


@given(st.sampled_from(LEADS), line_ends, cuts, st.sampled_from([b"", b"\xef\xbb\xbf", DELTA, DELTA + b"\n"]))
def test_the_operators_error_is_replaced_in_any_chunking(
    lead: bytes, line_end: bytes, places: list[int], before: bytes
) -> None:
    stream = (before + lead + OPERATORS + b"\n\n" + PING).replace(b"\n", line_end)
    screen = ErrorScreen()
    out = b"".join(screen.feed(chunk) for chunk in cut(stream, places)) + screen.flush()
    assert SECRET not in out and b"7f3c" not in out
    assert screen.masked == 1
    assert out.startswith(before.replace(b"\n", line_end))
    assert out.endswith(PING.replace(b"\n", line_end))
    *_, (name, data), ping = events(out)
    assert (name, ping) == ("error", ("ping", '{"type": "ping"}'))
    error = json.loads(data)
    assert (error["type"], error["error"]["type"], error["request_id"]) == ("error", "overloaded_error", "req_9")


@given(
    st.sampled_from(
        [
            b'event: error\ndata: {"type":"error",\ndata: "error":{"type":"rate_limit_error","message":"%b"}}\n\n',
            b'data: {"error":{"type":"rate_limit_error","message":"%b"},"type":"error"}\nevent: error\n\n',
            b'data:{ "error" : {"type":"rate_limit_error","message":"%b"}}\n\n',
            b'data: { "type" :\t"error" , "error":{"type":"api_error","message":"%b"}}\n\n',
            b'event: error\ndata: {"error":{"message":"%b","type":"x\\u005flimit"}}\n\n',
            b"event: error\ndata: %b, and no JSON\n\n",
            b'event: error\nevent: ping\ndata: {"type":"error","error":{"message":"%b"}}\n\n',
        ]
    ),
    cuts,
)
def test_other_spellings_of_it(error: bytes, places: list[int]) -> None:
    out = shown(cut(PING + error % SECRET + PING, places))
    assert b"7f3c" not in out
    first, (name, data), last = events(out)
    assert name == "error" and json.loads(data)["error"]["type"] == "overloaded_error"
    assert json.loads(data)["type"] == "error"
    assert first == last == ("ping", '{"type": "ping"}')


@given(st.sampled_from(LEADS), cuts, st.booleans())
def test_an_error_that_is_cut_off_is_judged_all_the_same(lead: bytes, places: list[int], line_ended: bool) -> None:
    tail = b"\n" if line_ended else b""
    assert shown(cut(PING + lead + PLAIN + tail, places)) == PING + lead + PLAIN + tail
    out = shown(cut(PING + lead + OPERATORS[:-20] + tail, places))
    assert b"7f3c" not in out
    assert json.loads(events(out)[1][1])["error"]["type"] == "overloaded_error"


def test_flush_without_anything_held() -> None:
    screen = ErrorScreen()
    assert screen.flush() == b""
    assert screen.feed(b"event: err") == b"event: err"
    assert screen.flush() == b""


def test_several_errors_in_one_chunk() -> None:
    one = b"event: error\ndata: " + OPERATORS + b"\n\n"
    screen = ErrorScreen()
    out = screen.feed(one * 3 + PING + b"event: error\ndata: " + PLAIN + b"\n\n" + one)
    assert screen.masked == 4 and b"7f3c" not in out
    assert [name for name, _ in events(out)] == ["error", "error", "error", "ping", "error", "error"]
    assert PLAIN in out


def test_thousands_of_errors_in_one_chunk() -> None:
    stream = b"event: error\n\n" * 5_000
    assert shown([stream]) == stream


def test_what_is_held_is_bounded() -> None:
    screen = ErrorScreen()
    stream = b"event: error\ndata: " + b"x" * (3 * 1024 * 1024) + b"\n\n"
    held = most = 0
    out = b""
    for at in range(0, len(stream), 10_000):
        chunk = stream[at : at + 10_000]
        passed = screen.feed(chunk)
        held += len(chunk) - len(passed)
        most = max(most, held)
        out += passed
    assert out == stream
    assert 1_000_000 < most < 1_100_000
    screen.feed(b"event: error\ndata: " + b"x" * (2 * 1024 * 1024))
    assert screen.feed(b"event: error\n") == b"event: error\n"


def test_a_held_event_that_comes_byte_by_byte_costs_no_more_than_its_length() -> None:
    screen = ErrorScreen()
    stream = b"event: error\ndata: " + b"x" * 300_000 + b"\n\n"
    assert b"".join(screen.feed(stream[at : at + 1]) for at in range(len(stream))) == stream


@pytest.mark.parametrize(
    ("lead", "data"), [(lead, OPERATORS) for lead in LEADS] + [(lead, SECRET) for lead in LEADS if b"error" in lead]
)
def test_every_pair_of_cuts_inside_the_lead(lead: bytes, data: bytes) -> None:
    """Where the data are no error by their own shape, only the event's name tells."""
    stream = DELTA + lead + data + b"\n\n"
    places = range(len(DELTA) - 2, len(DELTA + lead) + 20)
    for first, second in itertools.combinations(places, 2):
        assert b"7f3c" not in shown([stream[:first], stream[first:second], stream[second:]])
        assert b"7f3c" not in shown([DELTA[:-2], stream[len(DELTA) - 2 : first], stream[first:second], stream[second:]])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_an_error_behind_a_long_line_that_came_in_pieces(line_end: bytes) -> None:
    error = b"event: error\ndata: " + SECRET + b"\n\n"
    long = b"event: ping\ndata: " + b"x" * 1_000
    for chunks in (
        [long, b"yyy\n\n", error],
        [long + b"\n\n" + error[:10], error[10:]],
        [long, b"\n", b"\n", error],
        [long, b"yyy\n\n" + error, error],
        [PING * 20 + error[:10], error[10:]],
    ):
        assert b"7f3c" not in shown([chunk.replace(b"\n", line_end) for chunk in chunks])


def test_the_words_in_the_middle_of_a_line_are_nothing() -> None:
    screen, long = ErrorScreen(), b"data: " + b"x" * 1_000
    for chunk in (
        long,
        b"event: error\n",
        long,
        b"event: er",
        b"ror\n",
        b'data: {"type":"',
        b"event: error\n",
        b"event: er",
    ):
        assert screen.feed(chunk) == chunk


def test_an_endless_line_is_not_kept() -> None:
    screen = ErrorScreen()
    for _ in range(1_000):
        assert screen.feed(b"x") == b"x"
        assert len(screen._line or b"") <= 256


@pytest.mark.parametrize(
    "frame",
    [
        b'event:  error\ndata: {"type":"error","error":{"message":"organization 7f3c"}}\n\n',
        b'event: error\n: organization 7f3c\ndata: {"type":"error","error":{}}\n\n',
        b'event: error\nid: sk-ant-7f3c\ndata: {"type":"error","error":{}}\n\n',
        b'event: error\ndata: {"type":"error","error":{"message":"sk-\ndata: ant-7f3c"}}\n\n',
    ],
)
def test_nothing_of_an_error_event_names_the_operator(frame: bytes) -> None:
    screen = ErrorScreen()
    assert b"7f3c" not in screen.feed(frame) + screen.flush()
    assert screen.masked == 1
