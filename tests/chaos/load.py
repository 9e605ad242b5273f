"""Callers who never stop asking: JSON and streams, some who leave, upstream errors of every kind; drawn with one seed."""

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.chaos.stack import GATEWAYS, Stack
from tests.e2e.crowd import CANCELLING, RESET, SETTINGS, Account, new_account, request_of
from tests.e2e.plans import Plan, Planner

CALLERS: Final = 16
PLANS: Final = 12_000
_PATIENCE_S: Final = 30.0
_PAUSE_S: Final = 0.1


@dataclass
class Told:
    """What a caller saw of one request."""

    plan: Plan
    status: int
    """0: no answer came."""
    whole: bool
    """The answer came to its end."""


class Load:
    """Runs in a thread of its own until it is stopped."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._chance = random.Random(seed)
        self.accounts: list[Account] = [new_account(stack.relay, settings) for settings in SETTINGS]
        planner = Planner(self._chance, accounts=len(self.accounts), cancelling=CANCELLING)
        self.plans = planner.draw(PLANS)
        self.told: dict[int, Told] = {}
        self._next = iter(self.plans)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """No new requests; those under way come to their end."""
        self._stopping.set()
        self._thread.join(2 * _PATIENCE_S)
        assert not self._thread.is_alive()

    def statuses(self) -> Counter[int]:
        """Of all answers so far."""
        return Counter(one.status for one in list(self.told.values()))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._caller())

    async def _caller(self) -> None:
        while not self._stopping.is_set() and (plan := next(self._next, None)) is not None:
            told = Told(plan, 0, whole=False)
            self.told[plan.number] = told
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self._ask(plan, told)
            if told.status in (0, 429, 529):
                await asyncio.sleep(_PAUSE_S)

    async def _ask(self, plan: Plan, told: Told) -> None:
        gateway = urlsplit(self._stack.services[self._chance.choice(GATEWAYS)].url)
        reader, writer = await asyncio.open_connection(gateway.hostname, gateway.port)
        try:
            writer.write(request_of(plan, self.accounts[plan.account].keys[plan.key]))
            if plan.leave == "before":
                await asyncio.sleep(self._chance.random() * 0.5)
                return
            head = await reader.readuntil(b"\r\n\r\n")
            told.status = int(head[9:12])
            if plan.leave == "inside":
                await reader.readuntil(b"\n\n")
                return
            if plan.leave:
                return
            body = b""
            while piece := await reader.read(1 << 18):
                body = (body + piece)[-64:]
            told.whole = b"transfer-encoding: chunked" not in head or body.endswith(b"0\r\n\r\n")
        finally:
            if plan.leave and plan.number % 3:
                reset = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


def spool_segments(stack: Stack, gateway: str) -> list[Path]:
    """The files of a gateway's spool."""
    return sorted((stack.home / f"spool-{gateway}").glob("*.spool"))
