"""`make bench-admission`: what admit and finish cost the gateway and Redis at 2,000 requests a second; into bench/ADMISSION.md.

This process stands in for a gateway: at each arrival and each end it does as much other work as a gateway does. Its CPU is
compared with that of the same arrivals and the other work alone. Any refusal, or a balance that is not what was settled, fails
the run.
"""

import asyncio
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from hashlib import pbkdf2_hmac
from importlib.metadata import version
from pathlib import Path
from typing import Final

import uvloop

from bench.rig import BenchFailed
from bench.stage import ALL_CAPS, CAPS, COST_NANOS, Key, Stage
from libs.common import clock, ids
from libs.common.addresses import hex_address
from libs.common.leases import Admission, Granted, Lease
from libs.common.runtime import spawn
from libs.localstack.process import ProcessFailed, free_port
from libs.localstack.stores import start_redis

RESULTS: Final = Path(__file__).parent / "ADMISSION.md"
RATE: Final = 2_000
SECONDS: Final = 3
HELD_MS: Final = 30
ROUNDS: Final = 5
GATEWAY_US_MAX: Final = 80
REDIS_US_MAX: Final = 90
FLAT_WITHIN: Final = 0.15
OTHER_WORK: Final = 240
"""Rounds of SHA-256 at each arrival and each end: in the place of all else a gateway does for a request, some 200 µs."""
ADDRESS: Final = hex_address("203.0.113.7")
INPUT_TOKENS: Final = 1_200
HOLD_NANOS: Final = 126_480_000
MEMO: Final = b'{"request_id":"req_","outcome":"expired"%b}' % (b" " * 460)
"""As long as a real one."""
_CORES: Final = sorted(os.sched_getaffinity(0))


@dataclass
class Workload:
    """Who asks, and what it cost in each round."""

    title: str
    keys: list[Key]
    gateway_us: list[float] = field(default_factory=list)
    redis_us: list[float] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    """From the call of `admit` to its answer."""


class Round:
    """One load: every arrival admits a request of some key, every end finishes the oldest one that was admitted."""

    def __init__(self, stage: Stage, keys: list[Key], *, empty: bool) -> None:
        self._stage = stage
        self._empty = empty
        self._chosen = random.Random(4).choices(keys, k=RATE * SECONDS)
        self._open: deque[Lease] = deque()
        self.finished: list[Lease] = []
        self.waits_ms: list[float] = []
        self.failures: list[str] = []

    async def run(self) -> float:
        """To the end; CPU seconds of this process. Raises BenchFailed."""
        loop = asyncio.get_running_loop()
        pace = _start_pace()
        assert pace.stdout is not None
        started = time.process_time()
        ended = loop.create_future()
        loop.add_reader(pace.stdout.fileno(), self._read, pace.stdout.fileno(), ended)
        await ended
        pace.stdout.close()
        while self._open and not self.failures:
            await asyncio.sleep(0.01)
            self._finish()
        await asyncio.sleep(0.1)
        pace.wait()
        if self.failures or len(self.finished) != RATE * SECONDS:
            raise BenchFailed(f"{len(self.finished)} of {RATE * SECONDS} requests ended; {self.failures[:3]}")
        return time.process_time() - started

    def _read(self, pipe: int, ended: "asyncio.Future[None]") -> None:
        marks = os.read(pipe, 4096)
        if not marks:
            asyncio.get_running_loop().remove_reader(pipe)
            ended.set_result(None)
        for mark in marks:
            pbkdf2_hmac("sha256", b"", b"", OTHER_WORK)
            if mark == ord("+"):
                spawn(self._admit(self._chosen.pop()), name="bench-admit")
            else:
                self._finish()

    async def _admit(self, key: Key) -> None:
        request_id = ids.new_request_id()
        if self._empty:
            self._open.append(Lease(key.account_id, key.key_id, key.member_id, request_id))
            return
        started = time.perf_counter()
        admission = Admission(
            request_id=request_id,
            account_id=key.account_id,
            key_id=key.key_id,
            address=ADDRESS,
            models=("claude-sonnet-4-6",),
            input_tokens=INPUT_TOKENS,
            hold_nanos=HOLD_NANOS,
            memo=MEMO,
        )
        decision = await self._stage.leases.admit(admission)
        self.waits_ms.append((time.perf_counter() - started) * 1000)
        if isinstance(decision, Granted):
            self._open.append(decision.lease)
        else:
            self.failures.append(str(decision))

    def _finish(self) -> None:
        if not self._open:  # it has not been admitted yet; the end of the round takes care of it
            return
        lease = self._open.popleft()
        self.finished.append(lease)
        if not self._empty:
            answered = self._stage.leases.finish(
                lease, input_tokens=INPUT_TOKENS + 30, output_tokens=400, cost_nanos=COST_NANOS
            )
            answered.add_done_callback(self._finished)

    def _finished(self, answered: "asyncio.Future[bytes]") -> None:
        if answered.exception() is not None or answered.result() != b"OK":
            self.failures.append(str(answered.exception() or answered.result()))


def _start_pace() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "bench.pace", str(RATE), str(SECONDS), str(HELD_MS)]
    pace = subprocess.Popen(command, stdout=subprocess.PIPE)
    _pin(pace.pid, 0)
    return pace


