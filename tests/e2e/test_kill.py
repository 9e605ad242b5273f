"""Processes that end or stand still: accounting by kill -9 under load, gateways by SIGTERM with streams open. No row is lost."""

import asyncio
import contextlib
import functools
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import httpx2
import pytest
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from libs.common import events, subjects
from tests.e2e.crowd import Crowd, new_account
from tests.e2e.leaving import FINAL, START, STOP, STREAM_HEAD, USAGE_FINAL, USAGE_START, Staged, ask, billed, read
from tests.e2e.plans import Planner
from tests.e2e.relay import Gateway, Relay, Service
from tests.e2e.waiting import PLAIN, wait_until
from tests.e2e.wire import WAIT_S, Broken, Caller, ScriptedUpstream, chunk

REQUESTS: Final = 400
KILLS: Final = 3
ACK_WAIT_S: Final = 1
REPLAYED: Final = 100
SHUTDOWN_S: Final = 2
STANDSTILL_S: Final = 0.4


@contextlib.asynccontextmanager
async def jetstream_of(relay: Relay) -> AsyncIterator[JetStreamContext]:
    broker = Client()
    await broker.connect(relay.stores["RELAY_NATS_URL"])
    try:
        yield broker.jetstream()
    finally:
        await broker.close()


async def shorten_ack_wait(jetstream: JetStreamContext) -> None:
    """What a killed worker had in hand is delivered again after a minute: too long for a test."""
    info = await jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
    info.config.ack_wait = ACK_WAIT_S
    await jetstream.add_consumer(subjects.STREAM_USAGE, info.config)


def settled_by(accounting: Service) -> int:
    """Events that this life of the process has settled; 0 while it does not answer."""
    with contextlib.suppress(httpx2.TransportError):
        lines = httpx2.get(f"{accounting.url}/metrics", verify=PLAIN).text.splitlines()
        return sum(int(line.split()[-1]) for line in lines if line.startswith("relay_events_settled_total"))
    return 0


def has_settled_more(accounting: Service, before: int) -> bool:
    return settled_by(accounting) > before


def is_at_work(accounting: Service, before: int, may_be_over: Sequence[asyncio.Future[None]]) -> bool:
    """Or has nothing left to do: of these, one has ended."""
    return has_settled_more(accounting, before) or any(one.done() for one in may_be_over)


@pytest.mark.anyio
async def test_accounting_is_killed_under_load(own_relay: Relay) -> None:
    """Whatever step it dies in, every row is there once, and the balance has lost exactly what the rows add up to."""
    accounting = own_relay.services["accounting"]
    accounts = [new_account(own_relay, {}) for _ in range(2)]
    plans = Planner(random.Random(5), accounts=2, cancelling=1).draw_answered(REQUESTS)
    crowd = Crowd(own_relay, accounts)
    async with jetstream_of(own_relay) as jetstream:
        await shorten_ack_wait(jetstream)
    before = settled_by(accounting)
    running = asyncio.ensure_future(crowd.run(plans))
    for killed in range(KILLS):
        may_be_over = [running] if killed else []
        await asyncio.to_thread(
            wait_until, functools.partial(is_at_work, accounting, before, may_be_over), "it has begun"
        )
        if not has_settled_more(accounting, before):
            break  # the life before had settled them all
        accounting.kill()
        accounting.start()
        before = 0
    await running
    assert crowd.statuses() == {200: REQUESTS}
    for number, account in enumerate(accounts):
        mine = [plan for plan in plans if plan.account == number]
        rows = await asyncio.to_thread(own_relay.rows, account.id, len(mine), wait_s=60)
        assert {row["bytes_in"] for row in rows} == {len(plan.body) for plan in mine}
        assert len({row["request_id"] for row in rows}) == len(mine)
    await asyncio.to_thread(accounting.wait_ready)


@pytest.mark.anyio
async def test_what_is_delivered_again_counts_once(own_relay: Relay) -> None:
    """Every event once more, grouped otherwise, as a retry of a gateway or a replay of the log may do it."""
    accounts = [new_account(own_relay, {}) for _ in range(2)]
    plans = Planner(random.Random(7), accounts=2, cancelling=1).draw_answered(REPLAYED)
    await Crowd(own_relay, accounts).run(plans)
    counts = [sum(plan.account == number for plan in plans) for number in range(2)]
    before = [
        await asyncio.to_thread(own_relay.rows, account.id, count)
        for account, count in zip(accounts, counts, strict=True)
    ]
    async with jetstream_of(own_relay) as jetstream:
        groups: dict[str, list[events.UsageRecorded]] = {}
        state = (await jetstream.stream_info(subjects.STREAM_USAGE)).state
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await jetstream.get_msg(subjects.STREAM_USAGE, sequence)
            if subjects.is_refused(str(message.subject)):
                continue
            groups.setdefault(str(message.subject), []).extend(events.decode_usage(message.data or b""))
        for subject, group in groups.items():
            for at in range(0, len(group), 50):
                await jetstream.publish(subject, events.encode_usage(group[at : at + 50]), stream=subjects.STREAM_USAGE)

        async def is_idle() -> bool:
            info = await jetstream.consumer_info(subjects.STREAM_USAGE, subjects.CONSUMER_ACCOUNTING)
            return not info.num_pending and not info.num_ack_pending

        async with asyncio.timeout(WAIT_S):
            while not await is_idle():
                await asyncio.sleep(0.05)
    for account, count, rows in zip(accounts, counts, before, strict=True):
        assert await asyncio.to_thread(own_relay.rows, account.id, count) == rows


