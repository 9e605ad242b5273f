"""An open loop: requests are sent at their times, however slowly answers come. `python -m bench.arrivals PLAN` (a JSON object).

Its fields: url, path, headers, kind, rate, seconds, seed, connections (opened before; more are opened when all are busy). Times
count from when a request was due, so what waits because others were slow is not left out. Of the kind `stamped` each event
says when it was sent: the gap between two events as it came, less that as it was sent, is what the way added.
"""

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import random
import re
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

import uvloop

from bench import traffic

_STAMP: Final = re.compile(rb'"t=([0-9.]{17})"')
_WRONG_BYTES: Final = 600
_LEAD_S: Final = 0.2
_GIVE_UP_S: Final = 30
_ABSOLUTE: Final = 1
_PRIORITY: Final = -10


class _Alarm:
    """Calls back at a time exact to some ten µs: the loop's own timers count whole milliseconds."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        self._callback = callback
        asyncio.get_running_loop().add_reader(self._file, self._ring)

    def set(self, at: float) -> None:
        """`at` is a time of time.monotonic; one that is past rings at once."""
        seconds, nanoseconds = divmod(max(int(at * 1e9), 1), 10**9)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, struct.pack("llll", 0, 0, seconds, nanoseconds), None)

    def close(self) -> None:
        """It rings no more."""
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)

    def _ring(self) -> None:
        os.read(self._file, 8)
        self._callback()


class Load:
    """All requests of a plan, and the times they took."""

    def __init__(self, plan: dict[str, Any]) -> None:
        chance = random.Random(plan["seed"])
        self._address = urlsplit(plan["url"])
        (self.request,) = traffic.requests(plan["kind"], plan["url"], plan["path"], plan["headers"])
        self.stream = traffic.is_stream(plan["kind"])
        count = int(plan["rate"] * plan["seconds"])
        self._due = sorted(chance.random() * plan["seconds"] for _ in range(count))
        self._sent = 0
        self._open: int = plan["connections"]
        self.connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._alarm = _Alarm(self._send_due)
        self._opening: set[asyncio.Task[Any]] = set()
        self.ended = asyncio.get_running_loop().create_future()
        self.late_s: list[float] = []
        self.first_s: list[float] = []
        self.gap_s: list[float] = []
        self.answered = self.errors = 0
        self.wrong = ""

    async def run(self) -> None:
        """To the last answer, or until it is given up."""
        await asyncio.gather(*(self._connect(None) for _ in range(self._open)))
        start = time.monotonic() + _LEAD_S
        self._due = [start + due for due in self._due]
        self._alarm.set(self._due[0])
        with contextlib.suppress(TimeoutError):  # what was not answered is missing in the report
            await asyncio.wait_for(self.ended, self._due[-1] - start + _GIVE_UP_S)
        self._alarm.close()
        for connection in list(self.connections):
            connection.close()

    def _send_due(self) -> None:
        while self._sent < len(self._due) and self._due[self._sent] <= (now := time.monotonic()):
            due = self._due[self._sent]
            self._sent += 1
            self.late_s.append(now - due)
            if self._idle:
                self._idle.pop().send(due)
            else:
                opening = asyncio.ensure_future(self._connect(due))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
        if self._sent < len(self._due):
            self._alarm.set(self._due[self._sent])

    async def _connect(self, due: float | None) -> None:
        make = functools.partial(_Connection, self, due)
        await asyncio.get_running_loop().create_connection(make, self._address.hostname or "", self._address.port or 80)

    def is_idle(self, connection: "_Connection") -> None:
        """It takes the next request."""
        self._idle.append(connection)

    def is_answered(self, answer: bytearray) -> None:
        """A whole answer has come."""
        self.answered += 1
        if not traffic.is_right(answer, stream=self.stream):
            self.errors += 1
            self.wrong = answer[:_WRONG_BYTES].decode(errors="replace")
        if self.answered == len(self._due) and not self.ended.done():
            self.ended.set_result(None)

    def is_lost(self, connection: "_Connection", *, busy: bool) -> None:
        """It was closed; `busy`: before its answer was whole."""
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if busy and not self.ended.done():
            self.errors += 1
            self.wrong = "closed before its answer was whole"
            self.ended.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, due: float | None) -> None:
        self._load = load
        self._due = due
        """Of the request under way; None: there is none."""
        self._answer = bytearray()
        self._looked_at = 0
        self._event: tuple[float, float] | None = None
        """When the last event came, and when it was sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._load.connections.add(self)
        if self._due is None:
            self._load.is_idle(self)
        else:
            self.send(self._due)

    def close(self) -> None:
        self._transport.close()

    def send(self, due: float) -> None:
        self._due, self._looked_at, self._event = due, 0, None
        self._answer.clear()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._due is None:
            return
        if not self._answer:
            self._load.first_s.append(now - self._due)
        self._answer += data
        if self._load.stream:
            self._look_for_stamps(now)
        if traffic.is_whole(self._answer, stream=self._load.stream):
            self._due = None
            self._load.is_idle(self)
            self._load.is_answered(self._answer)

    def _look_for_stamps(self, now: float) -> None:
        for found in _STAMP.finditer(self._answer, self._looked_at):
            self._looked_at = found.end()
            sent = float(found[1])
            if self._event is not None:
                self._load.gap_s.append((now - self._event[0]) - (sent - self._event[1]))
            self._event = now, sent

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.is_lost(self, busy=self._due is not None)


def _quantiles_ms(name: str, seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    at = {50: len(ordered) // 2, 99: min(len(ordered) - 1, len(ordered) * 99 // 100)}
    return {f"{name}_p{percent}_ms": round(ordered[index] * 1000, 3) for percent, index in at.items()}


async def _main(plan: dict[str, Any]) -> None:
    load = Load(plan)
    await load.run()
    report = {"requests": load.answered, "errors": load.errors, "wrong": load.wrong}
    for name, seconds in (("late", load.late_s), ("first", load.first_s), ("gap", load.gap_s)):
        report |= _quantiles_ms(name, seconds)
    print(json.dumps(report), flush=True)


def _hurry() -> None:
    """Before whatever shares the core, where that is allowed: who is late measures himself."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


if __name__ == "__main__":
    _hurry()
    uvloop.run(_main(json.loads(sys.argv[1])))