def main() -> int:
    """Exit code 1 when a run cannot be trusted; a target that is missed is said, not failed."""
    started, load_before = clock.unix_ms(), os.getloadavg()[0]
    home = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    port = free_port()
    try:
        server = start_redis(home / "redis", home / "logs", port=port)
        try:
            _pin(server.pid, 0)
            _pin(os.getpid(), -1)
            workloads, empty_us, software = uvloop.run(_measured(f"redis://127.0.0.1:{port}/0"))
        finally:
            server.stop()
    except (BenchFailed, ProcessFailed) as error:
        _say(f"\nbench-admission failed: {error}")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    table = "\n".join(_table(workloads))
    seconds = (clock.unix_ms() - started) / 1000
    RESULTS.write_text(_report(table, empty_us, software, seconds=seconds, load_before=load_before))
    _say(f"\n{table}\n\n{seconds:.0f} s; written to bench/{RESULTS.name}")
    return 0


async def _measured(url: str) -> tuple[list[Workload], float, str]:
    """The workloads with their figures, what an arrival costs that does nothing, and which Redis it was."""
    stage = Stage(url)
    await stage.open()
    _say("creating 100,000 accounts …")
    model = await stage.create(CAPS)
    keys = [model, *await stage.multiply(model, 99_999)]
    everything = await stage.create(ALL_CAPS, member=True)
    workloads = [
        Workload("1 key", keys[:1]),
        Workload("1,000 keys", keys[:1_000]),
        Workload("100,000 keys", keys),
        Workload("1 key of a member, every limit on key, member and account", [everything]),
    ]
    for workload in workloads:
        await _round(stage, workload.keys)  # warm
    empty_us: list[float] = []
    for number in range(ROUNDS):
        empty_us.append(await _empty(stage, keys))
        for workload in workloads:
            gateway_us, redis_us, waits_ms = await _round(stage, workload.keys)
            workload.gateway_us.append(gateway_us - empty_us[-1])
            workload.redis_us.append(redis_us)
            workload.waits_ms += waits_ms
            figures = f"gateway {workload.gateway_us[-1]:4.0f} us  redis {redis_us:4.0f} us"
            _say(f"  round {number + 1}  {workload.title:<16.16} {figures}")
    info = await stage.redis.info("server")
    await stage.redis.aclose()
    return workloads, statistics.median(empty_us), str(info["redis_version"])


async def _round(stage: Stage, keys: list[Key]) -> tuple[float, float, list[float]]:
    """Microseconds of this process and of Redis for a request, and how long each waited."""
    load = Round(stage, keys, empty=False)
    before = await stage.cpu_seconds()
    seconds = await load.run()
    redis_seconds = await stage.cpu_seconds() - before
    await stage.settle(load.finished)
    return _each_us(seconds), _each_us(redis_seconds), load.waits_ms


async def _empty(stage: Stage, keys: list[Key]) -> float:
    return _each_us(await Round(stage, keys, empty=True).run())


def _each_us(seconds: float) -> float:
    return seconds / (RATE * SECONDS) * 1e6


def _table(workloads: list[Workload]) -> list[str]:
    lines = [
        "| who asks | gateway µs | Redis µs | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for workload in workloads:
        waits = sorted(workload.waits_ms)
        lines.append(
            f"| {workload.title} | {_spread(workload.gateway_us)} | {_spread(workload.redis_us)} "
            f"| {waits[len(waits) // 2]:.2f} | {waits[len(waits) * 99 // 100]:.2f} |"
        )
    plain = workloads[:3]
    gateway = [statistics.median(workload.gateway_us) for workload in plain]
    redis = [statistics.median(workload.redis_us) for workload in plain]
    growth = max(gateway[-1] / gateway[0], redis[-1] / redis[0]) - 1
    return [
        *lines,
        "",
        "| target | seen | |",
        "|---|---|---|",
        f"| gateway ≤ {GATEWAY_US_MAX} µs a request | {max(gateway):.0f} | {_verdict(max(gateway) <= GATEWAY_US_MAX)} |",
        f"| Redis ≤ {REDIS_US_MAX} µs a request | {max(redis):.0f} | {_verdict(max(redis) <= REDIS_US_MAX)} |",
        f"| flat within {FLAT_WITHIN:.0%} from 1 to 100,000 keys | {growth:+.0%} | {_verdict(growth <= FLAT_WITHIN)} |",
    ]


def _spread(figures: list[float]) -> str:
    return f"**{statistics.median(figures):.0f}** ({min(figures):.0f}–{max(figures):.0f})"


def _verdict(held: bool) -> str:
    return "held" if held else "missed"


def _report(table: str, empty_us: float, software: str, *, seconds: float, load_before: float) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "uvloop", "msgspec"))
    return f"""# CPU of admission

Written by `make bench-admission` (`bench/admission.py`) on {clock.utc_now():%Y-%m-%d} in {seconds:.0f} s. Do not edit it.

{table}

How to read it
- A request is one `admit` and, {HELD_MS} ms later on average, one `finish`: all a gateway asks of Redis for a short request.
- {RATE:,} requests a second arrive one by one, at random moments, from another process (`bench/pace.py`), whether or not the
  ones before are answered: calls share a pipeline where they meet, or while one is under way, as in a gateway that has its
  other work to do.
- Gateway: user + system time of a process that does that other work ({empty_us:.0f} µs a request: hashing) and this, less those
  of the same arrivals with the other work alone. Redis: `INFO cpu` of a server with an append-only file.
- Medians of {ROUNDS} interleaved rounds of {SECONDS} s (smallest–largest), after a warming one.
- p50 and p99: from the call of `admit` to its decision.
- Limits on the account as every account has them; Redis holds 100,000 accounts all along. The last line is the dearest case.
- Every request was admitted, and afterwards settled: nothing was held any more, and the balances were right.

Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; the gateway on one, Redis and the arrivals on another;
load average before the start {load_before:.2f}. Redis {software}, Python {platform.python_version()}, {packages}.
"""


def _pin(pid: int, core: int) -> None:
    """`core` counts among those this process was given."""
    os.sched_setaffinity(pid, {_CORES[core]})


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
