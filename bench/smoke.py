"""`make bench-smoke`: CPU per request of the gateway beside Caddy's, in interleaved runs; the figures go into bench/RESULTS.md.

Both proxies stand in front of the same fast upstream. Caddy only forwards; the relay does everything it does in production:
authentication, admission, metering, events, accounting. Any answer but 200, or a ledger that lacks a request, fails the run.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench import rig
from bench.rig import BenchFailed, Kind, Proxy, Rig, Run
from libs.common import clock
from libs.localstack.process import ProcessFailed

RESULTS: Final = Path(__file__).parent / "RESULTS.md"
_CREDIT_USD: Final = "1000.00"
_PACKAGES: Final = ("uvicorn", "uvloop", "httptools", "httpx2", "redis", "nats-py", "msgspec")


@dataclass
class Workload:
    """One kind of request, and its runs against both proxies."""

    kind: Kind
    title: str
    requests: dict[str, int]
    """By proxy: enough that the CPU time of a run is many clock ticks (10 ms)."""
    connections: int
    pairs: int
    ratio_target: float
    runs: dict[str, list[Run]] = field(default_factory=lambda: {"caddy": [], "relay": []})

    def median(self, name: str, figure: Callable[[Run], float]) -> float:
        """The median of a figure over the runs against one proxy."""
        return statistics.median(figure(run) for run in self.runs[name])

    @property
    def ratio(self) -> float:
        """The relay's CPU over Caddy's: medians of the interleaved runs."""
        return self.median("relay", _cpu) / self.median("caddy", _cpu)


def workloads() -> list[Workload]:
    """What is measured, and the design's targets."""
    small = {"caddy": 9000, "relay": 3000}
    streams = {"caddy": 750, "relay": 750}
    return [
        Workload("json", "JSON, 1 KB answer, 32 connections", small, 32, pairs=5, ratio_target=2.5),
        Workload("sse", "SSE, 62 events 20 ms apart, 250 streams", streams, 250, pairs=5, ratio_target=1.25),
    ]


def main() -> int:
    """Exit code 1 when a run cannot be trusted; a target that is missed is said, not failed."""
    started = clock.unix_ms()
    load_before = os.getloadavg()[0]
    home = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    measured = workloads()
    try:
        with rig.running(home) as running:
            running.grant(_CREDIT_USD)
            for workload in measured:
                _measure(running, workload)
            _say("reading the ledger …")
            running.check_rows()
            _say(
                f"the ledger has all {running.relay_requests:,} requests of the relay, and their cost to the nano-dollar"
            )
            requests = running.relay_requests
    except (BenchFailed, ProcessFailed) as error:
        _say(f"\nbench-smoke failed: {error}")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    table = "\n".join(_table(measured))
    seconds = (clock.unix_ms() - started) / 1000
    RESULTS.write_text(_report(table, measured, requests=requests, seconds=seconds, load_before=load_before))
    _say(f"\n{table}\n\n{seconds:.0f} s; written to bench/{RESULTS.name}")
    return 0


def _measure(running: Rig, workload: Workload) -> None:
    """Warm both up, then Caddy, relay, Caddy, relay …"""
    _say(f"{workload.title}: {workload.pairs} pairs of runs")
    for proxy in (running.caddy, running.relay):
        running.load(proxy, workload.kind, requests=workload.connections, connections=workload.connections)
    for _ in range(workload.pairs):
        for proxy in (running.caddy, running.relay):
            run = running.load(
                proxy, workload.kind, requests=workload.requests[proxy.name], connections=workload.connections
            )
            workload.runs[proxy.name].append(run)
            _say(_progress(proxy, run))


def _progress(proxy: Proxy, run: Run) -> str:
    beside = "".join(f"  {name} {cost:.0f}" for name, cost in run.beside_us.items())
    return f"  {proxy.name:<6} {run.cpu_us:6.0f} us  {run.per_second:5.0f}/s  p50 {run.p50_ms:.1f} ms{beside}"


def _table(measured: Sequence[Workload]) -> list[str]:
    beside = list(measured[0].runs["relay"][0].beside_us)
    lines = [
        f"| workload | Caddy µs | gateway µs | ratio | target | beside it: {', '.join(beside)} µs |",
        "|---|---|---|---|---|---|",
    ]
    for workload in measured:
        apart = " / ".join(f"{workload.median('relay', _cost_of(name)):.0f}" for name in beside)
        verdict = "held" if workload.ratio <= workload.ratio_target else "missed"
        lines.append(
            f"| {workload.title} | {_spread(workload, 'caddy')} | {_spread(workload, 'relay')} | **{workload.ratio:.2f}** "
            f"| ≤ {workload.ratio_target} {verdict} | {apart} |"
        )
    lines += ["", "| workload | proxy | requests/s | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for workload in measured:
        for name in ("caddy", "relay"):
            figures = (
                workload.median(name, lambda run: run.per_second),
                workload.median(name, lambda run: run.p50_ms),
                workload.median(name, lambda run: run.p99_ms),
            )
            lines.append(f"| {workload.kind} | {name} | " + " | ".join(f"{figure:,.1f}" for figure in figures) + " |")
    return lines


def _spread(workload: Workload, name: str) -> str:
    costs = [run.cpu_us for run in workload.runs[name]]
    return f"{statistics.median(costs):.0f} ({min(costs):.0f}–{max(costs):.0f})"


def _report(table: str, measured: Sequence[Workload], *, requests: int, seconds: float, load_before: float) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    runs = "; ".join(f"{workload.kind} {workload.pairs} × {_both(workload)}" for workload in measured)
    return f"""# CPU per request, beside Caddy

Written by `make bench-smoke` (`bench/smoke.py`) on {clock.utc_now():%Y-%m-%d} in {seconds:.0f} s. Do not edit: run it again.

{table}

How to read it
- CPU is user + system time of the proxy's process and its children over a run, divided by its requests: the median of the
  interleaved runs (smallest–largest). A ratio compares medians of one and the same bench; figures of two machines do not compare.
- Caddy is a plain `reverse_proxy` with `flush_interval -1` and `GOMAXPROCS=1`: it forwards and does nothing else. The gateway has
  everything on: authentication, admission, metering, events. Both are bound to the same core; load and upstream are not.
- A run of the relay ends when its last request is settled: publishing, pricing, archive and balance are in the figures. What
  runs beside the gateway is shown apart.
- Times to the last byte come from a closed loop that keeps every connection busy: JSON is at saturation, SSE is paced by the
  upstream (1.14 s a stream).
- Every answer was 200 and whole, and the ledger has a row for each of the relay's {requests:,} requests, at the right cost.

Runs: {runs}; after one warming run each.

Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; load average before the start {load_before:.2f}.

Versions: Python {platform.python_version()}; {packages}; Caddy {_first_word("caddy", "version")};
{_first_line("nats-server", "--version")}; {_first_line("redis-server", "--version").split(" sha=")[0]}.
"""


def _both(workload: Workload) -> str:
    return " / ".join(f"{count:,} requests to {name}" for name, count in workload.requests.items())


def _cost_of(name: str) -> Callable[[Run], float]:
    return lambda run: run.beside_us[name]


def _cpu(run: Run) -> float:
    return run.cpu_us


def _first_line(name: str, argument: str) -> str:
    done = subprocess.run([rig.program(name), argument], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.splitlines()[0]


def _first_word(name: str, argument: str) -> str:
    return _first_line(name, argument).split()[0]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
