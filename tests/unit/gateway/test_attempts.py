"""One request, several attempts: another credential at once, the same one after a while, and what the caller sees in the end."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2
import pytest

from libs.common.errors import Overloaded, UpstreamFailed, UpstreamTimedOut
from tests.unit.gateway.pools import Rig, error, ok, refused, sent, sent_alone

pytestmark = pytest.mark.anyio
BUSY: Final = error(529, "overloaded_error", "Overloaded")
SPENT: Final = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."


async def test_an_answer_is_handed_over_unread_from_the_one_the_account_sticks_to() -> None:
    rig = Rig(["a", "b", "c"])
    for _ in range(5):
        attempts = rig.attempts()
        answer = await sent(rig, attempts)
        assert (answer.response.status, answer.body, attempts.status) == (200, None, 200)
        assert attempts.sent and attempts.upstream_request_id == "req_up"
        (made,) = attempts.made
        assert (made.upstream_id, made.status, made.error) == (rig.first, 200, "") and made.duration_us > 0
    assert set(rig.asked) == {rig.first}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
async def test_another_credential_is_tried_first(status: int) -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, error(status))
    attempts = rig.attempts()
    assert (await sent(rig, attempts)).response.status == 200
    assert [(made.upstream_id, made.status) for made in attempts.made] == [
        (first, status),
        ("b" if first == "a" else "a", 200),
    ]
    assert rig.metrics.value("relay_upstream_retries_total", "other") == 1
    assert rig.metrics.value("relay_upstream_errors_total", str(status)) == 1


async def test_the_only_one_is_tried_again_three_times_and_then_its_answer_is_shown() -> None:
    rig = Rig(["a"])
    rig.tell("a", BUSY)
    attempts = rig.attempts()
    answer = await sent(rig, attempts)
    assert answer.response.status == 529
    assert answer.body == BUSY.content
    assert [made.status for made in attempts.made] == [529] * 4
    assert rig.metrics.value("relay_upstream_retries_total", "same") == 3
    assert not attempts.sent


async def test_an_upstream_that_recovers_is_not_noticed() -> None:
    rig = Rig(["a"])
    rig.tell("a", BUSY, error(500), httpx2.ConnectError("refused"), ok())
    assert (await sent(rig)).response.status == 200
    assert len(rig.asked) == 4


async def test_each_credential_is_tried_at_once_only_once() -> None:
    rig = Rig(["a", "b", "c"])
    for name in "abc":
        rig.tell(name, BUSY)
    assert (await sent(rig)).response.status == 529
    assert sorted(rig.asked[:3]) == ["a", "b", "c"]
    assert len(rig.asked) == 3 + 3


async def test_without_retries_there_are_none() -> None:
    rig = Rig(["a"], upstream_retries_max=0)
    rig.tell("a", BUSY)
    assert (await sent(rig)).response.status == 529
    assert len(rig.asked) == 1


async def test_an_upstream_that_asks_not_to_be_asked_again_is_shown_at_once() -> None:
    rig = Rig(["a", "b"])
    for name in "ab":
        rig.tell(name, error(500, x_should_retry="false"))
    assert (await sent(rig)).response.status == 500
    assert len(rig.asked) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_the_callers_own_mistake_passes_whole_and_is_not_repeated(status: int) -> None:
    rig = Rig(["a", "b"])
    mistake = error(status, "invalid_request_error", "max_tokens: Field required")
    rig.tell(rig.first, mistake)
    answer = await sent(rig)
    assert (answer.response.status, answer.body) == (status, mistake.content)
    assert len(rig.asked) == 1 and rig.state(rig.first) == "closed"


@pytest.mark.parametrize(
    "reply",
    [
        error(401, "authentication_error", "invalid x-api-key"),
        error(402, "billing_error", "pay"),
        error(403, "permission_error", "no"),
        error(429, "rate_limit_error", "slow down", retry_after="7"),
        error(400, "invalid_request_error", SPENT),
    ],
    ids=lambda reply: str(reply.status_code),
)
async def test_what_is_the_operators_problem_goes_to_another_credential_and_never_to_the_caller(
    reply: httpx2.Response, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, reply)
    assert (await sent(rig)).response.status == 200
    assert rig.asked[0] == first and rig.first != first and rig.state(first) == "open"
    other = rig.first
    rig.tell(other, reply)
    with caplog.at_level(logging.ERROR):
        failure = await refused(rig)
    assert failure.status == 529
    assert 1 <= int(failure.headers["retry-after"]) <= 60
    assert rig.metrics.value("relay_upstream_masked_total", str(reply.status_code)) == 1
    assert "Nothing was charged" in failure.message
    assert any(other in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)


async def test_a_rate_limited_pool_says_when_to_come_back() -> None:
    rig = Rig(["a"])
    rig.tell("a", error(429, "rate_limit_error", "slow down", retry_after="17"))
    assert (await refused(rig)).headers["retry-after"] == "17"
    assert (await refused(rig)).headers["retry-after"] == "17"
    assert len(rig.asked) == 1
    rig.pass_time(17)
    rig.tell("a", ok())
    assert (await sent(rig)).response.status == 200
    assert rig.state("a") == "closed"


async def test_a_rate_limit_of_what_is_free_keeps_no_message_waiting() -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, error(429, "rate_limit_error", "slow down", retry_after="60"))
    assert (await sent(rig, rig.attempts(free=True))).response.status == 200
    assert len(rig.asked) == 2 and rig.state(first) == "closed"


@pytest.mark.parametrize(
    "reply", [error(403, "permission_error", "no"), error(400, "invalid_request_error", SPENT)], ids=["403", "400"]
)
async def test_what_every_credential_refuses_so_may_be_the_requests_own_fault(reply: httpx2.Response) -> None:
    rig = Rig(["a", "b"])
    for name in "ab":
        rig.tell(name, reply)
    for _ in range(4):
        assert (await refused(rig)).status == 529
    assert (rig.state("a"), rig.state("b")) == ("closed", "closed")
    assert rig.metrics.value("relay_upstream_alarms_total", "auth" if reply.status_code == 403 else "spend") == 2
    await refused(rig)
    assert (rig.state("a"), rig.state("b")) == ("open", "open")


async def test_one_request_is_one_failure_in_a_row() -> None:
    rig = Rig(["a"])
    rig.tell("a", BUSY)
    for _ in range(4):
        await sent(rig)
    assert (len(rig.asked), rig.state("a")) == (16, "closed")
    await sent(rig)
    assert rig.state("a") == "open"


async def test_a_burst_of_failures_costs_nobody_his_retries() -> None:
    seen: Counter[bytes] = Counter()

    def busy_three_times(request: httpx2.Request) -> httpx2.Response:
        seen[request.content] += 1
        return error(529) if seen[request.content] <= 3 else ok()

    rig = Rig(["a"])
    rig.tell("a", busy_three_times)
    attempts = [rig.attempts(f"req_{number}") for number in range(20)]
    answers = await asyncio.gather(*(sent_alone(one, b"%d" % number) for number, one in enumerate(attempts)))
    assert [answer.response.status for answer in answers] == [200] * 20
    assert rig.metrics.value("relay_upstream_alarms_total", "server") >= 1
    assert rig.state("a") == "closed"


async def test_where_another_works_one_that_fails_in_a_row_is_left_alone() -> None:
    rig = Rig(["a", "b"])
    first = rig.first
    rig.tell(first, BUSY)
    for _ in range(10):
        assert (await sent(rig)).response.status == 200
    assert rig.asked.count(first) == 5


async def test_requests_wait_while_somebody_tries_a_credential_that_was_out() -> None:
    rig = Rig(["a"])
    rig.pool.failed(rig.named("a"), "rate", retry_after_s=5)
    rig.pass_time(5.1)
    attempts = [rig.attempts(f"req_{number}") for number in range(20)]
    answers = await asyncio.gather(*(sent_alone(one) for one in attempts))
    assert [answer.response.status for answer in answers] == [200] * 20
    assert [len(one.made) for one in attempts] == [1] * 20


@pytest.mark.alone
async def test_the_upstreams_wait_is_honoured_and_bounded() -> None:
    rig = Rig(["a"], upstream_retry_after_seconds_max=0.1, upstream_retries_max=1)
    rig.tell("a", error(529, retry_after="60"))
    begun = time.monotonic()
    await sent(rig)
    assert 0.1 <= time.monotonic() - begun < 0.5
    assert len(rig.asked) == 2


@pytest.mark.alone
async def test_the_whole_is_bounded() -> None:
    rig = Rig(["a"], upstream_retries_seconds_max=0.25, upstream_retry_after_seconds_max=0.1, upstream_retries_max=9)
    rig.tell("a", error(529, retry_after="1"))
    begun = time.monotonic()
    await sent(rig)
    assert time.monotonic() - begun < 0.35
    assert len(rig.asked) == 3


async def test_a_connection_that_broke_after_the_request_went_out_is_not_repeated() -> None:
    for failure, kind, name in (
        (httpx2.ReadError("reset"), UpstreamFailed, "broke"),
        (httpx2.RemoteProtocolError("nonsense"), UpstreamFailed, "broke"),
        (httpx2.ReadTimeout("silent"), UpstreamTimedOut, "timeout"),
    ):
        rig = Rig(["a", "b"])
        rig.tell(rig.first, failure)
        attempts = rig.attempts()
        assert type(await refused(rig, attempts)) is kind
        assert attempts.sent and len(rig.asked) == 1
        assert [(made.status, made.error) for made in attempts.made] == [(0, name)]


async def test_where_nobody_can_be_reached_the_caller_may_try_again() -> None:
    rig = Rig(["a"])
    rig.tell("a", httpx2.ConnectError("refused"))
    attempts = rig.attempts()
    failure = await refused(rig, attempts)
    assert isinstance(failure, Overloaded) and failure.headers["retry-after"] == "1"
    assert [made.error for made in attempts.made] == ["connect"] * 4
    assert attempts.status == 0


async def test_an_error_that_breaks_off_still_counts_by_its_status() -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b'{"type":'
        raise httpx2.ReadError("broke")

    def broken(status: int) -> Any:
        return lambda _: httpx2.Response(status, content=half())

    rig = Rig(["a", "b"])
    rig.tell(rig.first, broken(529))
    assert (await sent(rig)).response.status == 200
    rig = Rig(["a"])
    rig.tell("a", broken(400))
    assert isinstance(await refused(rig), UpstreamFailed)
    assert len(rig.asked) == 1


async def test_the_answers_that_are_not_shown_are_let_go() -> None:
    closed: list[int] = []

    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{}"

        async def aclose(self) -> None:
            closed.append(1)

    rig = Rig(["a"])
    rig.tell("a", lambda _: httpx2.Response(529, stream=Body()))
    await sent(rig)
    assert len(closed) == len(rig.asked) == 4


async def test_an_error_that_is_too_long_is_not_kept() -> None:
    rig = Rig(["a"], error_body_bytes_max=10)
    rig.tell("a", error(400, "invalid_request_error", "x" * 100))
    assert isinstance(await refused(rig), UpstreamFailed)


async def test_a_redirect_is_handed_over_and_says_nothing_of_the_credential() -> None:
    rig = Rig(["a"])
    rig.tell("a", httpx2.Response(302, headers={"location": "https://elsewhere"}))
    assert (await sent(rig)).response.status == 302


async def test_without_a_credential_the_caller_may_try_again_and_the_operator_is_told_once() -> None:
    rig = Rig({"a": {"account_id": "acct_other"}})
    for _ in range(3):
        assert (await refused(rig)).headers["retry-after"] == "5"
    assert rig.metrics.value("relay_upstream_alarms_total", "none") == 1
