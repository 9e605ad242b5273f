"""bench/RESULTS.md, from what was measured."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench import measures, proxies, targets, traffic
from bench.programs import first_line, program
from bench.targets import CLAUDE_RELAY_SERVICE_US, LAB_CADDY_US, Target
from bench.workloads import JSON, NAMES, RELAY, SSE, Measured, Results, Spread, Timed
from libs.common import clock
from libs.localstack.stores import redis_server

RESULTS: Final = Path(__file__).parent / "RESULTS.md"
CHART: Final = RESULTS.with_name("results.svg")
HOT_PATH: Final = RESULTS.with_name("HOT_PATH.md")
"""Where the time goes and what was tried: written by hand."""
_PACKAGES: Final = ("uvicorn", "uvloop", "httptools", "httpx2", "redis", "nats-py", "msgspec")
_READ: Final = """How to read it
- CPU is user + system time of all processes of a proxy over a run, divided by its requests: the median of the rounds
  (smallest–largest). In a round each proxy is measured once, one after another, and a ratio is the median of the rounds' ratios.
  Figures of two machines, or of two runs, do not compare; ratios do.
- All proxies share one core; load, upstream and stores have the others. Who is not measured is idle. Accounting and ClickHouse
  have what is left over, as if they were on a machine of their own. Redis and NATS are one node each: replicas would cost more.
- nginx and Caddy forward every byte at once over kept connections and do nothing else (`bench/proxies.py`). The gateway has
  everything on: authentication, admission, metering, spool, events, logs, metrics. Its one account has the limits that every
  account has by default (requests, tokens, slots), set too high to be reached, and no budget: what those cost Redis says
  [ADMISSION.md](ADMISSION.md). A run of it ends when its last request is settled, so what it does after an answer is counted.
- A closed loop keeps every connection busy. Where a proxy's share of its core is well below 100 %, the load, the upstream or
  (for paced streams) the upstream's 20 ms set the rate, and its own limit is higher. Paced streams are all begun in one moment,
  so that events of several of them may meet in one turn of a loop, for every proxy alike.
- An open loop sends at random moments that were drawn before, and counts from the moment drawn: what waits because others are
  slow is not left out; nor is what the generator itself was late by, which stands in the table. A run in which that is much
  (p50 above {late_p50} ms, p99 above {late_p99} ms) is tried again, the least late of {tries} counts, and the bench ends if the
  generator is the bottleneck: it shares its core with Redis, NATS and the upstream. Each event carries the time it was sent: a
  gap is how much farther apart two events came than they were sent. "Added" is the gateway's figure less that of the same load
  without a proxy.
- Memory is what is resident with {streams:,} streams open (LiteLLM, which opens no more than 500 connections to an upstream:
  {fewer:,}), less what was after warming up, per stream.
- Every answer was 200 and whole, and the ledger has exactly one row for each of the relay's {requests:,} requests, at its
  cost."""


def text(results: Results) -> str:
    """The whole document."""
    command = f"{'PEERS=1 ' if results.peers else ''}make bench"
    reading = _READ.format(
        late_p50=measures.LATE_P50_MS_MAX,
        late_p99=measures.LATE_P99_MS_MAX,
        tries=measures.TRIES,
        streams=measures.STREAMS_OPEN,
        fewer=measures.STREAMS_OPEN_FEWER["litellm"],
        requests=results.relay_requests,
    )
    return f"""# What a request costs, side by side

Written by `{command}` (`bench/compare.py`) on {clock.utc_now():%Y-%m-%d} in {results.seconds:.0f} s. Do not edit: run it again.

![CPU per request]({CHART.name})

Where the time goes, and what was tried: [{HOT_PATH.name}]({HOT_PATH.name}).

## Targets

{_lines(target_table(results))}

Accounting's targets are judged in [ACCOUNTING.md](ACCOUNTING.md), admission's in [ADMISSION.md](ADMISSION.md), 100 million rows
in [ANALYTICS.md](ANALYTICS.md); replicas, keys, accounts and connections in [SCALING.md](SCALING.md).

{_lines(tables(results))}

{_lines(_arithmetic(results))}

{reading}

