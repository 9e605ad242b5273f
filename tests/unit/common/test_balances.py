"""What the answers of the scripts mean."""

import asyncio
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from libs.common.balances import Balances, Settlement
from libs.common.scripts import Scripts

pytestmark = pytest.mark.anyio


class Answering:
    """Scripts that give one answer."""

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    def call(self, script: str, keys: int, *arguments: str) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(self._reply)
        return future


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (b"APPLIED", "APPLIED"),
        (b"MISSING", "MISSING"),
        (b"DUPLICATE 3:5", "DUPLICATE"),
        (b"DUPLICATE 4:5", "DUPLICATE"),
        (b"DUPLICATE 4:6", "DUPLICATE"),
        (b"DUPLICATE 3:6", "DIVERGED"),
        (b"DUPLICATE 33:6", "DUPLICATE"),
    ],
)
async def test_what_settle_answers(reply: bytes, result: str) -> None:
    balances = Balances(cast("Redis", None), cast("Scripts", Answering([reply])))
    assert await balances.settle(Settlement("acct_1", "req_" + "0" * 32, 3, 5)) == result
