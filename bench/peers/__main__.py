"""`python -m bench.peers`: starts both peers, prints their CPU per request, and stops everything."""

import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench import peers, rig
from bench.rig import BenchFailed, Kind, Proxy
from libs.localstack.process import Process, ProcessFailed, free_port, port_answers

_GAP_MS: Final = "20"
_RUNS: Final = 3
_SECONDS: Final = 5
_WORKLOADS: Final[tuple[tuple[Kind, int], ...]] = (("json", 32), ("sse", 250))
"""How many connections, of each kind."""


def main() -> int:
    """Exit code 1 if a peer could not be set up, started or trusted."""
    with tempfile.TemporaryDirectory(prefix="relay-peers-") as directory, contextlib.ExitStack() as stack:
        home = Path(directory)
        port = free_port()
        command = [sys.executable, "-m", "bench.upstream", str(port), _GAP_MS]
        try:
            upstream = Process.start("upstream", command, log=home / "upstream.log")
            stack.callback(upstream.stop)
            upstream.wait_until(port_answers(port), seconds=30)
            started = time.monotonic()
            running = stack.enter_context(peers.running(home, f"http://127.0.0.1:{port}"))
            print(f"{peers.versions()}; both answer after {time.monotonic() - started:.1f} s")
            for kind, connections in _WORKLOADS:
                _measure(running, kind, connections)
        except (BenchFailed, ProcessFailed) as error:
            print(f"bench.peers failed: {error}")
            return 1
    return 0


def _measure(running: list[Proxy], kind: Kind, connections: int) -> None:
    """As many requests as take some seconds, by turns."""
    requests = {}
    for peer in running:
        warm = rig.send(peer, kind, requests=connections, connections=connections)
        requests[peer.name] = max(connections, round(warm["requests"] / warm["seconds"] * _SECONDS))
    costs: dict[str, list[float]] = {peer.name: [] for peer in running}
    for _ in range(_RUNS):
        for peer in running:
            costs[peer.name].append(_cost_us(peer, kind, requests[peer.name], connections))
    for name, runs in costs.items():
        spread = f"{statistics.median(runs):,.0f} us ({min(runs):,.0f}–{max(runs):,.0f})"
        print(f"{kind:<4} {connections} connections  {name:<8} {spread} of CPU a request, {_RUNS} × {requests[name]:,}")


def _cost_us(peer: Proxy, kind: Kind, requests: int, connections: int) -> float:
    before = rig.cpu_seconds(peer.pid)
    report = rig.send(peer, kind, requests=requests, connections=connections)
    if report["errors"] or report["requests"] != requests:
        raise BenchFailed(f"{peer.name}: {report} of {requests} requests")
    return (rig.cpu_seconds(peer.pid) - before) / requests * 1e6


if __name__ == "__main__":
    sys.exit(main())
