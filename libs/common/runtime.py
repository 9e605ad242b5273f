"""Tasks: the one place that starts them, so that none is lost to garbage collection and no failure goes unseen."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_AGAIN_S: Final = 0.5
_log: Final = logging.getLogger("relay.runtime")
_running: Final[set[asyncio.Task[Any]]] = set()


def spawn(coroutine: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
    """Start a task, keep it alive until it ends, and log it if it fails. The caller cancels what it no longer needs."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, however often that takes.

    Python 3.11's `asyncio.wait_for`, which nats-py uses, loses a cancellation that comes together with its result: the task
    goes on.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)


def running() -> list[asyncio.Task[Any]]:
    """Tasks started here that have not ended: what a leak test looks at."""
    return list(_running)


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task %s failed", task.get_name(), exc_info=error)
