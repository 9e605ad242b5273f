"""The gateway's spool from outside: whatever kills a gateway, the next one in its place says what became of every request."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.bodies import MODEL
from tests.e2e.herd import Herd, HoldingUpstream, Size, request, until
from tests.e2e.leaving import USAGE_FINAL, USAGE_START
from tests.e2e.relay import Gateway, Relay
from tests.e2e.store import Store
from tests.e2e.waiting import wait_until
from tests.invoice_fold import cost_nanos

pytestmark = pytest.mark.anyio
STREAMS: Final = 60
LEASE_S: Final = 5
LONG_LEASE: Final = {"RELAY_LEASE_SECONDS": "60"}
"""Longer than a test: what is there came from the spool."""


def gateway_of(relay: Relay, port: int, **settings: str) -> contextlib.AbstractContextManager[Gateway]:
    return relay.second_gateway(f"http://127.0.0.1:{port}", **settings)


@contextlib.contextmanager
def killed_and_started_again(gateway: Gateway) -> Iterator[None]:
    """In between, nobody is there."""
    gateway.service.kill()
    yield
    gateway.service.start().wait_ready()


def spool_files(gateway: Gateway) -> list[Path]:
    directory = Path(gateway.service._environment["RELAY_SPOOL_DIRECTORY"])
    return sorted(directory.glob("*.spool"))


async def half_json_half_streams(gateway: Gateway, upstream: HoldingUpstream, key: str) -> None:
    """Under way, and cut off at once when the gateway dies."""
    async with Herd.of(STREAMS, [gateway]) as streams, Herd.of(STREAMS, [gateway]) as answers:
        upstream.hold()
        streams.ask(request(key, stream=True))
        answers.ask(request(key))
        await until(lambda: upstream.open == 2 * STREAMS, lambda: f"{upstream.open} open")
        await until(lambda: _told(gateway) == STREAMS, lambda: f"{_told(gateway)} have begun")
        gateway.service.kill()
    await until(lambda: upstream.open == 0, lambda: f"{upstream.open} open")


def _told(gateway: Gateway) -> int:
    return sum(
        path.read_bytes().count(b'"usage":{"input_tokens":%d' % USAGE_START["input_tokens"])
        for path in spool_files(gateway)
    )


def checked(rows: list[dict[str, Any]]) -> Counter[tuple[str, int]]:
    for row in rows:
        assert row["total_nanos"] == cost_nanos(row["usage"], model_asked=MODEL, model_answered=MODEL)
    return Counter((row["outcome"], row["version"]) for row in rows)


async def test_what_a_killed_gateway_had_in_hand_is_told_by_the_next_one(
    relay: Relay, holding: HoldingUpstream, holding_port: int, size: Size
) -> None:
    """Streams cost what their start told, others their estimated input; nobody waits for a lease to end."""
    account, key = await asyncio.to_thread(relay.new_account)
    with gateway_of(relay, holding_port, **LONG_LEASE) as gateway:
        await half_json_half_streams(gateway, holding, key)
        gateway.service.start().wait_ready()
        rows = await asyncio.to_thread(relay.rows, account, 2 * STREAMS)
        assert checked(rows) == {("partial", 2): STREAMS, ("expired", 2): STREAMS}
        told = [row["usage"] for row in rows if row["outcome"] == "partial"]
        assert told == [USAGE_START] * STREAMS
        assert [row["usage"] for row in rows if row["outcome"] == "expired"] == [
            {"input_tokens": size.input_tokens}
        ] * STREAMS
        assert gateway.metric("relay_spool_recovered_total") == 2 * STREAMS
        with killed_and_started_again(gateway):
            pass
        assert gateway.metric("relay_spool_recovered_total") == 0
    assert not spool_files(gateway)


@pytest.mark.parametrize("first", ["the reaper", "the spool"])
async def test_reaper_and_spool_meet_in_any_order(
    relay: Relay, holding: HoldingUpstream, holding_port: int, first: str
) -> None:
    """One row, one charge: the spool's word counts for more than the lease's."""
    account, key = await asyncio.to_thread(relay.new_account)
    with gateway_of(relay, holding_port, RELAY_LEASE_SECONDS=str(LEASE_S)) as gateway:
        await half_json_half_streams(gateway, holding, key)
        if first == "the reaper":
            rows = await asyncio.to_thread(relay.rows, account, 2 * STREAMS)
            assert checked(rows) == {("expired", 1): 2 * STREAMS}
        gateway.service.start().wait_ready()
        wanted = {("partial", 2): STREAMS, ("expired", 2): STREAMS}

        def settled() -> bool:
            return checked(relay.rows(account, 2 * STREAMS)) == wanted

        await asyncio.to_thread(wait_until, settled, "the spool's word stands")
        if first == "the spool":
            await asyncio.sleep(LEASE_S + 2)
            assert await asyncio.to_thread(settled)


@pytest.mark.alone
async def test_without_nats_a_killed_gateway_loses_nothing(
    own_relay: Relay, own_nats: Store, holding: HoldingUpstream, holding_port: int
) -> None:
    """Whole answers, that nobody but the spool knows of."""
    account, key = await asyncio.to_thread(own_relay.new_account)
    holding.let_go()
    with gateway_of(own_relay, holding_port, **LONG_LEASE) as gateway:
        own_nats.kill()
        try:
            async with Herd.of(STREAMS, [gateway]) as herd:
                herd.ask(request(key, stream=True))
                await herd.all_answered()
                assert herd.statuses() == {200: STREAMS}
            with killed_and_started_again(gateway):  # it serves, although nobody takes its events
                pass
            async with Herd.of(STREAMS, [gateway]) as herd:
                herd.ask(request(key, stream=True))
                await herd.all_answered()
                assert herd.statuses() == {200: STREAMS}
            assert gateway.gauge("relay_events_unpublished") == 2 * STREAMS
            gateway.service.kill()
        finally:
            own_nats.give_back()
        gateway.service.start().wait_ready()
        rows = await asyncio.to_thread(own_relay.rows, account, 2 * STREAMS)
        assert checked(rows) == {("measured", 3): 2 * STREAMS}
        assert [row["usage"] for row in rows] == [USAGE_FINAL] * 2 * STREAMS


async def test_a_gateway_that_is_stopped_without_nats_leaves_its_events_to_the_next(
    own_relay: Relay, own_nats: Store, holding: HoldingUpstream, holding_port: int
) -> None:
    account, key = await asyncio.to_thread(own_relay.new_account)
    holding.let_go()
    with gateway_of(own_relay, holding_port, RELAY_SHUTDOWN_SECONDS="2", **LONG_LEASE) as gateway:
        own_nats.kill()
        try:
            async with Herd.of(STREAMS, [gateway]) as herd:
                herd.ask(request(key, stream=True))
                await herd.all_answered()
            gateway.service.stop()
            assert "stay in the spool" in gateway.service.log_text
        finally:
            own_nats.give_back()
        gateway.service.start().wait_ready()
        rows = await asyncio.to_thread(own_relay.rows, account, STREAMS)
        assert checked(rows) == {("measured", 3): STREAMS}


@pytest.mark.parametrize("point", ["spool_appended=kill@3", "spool_published=kill@1", "spool_marked=kill@1"])
async def test_a_gateway_that_dies_between_two_steps_tells_each_event_once(
    relay: Relay, holding: HoldingUpstream, holding_port: int, point: str
) -> None:
    """What was noted in its last turn of the loop is not even written; the leases know of that. A message holds many."""
    account, key = await asyncio.to_thread(relay.new_account)
    holding.let_go()
    settings = {"RELAY_LEASE_SECONDS": str(LEASE_S), "RELAY_FAILPOINTS": point}
    with gateway_of(relay, holding_port, **settings) as gateway:
        async with Herd.of(STREAMS, [gateway]) as herd:
            herd.ask(request(key, stream=True))
            await asyncio.gather(*herd.answers, return_exceptions=True)
        await until(lambda: gateway.service.process.poll() is not None, lambda: "it dies")
        noted = sum(path.read_bytes().count(b"Oreq_") for path in spool_files(gateway))
        del gateway.service._environment["RELAY_FAILPOINTS"]
        gateway.service.start().wait_ready()
        rows = await asyncio.to_thread(_rows_of_all, relay, account)
        assert len({row["request_id"] for row in rows}) == len(rows)
        assert 3 <= noted <= len(rows) <= STREAMS and holding.received <= len(rows)
        assert set(checked(rows)) <= {("measured", 3), ("partial", 2), ("expired", 2), ("expired", 1)}


def _rows_of_all(relay: Relay, account: str) -> list[dict[str, Any]]:
    """Once nothing is held any more, and the balance has lost what they cost."""
    rows: list[dict[str, Any]] = []

    def equal() -> bool:
        balance = relay.balance(account)
        rows[:] = relay.all_rows(account)
        return Decimal(balance["held_usd"]) == 0 and sum(row["total_nanos"] for row in rows) == relay.spent_nanos(
            account
        )

    wait_until(equal, "ledger and balance agree")
    return rows


async def test_a_full_spool_refuses_and_drops_nothing(
    own_relay: Relay, own_nats: Store, holding: HoldingUpstream, holding_port: int
) -> None:
    account, key = await asyncio.to_thread(own_relay.new_account)
    holding.let_go()
    with gateway_of(own_relay, holding_port, RELAY_SPOOL_BYTES_MAX=str(2**20), **LONG_LEASE) as gateway:
        own_nats.kill()
        try:
            answered: Counter[int] = Counter()
            async with Herd.of(STREAMS, [gateway]) as herd:
                while not answered[529]:
                    assert answered.total() < 3_000
                    herd.ask(request(key))
                    answers = await herd.all_answered()
                    answered.update(answer.status for answer in answers)
                refused = next(answer for answer in answers if answer.status == 529)
                assert "cannot record usage" in refused.error["message"]
        finally:
            own_nats.give_back()
        rows = await asyncio.to_thread(own_relay.rows, account, answered[200])
        assert checked(rows) == {("measured", 3): answered[200]}
        async with Herd.of(1, [gateway]) as herd:
            herd.ask(request(key))
            await herd.all_answered()
            assert herd.statuses() == {200: 1}
