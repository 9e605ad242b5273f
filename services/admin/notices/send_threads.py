"""Threads for what blocks while it sends, apart from the loop's own: a receiver that hangs must not hold up DNS."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.admin.notices.notices import Undelivered

_THREADS_MAX: Final = 4


class SendThreads:
    """A few threads for one kind of receiver. `name` is what their names start with."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix=name)

    async def run(self, send: Callable[[], None], *, limit_s: float, late: str) -> None:
        """Raises what `send` raises, or Undelivered(late). A thread cannot be stopped: it ends by its own socket's limits."""
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.get_running_loop().run_in_executor(self._pool, send)
        except TimeoutError:
            raise Undelivered(late, retryable=True) from None

    def close(self) -> None:
        """Forget what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