{_lines(_machine(results))}
"""


def target_table(results: Results) -> list[str]:
    """Every target, what was seen, and the verdict."""
    found = targets.targets(results)
    return [*_head("target", "seen", "verdict"), *(_target_row(one) for one in found)]


def tables(results: Results) -> list[str]:
    """Whatever was measured."""
    sections: list[list[str]] = []
    if results.measured:
        sections += [
            _cpu(results.measured),
            _events(results.measured),
            _beside(results.measured),
            _rates(results.measured),
        ]
    sections += [_timing(timed) for timed in results.timed]
    sections.append(_rest(results))
    return "\n\n".join("\n".join(section) for section in sections if section).split("\n")


def _cpu(measured: Sequence[Measured]) -> list[str]:
    names = _names(measured)
    lines = ["## CPU per request, µs", ""]
    lines += _head("workload", *(NAMES[name] for name in names), "gateway ÷ Caddy", "gateway ÷ nginx")
    for one in measured:
        costs = [_spread(one.spread(name)) if name in one.runs else "–" for name in names]
        ratios = [_spread(one.ratio(RELAY, to), digits=2) for to in ("caddy", "nginx")]
        lines.append(_row(one.workload.title, *costs, *ratios))
    return lines + [line for one in measured for line in _failures(one.workload.title, one.failed)]


def _failures(title: str, failed: dict[str, str]) -> list[str]:
    return [
        f"\n{NAMES[name]}, {title}: not measured. It said: `{' '.join(why.split())[:200]}`"
        for name, why in failed.items()
    ]


def _events(measured: Sequence[Measured]) -> list[str]:
    streams = [one for one in measured if one.workload.is_stream]
    if not streams:
        return []
    names = _names(streams)
    lines = [f"CPU per event, µs: that of a request divided by its {traffic.EVENTS} events", ""]
    lines += _head("workload", *(NAMES[name] for name in names))
    for one in streams:
        costs = [f"{one.per_event_us(name):.1f}" if name in one.runs else "–" for name in names]
        lines.append(_row(one.workload.title, *costs))
    return lines


def _beside(measured: Sequence[Measured]) -> list[str]:
    beside = list(measured[0].runs[RELAY][0].beside_us)
    lines = ["CPU beside the gateway per request, µs", "", *_head("workload", *beside)]
    for one in measured:
        costs = [one.spread(RELAY, lambda run, name=name: run.beside_us[name]).median for name in beside]  # type: ignore[misc]
        lines.append(_row(one.workload.title, *(f"{cost:.0f}" for cost in costs)))
    return lines


def _rates(measured: Sequence[Measured]) -> list[str]:
    names = _names(measured)
    lines = ["## Closed loop: requests a second, and the share of the core that took", ""]
    lines += _head("workload", *(NAMES[name] for name in names))
    for one in measured:
        cells = []
        for name in names:
            if name in one.runs:
                rate, busy = one.spread(name, lambda run: run.per_second), one.spread(name, lambda run: run.busy)
                cells.append(f"{rate.median:,.0f} ({busy.median:.0%})")
            else:
                cells.append("–")
        lines.append(_row(one.workload.title, *cells))
    return lines


def _timing(timed: Timed) -> list[str]:
    half = "half of what it does at saturation" if timed.kind == JSON else "half of what its CPU allows"
    lines = [f"## Open loop: {timed.title}, {timed.rate:,.0f} requests a second ({half}), ms", ""]
    lines += _head("through", "first byte p50", "p99", "gap p50", "p99", "generator late p50", "p99")
    for name in timed.runs:
        figures = [
            timed.median(name, figure)
            for figure in (
                lambda run: run.first_p50_ms,
                lambda run: run.first_p99_ms,
                lambda run: run.gap_p50_ms,
                lambda run: run.gap_p99_ms,
                lambda run: run.late_p50_ms,
                lambda run: run.late_p99_ms,
            )
        ]
        cells = [f"{figure:.2f}" for figure in figures]
        if timed.kind == JSON:
            cells[2:4] = ["–", "–"]
        lines.append(_row(NAMES[name], *cells))
    return lines


def _rest(results: Results) -> list[str]:
    lines = []
    if results.stream_bytes:
        lines += ["## Memory per open stream, KB", "", *_head(*(NAMES[name] for name in results.stream_bytes))]
        lines += [_row(*(f"{found / 1000:.1f}" for found in results.stream_bytes.values()))]
        lines += [*_failures("open streams", results.streams_failed), ""]
    if results.ready_s:
        ready = _spread(Spread.of(results.ready_s), digits=2)
        lines.append(f"A gateway is ready (first 200 of `/readyz`, on stores that run) {ready} s after it is started.")
    return lines


def _arithmetic(results: Results) -> list[str]:
    """The service that was not run again."""
    lines = ["## claude-relay-service, by arithmetic", ""]
    for name in (JSON, SSE):
        measured, theirs = results.of(name), targets.claude_relay_service_us(results, name)
        assert measured is not None and theirs is not None
        caddy, ours = measured.spread("caddy").median, measured.spread(RELAY).median
        lab = f"{CLAUDE_RELAY_SERVICE_US[name]:,} µs in the design's lab, where Caddy took {LAB_CADDY_US[name]:,}"
        here = f"{theirs:,.0f} µs, which is {theirs / ours:.1f} × the gateway's {ours:,.0f}"
        lines.append(f"- {name.upper()}: {lab}; here Caddy takes {caddy:,.0f}, so {here}.")
    return [
        *lines,
        "",
        "It was not run here, so this says as much as the assumption that both cost more on a slower machine alike.",
    ]


def _machine(results: Results) -> list[str]:
    nginx = first_line(proxies.nginx_program(), "-v").removeprefix("nginx version: ")
    versions = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in _PACKAGES),
        nginx,
        f"Caddy {first_line(program('caddy'), 'version').split()[0]}",
        first_line(program("nats-server"), "--version"),
        first_line(redis_server(), "--version").split(" sha=")[0],
    ]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    return [
        f"Seeds: bodies of the mix {traffic.MIX_SEED}; arrivals {measures.TIMING_SEED} and those after it, one a round.",
        "",
        f"Machine: {machine}; load average before the start {results.load_before:.2f}.",
        "",
        f"Versions: {', '.join(versions)}{'; ' if results.peers else ''}{results.peers}.",
    ]


def _names(measured: Sequence[Measured]) -> list[str]:
    """Proxies that were measured in at least one of them, in the order of NAMES."""
    return [name for name in NAMES if any(name in one.runs for one in measured)]


def _spread(spread: Spread, *, digits: int = 0) -> str:
    return f"{spread.median:,.{digits}f} ({spread.least:,.{digits}f}–{spread.most:,.{digits}f})"


def _target_row(target: Target) -> str:
    return _row(target.demand, target.seen, target.verdict)


def _head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*("---" for _ in titles))]


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
