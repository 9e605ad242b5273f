"""Tasks: kept while they run, forgotten when they end, and a failure is logged."""

import asyncio
import gc
import logging

import pytest

from libs.common import runtime

pytestmark = pytest.mark.anyio


async def turns(count: int = 3) -> None:
    """Let the callbacks of ended tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_task_is_kept_alive_without_anybody_holding_it() -> None:
    started, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        await go.wait()
        done.set()

    runtime.spawn(work(), name="kept")
    await started.wait()
    gc.collect()
    assert [task.get_name() for task in runtime.running()] == ["kept"]
    go.set()
    await asyncio.wait_for(done.wait(), 5)
    await turns()
    assert runtime.running() == []


async def test_the_result_is_the_callers() -> None:
    async def answer() -> int:
        return 42

    assert await runtime.spawn(answer(), name="answer") == 42


async def test_a_failure_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("lost it")

    with caplog.at_level(logging.ERROR, "relay.runtime"):
        task = runtime.spawn(fail(), name="unlucky")
        with pytest.raises(LookupError):
            await task
        await turns()
    (record,) = caplog.records
    assert "unlucky" in record.message and record.exc_info is not None and "lost it" in caplog.text
    assert runtime.running() == []


async def test_a_failure_nobody_awaits_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("lost it")

    with caplog.at_level(logging.ERROR):
        runtime.spawn(fail(), name="unlucky")
        await turns()
        gc.collect()
    assert [record.name for record in caplog.records] == ["relay.runtime"]  # once, and not by asyncio as well


async def test_cancelling_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "relay.runtime"):
        task = runtime.spawn(asyncio.Event().wait(), name="endless")
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()
    assert caplog.records == [] and runtime.running() == []


async def test_a_task_that_loses_a_cancellation_is_stopped_all_the_same() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    tasks = [runtime.spawn(deaf(), name="deaf"), runtime.spawn(asyncio.sleep(60), name="plain")]
    await turns()
    async with asyncio.timeout(5):
        await runtime.stop(tasks)
    assert all(task.cancelled() for task in tasks) and lost == 2
    await runtime.stop([])
