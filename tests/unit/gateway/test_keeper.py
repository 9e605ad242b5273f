"""The keeper against leases that answer as they are told: what is renewed, what is given back, and what is tried again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from libs.common.leases import Lease
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from libs.common.scripts import StoreRefused, StoreUnavailable
from services.gateway.keeper import LeaseKeeper

pytestmark = pytest.mark.anyio
LEASE_S = 0.3


def lease(number: int = 1) -> Lease:
    return Lease("acct_1", "key_1", "", f"req_{number}")


class ToldLeases:
    """Notes every call; `answer` is what the next ones give."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer: bytes | Exception = b"OK"

    def renew(
        self, lease: Lease, *, input_tokens: int | None = None, in_flight: bool = True
    ) -> "asyncio.Future[bytes]":
        return self._noted("renew", lease.request_id, input_tokens, in_flight)

    def finish(
        self, lease: Lease, *, input_tokens: int, output_tokens: int, cost_nanos: int | None
    ) -> "asyncio.Future[bytes]":
        return self._noted("finish", lease.request_id, input_tokens, output_tokens, cost_nanos)

    def void(self, lease: Lease) -> "asyncio.Future[bytes]":
        return self._noted("void", lease.request_id)

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]

    def _noted(self, *call: Any) -> "asyncio.Future[bytes]":
        self.calls.append(call)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, bytes):
            future.set_result(self.answer)
        else:
            future.set_exception(self.answer)
        return future


async def kept(
    story: Callable[[LeaseKeeper, ToldLeases], Awaitable[None]], metrics: Metrics | None = None
) -> ToldLeases:
    leases = ToldLeases()
    keeper = LeaseKeeper(leases, metrics or Metrics(), lease_seconds=LEASE_S)  # type: ignore[arg-type]
    running = spawn(keeper.run(), name="keeper")
    try:
        await story(keeper, leases)
    finally:
        running.cancel()
        await keeper.close()
    return leases


async def test_a_lease_is_renewed_before_it_ends_and_for_as_long_as_it_is_kept() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        keeper.keep(lease())
        await asyncio.sleep(LEASE_S * 2)
        keeper.finish(lease(), input_tokens=3, output_tokens=4, cost_nanos=5)
        leases.calls.append(("end",))
        await asyncio.sleep(LEASE_S)

    calls = (await kept(story)).calls
    renewals = calls[: calls.index(("end",)) - 1]
    assert 3 <= len(renewals) <= 7
    assert set(renewals) == {("renew", "req_1", None, True)}
    assert calls[len(renewals) :] == [("finish", "req_1", 3, 4, 5), ("end",)]


async def test_a_drained_request_gives_its_slot_back_at_once_and_keeps_its_hold() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        keeper.keep(lease())
        keeper.drain(lease())
        assert leases.calls == [("renew", "req_1", None, False)]
        await asyncio.sleep(LEASE_S)
        keeper.correct(lease(), 77)

    calls = (await kept(story)).calls
    assert all(call[3] is False for call in calls)
    assert calls[-1] == ("renew", "req_1", 77, False)


async def test_what_has_ended_is_neither_corrected_nor_drained() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        keeper.correct(lease(), 7)
        keeper.drain(lease())

    assert (await kept(story)).calls == []


async def test_while_redis_is_away_a_renewal_is_tried_again_soon() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        leases.answer = StoreUnavailable("away")
        keeper.keep(lease())
        await asyncio.sleep(LEASE_S)

    assert len((await kept(story)).calls) > 8


async def test_a_lost_lease_is_counted_and_no_longer_renewed() -> None:
    metrics = Metrics()

    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        leases.answer = b"LOST"
        keeper.keep(lease())
        await asyncio.sleep(LEASE_S * 2)
        assert metrics.value("relay_leases_open") == 0

    assert len((await kept(story, metrics)).calls) == 1
    assert metrics.value("relay_leases_lost_total") == 1


async def test_an_admission_in_doubt_is_undone_until_redis_says_so() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        leases.answer = StoreUnavailable("away")
        keeper.void(lease())
        await asyncio.sleep(LEASE_S / 2)
        assert len(leases.of("void")) > 3
        leases.answer = b"LOST"
        await asyncio.sleep(LEASE_S / 10)
        leases.calls.clear()
        await asyncio.sleep(LEASE_S / 2)

    assert (await kept(story)).calls == []


async def test_what_redis_refuses_to_undo_is_not_tried_for_ever() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        leases.answer = StoreRefused("WRONGTYPE")
        keeper.void(lease())
        await asyncio.sleep(LEASE_S / 2)

    assert len((await kept(story)).calls) == 1


async def test_at_the_end_what_is_in_doubt_is_tried_once_more() -> None:
    async def story(keeper: LeaseKeeper, leases: ToldLeases) -> None:
        leases.answer = StoreUnavailable("away")
        keeper.void(lease(1))
        keeper.void(lease(2))
        leases.calls.clear()

    assert (await kept(story)).calls == [("void", "req_1"), ("void", "req_2")]
