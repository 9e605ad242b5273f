"""What is measured beside CPU: times in an open loop, memory of open streams, how soon a gateway is ready."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import gateways
from bench.programs import BenchFailed, resident_bytes
from bench.rig import Kind, Proxy, Rig, destination, report_of

STREAMS_OPEN: Final = 1_000
STREAMS_OPEN_FEWER: Final = {"litellm": 400}
"""LiteLLM opens at most 500 connections to one upstream unless it is told otherwise."""
TIMING_SEED: Final = 11
LATE_P50_MS_MAX: Final = 0.5
LATE_P99_MS_MAX: Final = 2.5
"""A generator that sends later than this measures itself too: it is tried again."""
_LATE_P99_MS_REFUSED: Final = 10.0
"""And the least late of the tries must be below this."""
TRIES: Final = 3
_CONNECTIONS: Final = {"json": 64, "stamped": 400}
_SETTLE_S: Final = 0.5
_HELD_S_MAX: Final = 150


@dataclass(frozen=True)
class Timing:
    """One run of an open loop, in milliseconds from when a request was due."""

    late_p50_ms: float
    late_p99_ms: float
    """How late the generator itself was."""
    first_p50_ms: float
    first_p99_ms: float
    """To the first byte of the answer."""
    gap_p50_ms: float
    gap_p99_ms: float
    """Between events as they came, less the gap with which they were sent; 0 for JSON."""


def timing(rig: Rig, proxy: Proxy, kind: Kind, *, rate: float, seconds: float, seed: int) -> Timing:
    """Send requests at random moments, so many a second. Raises BenchFailed if answers are wrong or the generator is late."""
    plan = {"rate": rate, "seconds": seconds, "seed": seed, "connections": _CONNECTIONS[kind]}
    count = int(rate * seconds)
    tries = []
    for _ in range(TRIES):
        with rig.measured(proxy, kind, count):
            report = report_of("bench.arrivals", plan | destination(proxy, kind))
            if report.pop("errors") or report.pop("requests") != count:
                raise BenchFailed(f"{proxy.name}: {report} of {count} requests")
        del report["wrong"]
        tries.append(Timing(**report))
        if tries[-1].late_p50_ms <= LATE_P50_MS_MAX and tries[-1].late_p99_ms <= LATE_P99_MS_MAX:
            return tries[-1]
    found = min(tries, key=lambda one: (one.late_p50_ms > LATE_P50_MS_MAX, one.late_p99_ms))
    if found.late_p50_ms <= LATE_P50_MS_MAX and found.late_p99_ms <= _LATE_P99_MS_REFUSED:
        return found
    raise BenchFailed(
        f"the load generator was late {TRIES} times, the least by {found.late_p50_ms} ms (p50) and "
        f"{found.late_p99_ms} ms (p99): something else runs on this machine, or the rate of {rate:.0f}/s is too high for it"
    )


def bytes_per_stream(rig: Rig, proxy: Proxy) -> float:
    """Resident memory with many streams open, less that before them, divided by their number. Raises BenchFailed."""
    count = STREAMS_OPEN_FEWER.get(proxy.name, STREAMS_OPEN)
    plan = {"count": count, "upstream_url": rig.upstream.url, **destination(proxy, "held")}
    before = resident_bytes(proxy.pid)
    with rig.measured(proxy, "held", count):
        with subprocess.Popen(
            [sys.executable, "-m", "bench.held", json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            if child.stdout.readline() == "open\n":
                time.sleep(_SETTLE_S)
                after = resident_bytes(proxy.pid)
            output, errors = child.communicate(timeout=_HELD_S_MAX)
        if child.returncode != 0:
            raise BenchFailed(f"{count} streams could not be held open at {proxy.name}:\n{errors[-2000:]}")
        report = json.loads(output)
        if report["errors"]:
            raise BenchFailed(f"{proxy.name}: {report}")
    return (after - before) / count


def ready_seconds(rig: Rig, home: Path, times: int) -> list[float]:
    """From the start of a gateway to its first 200 of /readyz, on stores that run."""
    found = []
    for number in range(times):
        with gateways.running(rig, home, f"started-{number}", upstream_url=rig.upstream.url) as (_, seconds):
            found.append(seconds)
    return found