@pytest.mark.alone
@pytest.mark.anyio
async def test_a_gateway_that_stood_still_refuses_nobody(relay: Relay) -> None:
    """What came too late only because the process itself did not run is asked for again, not held against the caller."""
    accounts = [new_account(relay, {})]
    crowd = Crowd(relay, accounts)
    running = asyncio.ensure_future(
        crowd.run(Planner(random.Random(6), accounts=1, cancelling=1).draw_answered(REQUESTS))
    )
    for stop in range(3):
        while len(crowd.received) < stop * REQUESTS // 4:
            await asyncio.sleep(0.005)
        relay.gateway.service.signal(signal.SIGSTOP)
        await asyncio.sleep(STANDSTILL_S)
        relay.gateway.service.signal(signal.SIGCONT)
    await running
    assert crowd.statuses() == {200: REQUESTS}
    await asyncio.to_thread(relay.rows, accounts[0].id, REQUESTS)


@pytest.fixture
def gateway(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    with relay.second_gateway(upstream.url, RELAY_SHUTDOWN_SECONDS=str(SHUTDOWN_S)) as running:
        yield running


def test_sigterm_lets_streams_finish(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Nobody new is let in; who is in gets his answer to the end."""
    account, key = relay.new_account()
    upstream.script = script = Staged(STREAM_HEAD + chunk(START), chunk(FINAL + STOP) + b"0\r\n\r\n")
    with ask(gateway, key) as caller, Caller.to(gateway.url) as idle:
        assert script.reached.wait(WAIT_S)
        pieces = caller.pieces(caller.head())
        assert next(pieces) == START
        gateway.service.signal(signal.SIGTERM)
        idle.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            Caller.to(gateway.url)
        script.proceed.set()
        assert b"".join(pieces) == FINAL + STOP
        caller.wait_closed()
    assert gateway.service.process.wait(WAIT_S) == 0
    billed(relay, account, "measured", USAGE_FINAL)


def test_sigterm_cuts_streams_past_the_deadline(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """The caller sees it for a cut, the upstream is hung up on, and the row is the last usage."""
    (streaming, key_streaming), (plain, key_plain) = relay.new_account(), relay.new_account()
    upstream.script = stream = Staged(STREAM_HEAD + chunk(START), None)
    with ask(gateway, key_streaming) as caller:
        assert stream.reached.wait(WAIT_S)
        pieces = caller.pieces(caller.head())
        assert next(pieces) == START
        upstream.script = answer = Staged(b"", None)
        with ask(gateway, key_plain, stream=False) as waiting:
            assert answer.reached.wait(WAIT_S)
            gateway.service.signal(signal.SIGTERM)
            took_s = wait_until(lambda: gateway.service.process.poll() is not None, "the gateway ends")
            assert SHUTDOWN_S / 2 < took_s < SHUTDOWN_S + 3
            with pytest.raises((Broken, ConnectionResetError)):
                assert b"message_stop" not in b"".join(pieces)
            waiting.close()
    assert stream.hung_up.wait(WAIT_S) and answer.hung_up.wait(WAIT_S)
    billed(relay, streaming, "partial", USAGE_START)
    billed(relay, plain, "free", {})


def test_a_draining_stream_is_finished_too(relay: Relay, gateway: Gateway, upstream: ScriptedUpstream) -> None:
    account, key = relay.new_account()
    upstream.script = script = Staged(STREAM_HEAD + chunk(START), chunk(FINAL + STOP) + b"0\r\n\r\n")
    caller = ask(gateway, key)
    assert script.reached.wait(WAIT_S)
    read(caller, START)
    caller.reset()
    wait_until(lambda: gateway.gauge("relay_drains_in_progress") == 1, "the drain has begun")
    gateway.service.signal(signal.SIGTERM)
    script.proceed.set()
    assert gateway.service.process.wait(WAIT_S) == 0
    billed(relay, account, "measured", USAGE_FINAL)
