"""One exchange, in every way it can end: what the caller gets, and the one event it leaves."""

import asyncio
import gzip

import httpx2
import pytest

from libs.common import runtime
from tests.unit.gateway.exchanges import BODY, DELTA, JSON, REQUEST, SSE, START, STOP, TEXT, Bench, Script, answer

MESSAGE = (
    b'{"model":"claude-sonnet-4-6","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn",'
    b'"usage":{"input_tokens":11,"output_tokens":40}}  '
)
OPERATORS = b'{"type":"error","error":{"type":"rate_limit_error","message":"organization 7f3c"}}'
CALLERS = b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: too large"}}  '

ESTIMATE = REQUEST.ask.input_estimated_tokens

pytestmark = pytest.mark.anyio


async def test_json() -> None:
    body = Script(MESSAGE[:20], MESSAGE[20:])
    bench = Bench(answer(body=body))
    event = await bench.run()
    assert (bench.caller.status, bench.caller.body, bench.caller.ended) == (200, MESSAGE, True)
    assert bench.caller.headers[b"request-id"] == b"req_up"
    assert (event.outcome, event.usage, event.status) == ("measured", {"input_tokens": 11, "output_tokens": 40}, 200)
    assert (event.bytes_in, event.bytes_out) == (len(BODY), len(MESSAGE))
    assert (event.upstream_request_id, event.path, event.member_id) == ("req_up", "/v1/messages", "memb_1")
    assert [(one.upstream_id, one.status, one.error) for one in event.tries] == [("env", 200, "")]
    assert 0 < event.first_byte_us <= event.duration_us
    assert body.closed


async def test_stream() -> None:
    chunks = [START, TEXT, DELTA + STOP]
    bench = Bench(answer(headers=SSE, body=Script(*chunks)))
    event = await bench.run()
    assert [message["body"] for message in bench.caller.messages[1:]] == [*chunks, b""]
    assert (event.outcome, event.usage) == ("measured", {"input_tokens": 11, "output_tokens": 40})


async def test_every_chunk_goes_out_before_the_next_one_comes() -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    bench = Bench(answer(headers=SSE, body=Script(START, gates[0], TEXT[:5], gates[1], TEXT[5:] + DELTA + STOP)))
    running = bench.start()
    for number, gate in enumerate(gates, start=1):
        await bench.caller.until(bodies=number)
        gate.set()
    await running
    assert (await bench.recorded()).outcome == "measured"


@pytest.mark.parametrize("headers", [SSE, JSON])
async def test_a_head_goes_out_before_there_is_a_body(headers: dict[str, str]) -> None:
    goes_on = asyncio.Event()
    bench = Bench(answer(headers=headers, body=Script(goes_on, START + DELTA + STOP)))
    running = bench.start()
    async with asyncio.timeout(1):
        while not bench.caller.messages:
            await asyncio.sleep(0.001)
    assert bench.caller.status == 200
    goes_on.set()
    await running


async def test_the_callers_own_error_passes_byte_for_byte() -> None:
    bench = Bench(answer(400, body=Script(CALLERS)))
    event = await bench.run()
    assert (bench.caller.status, bench.caller.body, bench.caller.ended) == (400, CALLERS, True)
    assert (event.outcome, event.usage, event.status, event.bytes_out) == ("free", {}, 400, len(CALLERS))


async def test_the_operators_error_is_not_shown() -> None:
    bench = Bench(answer(429, {**JSON, "retry-after": "86400"}, body=Script(OPERATORS)))
    event = await bench.run()
    assert bench.caller.status == 529
    assert b"7f3c" not in bench.caller.body
    assert bench.caller.headers[b"retry-after"] == b"60"
    assert (event.outcome, event.status) == ("free", 429)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx2.ConnectError("refused"), 529),
        (httpx2.PoolTimeout("full"), 529),
        (httpx2.ReadError("reset"), 502),
        (httpx2.ReadTimeout("silent"), 504),
    ],
)
async def test_no_answer(error: Exception, status: int) -> None:
    async def upstream(_: httpx2.Request) -> httpx2.Response:
        raise error

    bench = Bench(upstream)
    event = await bench.run()
    assert bench.caller.status == status
    assert (event.outcome, event.status) == ("free", 0)


