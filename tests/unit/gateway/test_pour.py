"""Pouring: each chunk is handed over in the read that brought it, unless its receiver is full; then it is kept for him."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from services.gateway.outlet import AsgiOutlet
from services.gateway.upstream_answer import Answer
from tests.unit.gateway.test_upstream_connection import BROKEN, CUTS, HIGH_WATER, WHOLE, Rig

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"


async def nothing() -> Message:
    raise NotImplementedError


async def send_nothing(_: Message) -> None:
    raise NotImplementedError


class Taker(AsgiOutlet):
    """Takes chunks, is full or fails when it is told to, and notes what it was told."""

    def __init__(self) -> None:
        super().__init__(nothing, send_nothing)
        self.taken: list[bytes] = []
        self.full = False
        self.fails = False
        self.room = asyncio.Event()
        self.waits = 0
        self.held_at: int | None = None
        self.flushed = 0

    def take(self, chunk: bytes) -> bool:
        if self.fails:
            raise RuntimeError("broken")
        self.taken.append(chunk)
        return self.full

    async def drained(self) -> None:
        self.waits += 1
        await self.room.wait()

    def flush(self) -> None:
        self.flushed += 1

    def hold(self) -> None:
        assert self.held_at is None
        self.held_at = len(self.taken)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    with socket.socket() as sock:
        yield Rig(sock)


@pytest.fixture
def taker() -> Taker:
    return Taker()


async def pouring(answer: Answer, taker: Taker) -> "asyncio.Task[None]":
    task = asyncio.create_task(answer.pour(taker.take, taker))
    await asyncio.sleep(0)
    return task


async def test_a_chunk_is_handed_over_in_the_read_that_brought_it(rig: Rig, taker: Taker) -> None:
    task = await pouring(rig.begin(), taker)
    rig.feed(HEAD)
    assert (taker.taken, taker.flushed) == ([], 1)
    rig.feed(b"he")
    assert taker.taken == [b"he"]
    rig.feed(b"l")
    assert taker.taken == [b"he", b"l"]
    rig.feed(b"lo")  # comes with the end: the reader's own task takes it
    assert (taker.taken, taker.held_at) == ([b"he", b"l"], None)
    await asyncio.wait_for(task, 1)
    assert (taker.taken, taker.held_at, taker.waits) == ([b"he", b"l", b"lo"], 2, 0)


async def test_what_was_there_before_is_taken_first(rig: Rig, taker: Taker) -> None:
    answer = rig.begin()
    rig.feed(HEAD, b"he", b"l")
    task = await pouring(answer, taker)
    assert taker.taken == [b"hel"]
    rig.feed(b"lo")
    await asyncio.wait_for(task, 1)
    assert taker.taken == [b"hel", b"lo"]


async def test_nothing_is_handed_to_who_is_full(rig: Rig, taker: Taker) -> None:
    task = await pouring(rig.begin(), taker)
    taker.full = True
    rig.feed(LONG, b"a" * 10)
    rig.feed(b"b" * 10)
    await asyncio.sleep(0)
    assert (taker.taken, taker.waits) == ([b"a" * 10], 1)
    rig.feed(b"c" * HIGH_WATER)
    assert not rig.socket.reading
    taker.full = False
    taker.room.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert rig.socket.reading
    assert taker.taken == [b"a" * 10, b"b" * 10 + b"c" * HIGH_WATER]
    rig.feed(b"d")
    assert taker.taken[-1] == b"d"
    task.cancel()


async def test_a_failure_of_the_receiver_is_the_reader_s(rig: Rig, taker: Taker) -> None:
    task = await pouring(rig.begin(), taker)
    taker.fails = True
    rig.feed(LONG, b"a")
    rig.feed(b"b")  # kept for nobody
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(task, 1)


async def test_a_lost_connection_ends_it_after_what_came(rig: Rig, taker: Taker) -> None:
    task = await pouring(rig.begin(), taker)
    taker.full = True
    rig.feed(HEAD, b"h", b"e", end=True)
    taker.room.set()
    with pytest.raises(httpx2.RemoteProtocolError):
        await asyncio.wait_for(task, 1)
    assert b"".join(taker.taken) == b"he"


@pytest.mark.parametrize("cut", CUTS, ids=["whole", "bytes"])
@pytest.mark.parametrize(("answer", "ends", "body", "_"), WHOLE)
async def test_whole_answers(
    rig: Rig, taker: Taker, answer: bytes, ends: bool, body: bytes, _: bool, cut: Callable[[bytes], list[bytes]]
) -> None:
    task = await pouring(rig.begin(), taker)
    rig.feed(*cut(answer), end=ends)
    await asyncio.wait_for(task, 1)
    assert b"".join(taker.taken) == body


@pytest.mark.parametrize("cut", CUTS, ids=["whole", "bytes"])
@pytest.mark.parametrize("answer", BROKEN)
async def test_broken_answers_are_errors_and_never_a_clean_end(
    rig: Rig, taker: Taker, answer: bytes, cut: Callable[[bytes], list[bytes]]
) -> None:
    task = await pouring(rig.begin(), taker)
    rig.feed(*cut(answer), end=True)
    with pytest.raises(httpx2.TransportError):
        await asyncio.wait_for(task, 1)


BODY = bytes(range(256)) * 8
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (size, BODY[at : at + size]) for at, size in ((0, 1), (1, 1000), (1001, 1047))
)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.sets(st.integers(1, len(CHUNKED) + 4)),
    fullness=st.lists(st.booleans(), max_size=20),
    turns=st.lists(st.integers(0, 2), max_size=20),
)
def test_any_cut_and_any_receiver_get_the_same_body(cuts: set[int], fullness: list[bool], turns: list[int]) -> None:
    async def play() -> None:
        with socket.socket() as sock:
            rig, taker = Rig(sock), Taker()
            taker.room.set()
            full, waits = (
                itertools.chain(fullness, itertools.repeat(False)),
                itertools.chain(turns, itertools.repeat(0)),
            )
            task = await pouring(rig.begin(), taker)
            whole, before = CHUNKED + b"0\r\n\r\n", 0
            for at in [*sorted(cuts), len(whole)]:
                taker.full = next(full)
                rig.feed(whole[before:at])
                before = at
                for _ in range(next(waits)):
                    await asyncio.sleep(0)
            await asyncio.wait_for(task, 1)
            assert b"".join(taker.taken) == BODY

    asyncio.run(play())
