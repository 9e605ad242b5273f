"""`make bench`: nginx, Caddy and the gateway, and with PEERS=1 LiteLLM and Portkey, under the same loads; into bench/RESULTS.md.

Every proxy has the same core, and is idle while another one is measured. The relay does all it does in production. Any answer
but 200, or a ledger that is not exactly what was served, fails the run. `--only NAME` measures some workloads, `--quick` less
often, and neither writes the results.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from bench import chart, gateways, measures, peers, proxies, report, rig
from bench.programs import BenchFailed, pin
from bench.rig import Kind, Proxy, Rig
from bench.workloads import JSON, PLAIN, RELAY, SSE, WORKLOADS, Measured, Results, Timed, Workload
from libs.localstack.process import ProcessFailed

ROUNDS: Final = 5
TIMING_ROUNDS: Final = 3
TIMING_S: Final = 4.0
STARTS: Final = 3
_CREDIT_USD: Final = "10000.00"
_WARMING: Final[tuple[tuple[Kind, int], ...]] = (("json", 200), ("sse", 32))
"""Before memory is looked at."""
_MEMORY: Final = "streams"
_TIMING: Final = "timing"
_READY: Final = "ready"


@dataclass(frozen=True)
class Stage:
    """All that is measured, and how often."""

    rig: Rig
    home: Path
    plain: list[Proxy]
    """nginx, Caddy, the relay, and the peers."""
    tls: list[Proxy]
    """Those of the first three that speak TLS to the upstream."""
    rounds: int
    timing_rounds: int


def main(arguments: list[str]) -> int:
    """Exit code 1 when a run cannot be trusted; a target that is missed is said, not failed."""
    parser = argparse.ArgumentParser(prog="bench.compare")
    parts = [*(workload.name for workload in WORKLOADS), _MEMORY, _TIMING, _READY]
    parser.add_argument("--only", action="append", choices=parts, help="instead of everything; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one round of each")
    options = parser.parse_args(arguments)
    started, results = time.monotonic(), Results(load_before=os.getloadavg()[0])
    home = Path(tempfile.mkdtemp(prefix="relay-bench-"))
    try:
        with _stage(home, results, quick=options.quick) as stage:
            _measure(stage, results, options.only or parts)
            _say("reading the ledger …")
            stage.rig.check_rows()
            results.relay_requests = stage.rig.relay_requests
    except (BenchFailed, ProcessFailed) as error:
        _say(f"\nbench failed: {error}")
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    results.seconds = time.monotonic() - started
    if options.only or options.quick:
        _say(
            "\n"
            + "\n".join(report.tables(results))
            + f"\n\n{results.seconds:.0f} s; not written, since it is not whole"
        )
        return 0
    report.CHART.write_text(chart.drawn(results))
    report.RESULTS.write_text(report.text(results))
    _say("\n" + "\n".join(report.target_table(results)) + f"\n\n{results.seconds:.0f} s; written to bench/RESULTS.md")
    return 0


@contextlib.contextmanager
def _stage(home: Path, results: Results, *, quick: bool) -> Iterator[Stage]:
    """Everything that runs, warm or not yet."""
    proxies.nginx_program()
    authority, certificate, authorities = trustme.CA(), home / "upstream.pem", home / "authorities.pem"
    authority.cert_pem.write_to_path(authorities)
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(rig.running(home))
        secure = stack.enter_context(rig.serving_upstream(home, certificate))
        plain = [stack.enter_context(proxies.nginx(home, running.upstream.url)), running.caddy, running.relay]
        tls = [
            stack.enter_context(start(home / "tls", secure.url, authorities=authorities))
            for start in (proxies.nginx, proxies.caddy)
        ]
        gateway = gateways.running(running, home, "gateway-tls", upstream_url=secure.url, authorities=authorities)
        tls.append(stack.enter_context(gateway)[0])
        if os.environ.get("PEERS") == "1":
            plain += stack.enter_context(_peers(home, running.upstream.url, results))
        for proxy in (*plain, *tls):
            pin(proxy.pid)
        running.grant(_CREDIT_USD)
        rounds = (1, 1) if quick else (ROUNDS, TIMING_ROUNDS)
        yield Stage(running, home, plain, tls, *rounds)


@contextlib.contextmanager
def _peers(home: Path, upstream_url: str, results: Results) -> Iterator[list[Proxy]]:
    """LiteLLM and Portkey."""
    results.peers = peers.versions()
    with peers.running(home, upstream_url) as running:
        yield running


def _measure(stage: Stage, results: Results, parts: list[str]) -> None:
    if _MEMORY in parts:  # first: what other loads leave in a process would hide what streams take
        _measure_memory(stage, results)
    results.measured += [_measured(stage, workload) for workload in WORKLOADS if workload.name in parts]
    if _TIMING in parts:
        results.timed += _timed(stage, results)
    if _READY in parts:
        results.ready_s += measures.ready_seconds(stage.rig, stage.home, STARTS)


def _measure_memory(stage: Stage, results: Results) -> None:
    _say("memory of open streams")
    for proxy in stage.plain:
        with _forgiving(proxy, results.streams_failed):
            for kind, requests in _WARMING:
                stage.rig.load(proxy, kind, requests=requests, connections=16)
            found = measures.bytes_per_stream(stage.rig, proxy)
            results.stream_bytes[proxy.name] = found
            _say(f"  {proxy.name:<8} {found / 1000:6.1f} KB a stream")


def _measured(stage: Stage, workload: Workload) -> Measured:
    """Warm all up, then nginx, Caddy, relay, … in each round."""
    _say(workload.title)
    measured, requests = Measured(workload), {}
    competing = stage.tls if workload.tls else stage.plain
    for proxy in competing:
        with _forgiving(proxy, measured.failed):
            warm = stage.rig.load(proxy, workload.kind, requests=workload.warming, connections=workload.connections)
            requests[proxy.name] = workload.requests(warm.per_second)
    for _ in range(stage.rounds):
        for proxy in competing:
            with _forgiving(proxy, measured.failed):
                if proxy.name not in measured.failed:
                    run = stage.rig.load(
                        proxy, workload.kind, requests=requests[proxy.name], connections=workload.connections
                    )
                    measured.runs.setdefault(proxy.name, []).append(run)
                    _say(
                        f"  {proxy.name:<8} {run.cpu_us:6.0f} µs  {run.per_second:6.0f}/s  {run.busy:4.0%} of the core"
                    )
    for name in measured.failed:
        measured.runs.pop(name, None)
    return measured


def _timed(stage: Stage, results: Results) -> list[Timed]:
    """Times at half of what the relay can do: of JSON as measured, of streams as their CPU allows."""
    timed = []
    small, streams = results.of(JSON), results.of(SSE)
    if small is not None:
        saturated = small.spread(RELAY, lambda run: run.per_second).median
        timed.append(Timed("JSON, 1 KB answer", "json", saturated / 2))
    if streams is not None:
        timed.append(Timed("SSE, 62 events 20 ms apart", "stamped", 1e6 / streams.spread(RELAY).median / 2))
    competing = [stage.rig.upstream, *(one for one in stage.plain if one.name in (*PLAIN, RELAY))]
    for one in timed:
        _say(f"open loop, {one.title}, {one.rate:,.0f} requests a second")
        for number in range(stage.timing_rounds):
            for proxy in competing:
                found = measures.timing(
                    stage.rig, proxy, one.kind, rate=one.rate, seconds=TIMING_S, seed=measures.TIMING_SEED + number
                )
                one.runs.setdefault(proxy.name, []).append(found)
                _say(f"  {proxy.name:<8} {found}")
    return timed


@contextlib.contextmanager
def _forgiving(proxy: Proxy, failed: dict[str, str]) -> Iterator[None]:
    """What a peer cannot do is said and left out; of nginx, Caddy and the relay everything is demanded."""
    try:
        yield
    except BenchFailed as error:
        if proxy.name in (*PLAIN, RELAY):
            raise
        failed[proxy.name] = str(error)
        _say(f"  {proxy.name}: {error}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