@pytest.mark.parametrize(
    ("status", "headers"), [(302, {"location": "http://elsewhere"}), (200, {**JSON, "content-encoding": "br"})]
)
async def test_an_answer_that_cannot_be_read(status: int, headers: dict[str, str]) -> None:
    bench = Bench(answer(status, headers, body=Script(b"?")))
    event = await bench.run()
    assert bench.caller.status == 502
    assert event.outcome == "free"


async def test_a_stream_that_breaks_between_events_ends_in_an_error_event() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START, TEXT, httpx2.ReadError("reset"))))
    event = await bench.run()
    assert bench.caller.body.startswith(START + TEXT + b"event: error\ndata: {")
    assert bench.caller.ended
    assert (event.outcome, event.usage) == ("partial", {"input_tokens": 11, "output_tokens": 2})


async def test_a_stream_that_breaks_inside_an_event_is_broken_for_the_caller_too() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START, TEXT[:30], httpx2.ReadError("reset"))))
    event = await bench.run()
    assert bench.caller.body == START + TEXT[:30]
    assert not bench.caller.ended
    assert event.outcome == "partial"


async def test_a_clean_end_without_message_stop_is_no_end() -> None:
    bench = Bench(answer(headers={**SSE, "content-length": "1000"}, body=Script(START, TEXT)))
    event = await bench.run()
    assert b"event: error" in bench.caller.body
    assert b"content-length" not in bench.caller.headers
    assert event.outcome == "partial"


async def test_a_connection_that_breaks_after_the_last_event_has_done_its_work() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START + TEXT + DELTA + STOP, httpx2.ReadError("reset"))))
    event = await bench.run()
    assert bench.caller.ended
    assert (event.outcome, event.usage["output_tokens"]) == ("measured", 40)


async def test_a_json_answer_that_breaks_is_free_and_visibly_broken() -> None:
    bench = Bench(answer(body=Script(MESSAGE[:30], httpx2.ReadError("reset"))))
    event = await bench.run()
    assert not bench.caller.ended
    assert (event.outcome, event.bytes_out) == ("free", 30)


async def test_who_leaves_is_drained() -> None:
    gate = asyncio.Event()
    body = Script(START, gate, TEXT, DELTA + STOP)
    bench = Bench(answer(headers=SSE, body=body))
    running = bench.start()
    await bench.caller.until(bodies=1)
    bench.caller.left.set()
    while not bench.drains.count:
        await asyncio.sleep(0)
    assert bench.metrics.value("relay_drains_in_progress") == 1
    gate.set()
    await running
    event = await bench.recorded()
    assert (event.outcome, event.usage["output_tokens"]) == ("measured", 40)
    assert event.bytes_out == len(START + TEXT + DELTA + STOP)
    assert len(bench.caller.messages) == 2
    assert bench.drains.count == 0


@pytest.mark.parametrize(
    ("on_disconnect", "drain_s", "drains_max"), [("cancel", 5.0, 10), ("drain", 0.02, 10), ("drain", 5.0, 0)]
)
async def test_who_leaves_beyond_the_caps_is_estimated(on_disconnect: str, drain_s: float, drains_max: int) -> None:
    body = Script(START, TEXT, asyncio.Event())
    bench = Bench(answer(headers=SSE, body=body), on_disconnect=on_disconnect, drain_s=drain_s, drains_max=drains_max)
    running = bench.start()
    await bench.caller.until(bodies=2)
    bench.caller.left.set()
    await asyncio.wait_for(running, 5)
    event = await bench.recorded()
    assert (event.outcome, event.usage) == ("estimated", {"input_tokens": 11, "output_tokens": 2 + 3})
    assert body.closed
    assert bench.drains.count == 0


