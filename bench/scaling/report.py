"""bench/SCALING.md."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.scaling import figures, flat, replicas
from bench.scaling.figures import Figure, Figures
from bench.scaling.flat import Level
from bench.scaling.replicas import Runs, Shared
from libs.common import clock

RESULTS: Final = Path(__file__).parent.parent / "SCALING.md"
_PACKAGES: Final = ("uvicorn", "uvloop", "httptools", "redis", "nats-py", "msgspec")
_HEAD: Final = (
    "| | gateway µs | Redis µs | NATS µs | accounting µs | scripts | reads | messages | p99 ms |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Found:
    """All that was measured."""

    keys: list[Level]
    first_seen: Level
    accounts: list[Level]
    replicas: Runs
    limits: list[Shared]
    idle: list[Level]
    streams: list[Level]
    figures: Figures
    served: int
    crowded: int


def connection_figures(
    idle_bytes: float, stream_bytes: float, idle_cpu: dict[str, float], streams_cpu: dict[str, float]
) -> Figures:
    """What something that is open costs while nothing happens on it."""
    count = flat.STREAMS["gateway-3"]
    more_us = (streams_cpu["gateway-3"] - streams_cpu["gateway-4"]) / count * 1e6
    redis_us = (streams_cpu["redis"] - idle_cpu["redis"]) / sum(flat.STREAMS.values()) * 1e6
    return {
        "connection_bytes": Figure(idle_bytes, "bytes of a gateway for an idle connection, of 10,000"),
        "stream_bytes": Figure(stream_bytes, "bytes of a gateway for an open stream, of 1,000"),
        "stream_gateway_us_per_s": Figure(max(more_us, 0), "µs CPU of a gateway a second for a silent stream"),
        "stream_redis_us_per_s": Figure(max(redis_us, 0), "µs CPU of Redis a second for it: its lease is renewed"),
        "gateway_idle_us_per_s": Figure(idle_cpu["gateway-4"] * 1e6, "µs CPU a second of a gateway nobody asks"),
    }


def text(found: Found, *, seconds: float, load_before: float) -> str:
    """The document."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"""# Scaling: replicas, keys, accounts, connections

Written by `make bench-scaling` (`bench/scaling`) on {clock.utc_now():%Y-%m-%d} in {seconds:.0f} s. Do not edit: run it again.

Four gateways, each a process with a spool of its own, share one Redis, one NATS and one accounting worker. All of it, load and
upstream too, shares {os.cpu_count()} cores: requests a second cannot grow with replicas here. What can be shown is that a request
costs the same whoever serves it, that the work is spread, and that limits and ledger are one for all.

## 1, 2 and 4 gateways behind nginx
{_lines(replicas.table(found.replicas))}

{_lines(replicas.verdicts(found.replicas))}

- µs of CPU for each request, medians of {replicas.ROUNDS} interleaved rounds; all gateways added up, with (smallest–largest).
  nginx: `least_conn`, keep-alive, buffering off.
- *a replica*: each has as many requests in hand as a single one had, as when replicas are added because there is more to do.
- *in all*: the same load is spread thinner. Fewer requests, events and calls meet in one turn of a loop and travel together, so
  each costs more (*reads*, *messages*: of Redis and into the stream of events, for each request): do not run more replicas than
  CPU, memory and failures ask for.

## Limits of a key, asked through all four at once
{_lines(replicas.limits_table(found.limits))}

{_flat(found)}

## Figures
What [the capacity plan](../docs/capacity.md) reads.

{_lines(figures.rendered(found.figures))}

Every answer was whole and had the status it had to have. The ledger has one row for each of the {found.served:,} requests that
were let in, at the right cost to the nano-dollar, and the balances in Redis have paid as much; nothing is held any more.
Runs thrown away and repeated, because Redis did not get the CPU to answer a gateway in time (529): {found.crowded}.

Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}; load average before the start {load_before:.2f}.
Python {platform.python_version()}, {packages}.
"""


def _flat(found: Found) -> str:
    return f"""## Flat or not
{flat.REQUESTS:,} small JSON requests over {flat.BUSY} busy connections to one gateway. µs of CPU for each request, less
what the process uses unasked; medians of {flat.ROUNDS} interleaved rounds (smallest–largest). Flat: within
{figures.FLAT_WITHIN:.0%} of the first line. *scripts* and *reads*: Redis's Lua calls and reads from sockets; *messages*: those of
the stream of events; for each request.

### Keys, each of an account of its own
{_HEAD}
{_lines(flat.table(found.keys))}
{_lines(flat.table([found.first_seen]))}

{_verdict("From 1 to 100,000 keys", found.keys)}
All keys are in Redis, and each request has one at random. The gateway had seen every key before, but in the last line, which
shows what the first request of a key costs (one run).

### Accounts, with 1,000 keys together
{_HEAD}
{_lines(flat.table(found.accounts))}

{_verdict("From 1 to 1,000 accounts", found.accounts)}
Events of different partitions travel in different messages, so many accounts make more messages of the same events. Accounting
marks the last one of each partition in every batch (`services/accounting/consumer.py`): more *scripts*, too.

### Connections
{_HEAD}
{_lines(flat.table(found.idle))}
{_lines(flat.table(found.streams))}

{_verdict("From 1 to 10,000 idle connections", found.idle)}
{_verdict("From 1 to 1,000 open streams", found.streams)}
The three of a kind are open at the same time at three gateways, each of which gets the load in its turn. Redis has the leases of
all streams in each of the three lines."""


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _verdict(title: str, levels: list[Level]) -> str:
    gateway, redis = flat.changes(levels)
    return f"{title}: gateway {figures.verdict(gateway)}; Redis {figures.verdict(redis)}."
