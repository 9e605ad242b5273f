"""A caller who leaves, a credential that was out, and what the operator hears of it."""

import asyncio
import logging
import time

import httpx2
import pytest

from tests.unit.gateway.pools import ACCOUNT, Rig, error, ok, sent, sent_alone

pytestmark = pytest.mark.anyio


@pytest.mark.alone
async def test_a_caller_who_leaves_ends_the_waiting() -> None:
    rig = Rig(["a"], upstream_retry_seconds=1e-9, upstream_retry_after_seconds_max=1.9)
    rig.tell("a", error(529, retry_after="60"))
    attempts = rig.attempts()
    begun = time.monotonic()
    asyncio.get_running_loop().call_later(0.05, attempts.stop)
    assert (await sent(rig, attempts)).response.status == 529
    assert time.monotonic() - begun < 0.5
    assert len(rig.asked) == 1


async def test_a_caller_who_has_left_gets_no_further_attempt() -> None:
    rig = Rig(["a", "b"])
    attempts = rig.attempts()

    def leave(_: httpx2.Request) -> httpx2.Response:
        attempts.stop()
        return error(529)

    rig.tell(rig.first, leave)
    assert (await sent(rig, attempts)).response.status == 529
    assert len(rig.asked) == 1


async def test_a_cancelled_request_leaves_its_credential_and_its_row() -> None:
    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            request.extensions["sent"]()
            await asyncio.sleep(60)
            raise AssertionError

    rig = Rig(["a"])
    rig.named("a").upstream._transport = Silent()
    attempts = rig.attempts()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await sent(rig, attempts)
    assert [(made.upstream_id, made.status, made.error) for made in attempts.made] == [("a", 0, "left")]
    assert attempts.sent


async def test_what_was_answered_with_an_error_is_no_longer_worked_for() -> None:
    rig = Rig(["a"], upstream_retry_after_seconds_max=1.9)
    rig.tell("a", error(529, retry_after="60"))
    attempts = rig.attempts()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await sent(rig, attempts)
    assert not attempts.sent and len(attempts.made) == 1


async def test_one_request_at_a_time_tries_a_credential_that_was_out() -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, error(401), error(401), ok())
    await sent(rig)
    rig.pass_time(29)
    await sent(rig)
    assert rig.asked.count(first) == 1
    rig.pass_time(1.1)
    await asyncio.gather(*(sent_alone(rig.attempts(f"req_{number}")) for number in range(20)))
    assert rig.asked.count(first) == 2  # it failed again, and nobody noticed
    assert rig.state(first) == "open"
    rig.pass_time(60.1)
    await sent(rig)
    assert (rig.asked[-1], rig.state(first), rig.first) == (first, "closed", first)


async def test_what_happens_once_is_not_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, error(401), error(401), ok())
    with caplog.at_level(logging.WARNING, logger="relay.pool"):
        await sent(rig)
        rig.pass_time(31)
        await sent(rig)
        assert len(caplog.records) == 1
        rig.pass_time(61)
        await sent(rig)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"upstream {first}: it is refused (401, 403): is its API key still good?",
        f"upstream {first} works again",
    ]
    assert rig.metrics.value("relay_upstream_alarms_total", "auth") == 1
    assert ACCOUNT not in " ".join(told) and "key-" not in " ".join(told)