async def test_who_leaves_before_the_answer_and_cancels_pays_the_estimated_input() -> None:
    bench = Bench(answer(body=Script(MESSAGE), before=asyncio.Event()), on_disconnect="cancel")
    running = bench.start()
    bench.caller.left.set()
    await asyncio.wait_for(running, 5)
    event = await bench.recorded()
    assert (event.outcome, event.status) == ("estimated", 0)
    assert event.usage == {"input_tokens": ESTIMATE, "output_tokens": 0}
    assert bench.caller.messages == []


async def test_who_leaves_before_there_was_a_connection_owes_nothing() -> None:
    async def upstream(_: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()  # it never says `sent`
        raise AssertionError

    bench = Bench(upstream, on_disconnect="cancel")
    running = bench.start()
    bench.caller.left.set()
    await asyncio.wait_for(running, 5)
    event = await bench.recorded()
    assert (event.outcome, event.usage) == ("free", {})


async def test_what_a_stalled_caller_did_not_take_counts_all_the_same() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START + TEXT, asyncio.Event())), on_disconnect="cancel")
    bench.caller.takes_nothing = True
    running = bench.start()
    await bench.caller.until(bodies=0)
    bench.caller.left.set()
    await asyncio.wait_for(running, 5)
    event = await bench.recorded()
    assert (event.outcome, event.usage) == ("estimated", {"input_tokens": 11, "output_tokens": 5})


async def test_shutdown_past_the_deadline_is_partial() -> None:
    body = Script(START, TEXT, asyncio.Event())
    bench = Bench(answer(headers=SSE, body=body))
    running = bench.start()
    await bench.caller.until(bodies=2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    event = await bench.recorded()
    assert (event.outcome, event.usage) == ("partial", {"input_tokens": 11, "output_tokens": 2})
    assert not bench.caller.ended
    assert body.closed


async def test_a_shutdown_in_the_turn_in_which_the_time_of_who_left_is_up_is_a_shutdown() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START, TEXT, asyncio.Event())))
    running = bench.start()
    await bench.caller.until(bodies=2)
    bench.exchange._expire()  # as its timer does
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await bench.recorded()).outcome == "partial"


async def test_a_fault_of_our_own_is_answered_and_recorded() -> None:
    async def upstream(_: httpx2.Request) -> httpx2.Response:
        raise TimeoutError("not the deadline of the exchange")

    bench = Bench(upstream)
    event = await bench.run()
    assert bench.caller.status == 500
    assert b"deadline" not in bench.caller.body
    assert event.outcome == "free"


async def test_an_answer_without_a_usage_raises_an_alarm() -> None:
    bench = Bench(answer(body=Script(b'{"model":"claude-sonnet-4-6","content":[]}')))
    event = await bench.run()
    assert event.outcome == "free"
    assert bench.metrics.value("relay_usage_missing_total") == 1


async def test_nothing_is_left_running() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START + DELTA + STOP)))
    await bench.run()
    await asyncio.sleep(0)
    assert [task.get_name() for task in runtime.running()] == []


async def test_an_error_event_that_is_cut_off_is_judged_at_the_end() -> None:
    cut = b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"Inter'
    bench = Bench(answer(headers=SSE, body=Script(START, cut, httpx2.ReadError("reset"))))
    assert (await bench.run()).outcome == "partial"
    assert bench.caller.body == START + cut
    assert not bench.caller.ended
    operators = cut.replace(b"Inter", b"organization 7f3c")
    bench = Bench(answer(headers=SSE, body=Script(START, operators, httpx2.ReadError("reset"))))
    await bench.run()
    assert b"7f3c" not in bench.caller.body


async def test_an_error_that_is_packed_is_not_shown() -> None:
    bench = Bench(answer(400, {**JSON, "content-encoding": "gzip"}, body=Script(gzip.compress(OPERATORS))))
    event = await bench.run()
    assert bench.caller.status == 529
    assert event.outcome == "free"


async def test_a_json_answer_that_was_all_but_received_is_not_for_nothing() -> None:
    bench = Bench(answer(body=Script(MESSAGE[:-3], asyncio.Event())), on_disconnect="cancel")
    running = bench.start()
    await bench.caller.until(bodies=1)
    bench.caller.left.set()
    await asyncio.wait_for(running, 5)
    event = await bench.recorded()
    received = -(-(len(MESSAGE) - 3) // 4)
    assert (event.outcome, event.usage) == (
        "estimated",
        {"input_tokens": ESTIMATE, "output_tokens": received},
    )


@pytest.mark.parametrize("content_type", ["Text/Event-Stream; charset=UTF-8", "text/event-stream"])
async def test_a_stream_is_known_by_its_media_type(content_type: str) -> None:
    bench = Bench(answer(headers={"content-type": content_type}, body=Script(START + DELTA + STOP)))
    assert (await bench.run()).usage["output_tokens"] == 40


async def test_a_request_that_was_sent_takes_no_memory_any_more() -> None:
    gate = asyncio.Event()
    bench = Bench(answer(headers=SSE, body=Script(START, gate, DELTA + STOP)))
    running = bench.start()
    await bench.caller.until(bodies=1)
    assert bench.exchange._call.body == b""
    gate.set()
    await running
    assert (await bench.recorded()).bytes_in == len(BODY)


async def test_the_lease_is_corrected_and_finished_with_what_was_used() -> None:
    bench = Bench(answer(headers=SSE, body=Script(START, TEXT, DELTA + STOP)))
    await bench.run()
    cost = 11 * 3_000 + 40 * 15_000
    assert bench.keeper.told == [("correct", 11), ("finish", (11, 40, cost))]
    assert (b"anthropic-ratelimit-requests-remaining", b"999") in bench.caller.messages[0]["headers"]


async def test_a_drained_request_gives_its_slot_back() -> None:
    gate = asyncio.Event()
    bench = Bench(answer(headers=SSE, body=Script(START, gate, DELTA + STOP)))
    running = bench.start()
    await bench.caller.until(bodies=1)
    bench.caller.left.set()
    await asyncio.sleep(0.01)
    gate.set()
    await running
    assert [name for name, _ in bench.keeper.told] == ["correct", "drain", "finish"]


async def test_what_nobody_can_price_keeps_its_hold() -> None:
    odd = MESSAGE.replace(b'"claude-sonnet-4-6"', b'"claude-unheard-of"')
    bench = Bench(answer(body=Script(odd)))
    await bench.run()
    assert bench.keeper.told == [("finish", (11, 40, None))]


async def test_an_error_is_tried_again_before_anything_is_shown() -> None:
    calls = 0

    async def failing_twice(request: httpx2.Request) -> httpx2.Response:
        nonlocal calls
        calls += 1
        body, status = (Script(MESSAGE), 200) if calls == 3 else (Script(b"{}"), 529)
        return await answer(status, body=body)(request)

    bench = Bench(failing_twice, retries_max=3)
    event = await bench.run()
    assert (bench.caller.status, bench.caller.body, event.outcome) == (200, MESSAGE, "measured")
    assert [one.status for one in event.tries] == [529, 529, 200]


async def test_who_leaves_while_it_waits_to_try_again_stops_it() -> None:
    bench = Bench(answer(529, {**JSON, "retry-after": "5"}, body=Script(b"{}")), retries_max=3)
    running = bench.start()
    await asyncio.sleep(0.05)
    bench.caller.left.set()
    async with asyncio.timeout(1):
        await running
    event = await bench.recorded()
    assert (event.outcome, len(event.tries), bench.caller.messages) == ("free", 1, [])


async def test_a_task_whose_caller_left_is_not_left_as_being_cancelled() -> None:
    bench = Bench(answer(529, {**JSON, "retry-after": "5"}, body=Script(b"{}")), retries_max=3, on_disconnect="cancel")
    running = bench.start()
    await asyncio.sleep(0.05)
    bench.caller.left.set()
    async with asyncio.timeout(1):
        await running
    assert (running.cancelling(), (await bench.recorded()).outcome) == (0, "free")
