"""What is sent in the comparison, and what came of it."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from bench.measures import Timing
from bench.rig import Kind, Run
from bench.traffic import EVENTS

RELAY: Final = "relay"
PLAIN: Final = ("nginx", "caddy")
NAMES: Final = {
    "upstream": "no proxy",
    "nginx": "nginx",
    "caddy": "Caddy",
    RELAY: "gateway",
    "litellm": "LiteLLM",
    "portkey": "Portkey",
}
"""How each is called for readers."""


@dataclass(frozen=True)
class Workload:
    """One kind of request in a closed loop."""

    name: str
    title: str
    kind: Kind
    connections: int
    warming: int
    """Requests of the warming run, which shows how many a proxy can do."""
    seconds: float
    """How long a run is to take; at least one request is sent on each connection."""
    tls: bool = False
    """To the upstream; peers are left out, since they would have to be told to trust its authority."""
    is_stream: bool = False
    """Whether a request is 62 events, and CPU is told per event too."""

    def requests(self, per_second: float) -> int:
        """Of a run against a proxy that does so many: the same number on each connection."""
        return self.connections * max(1, round(per_second * self.seconds / self.connections))


JSON: Final = "json"
BODY: Final = "body"
SSE: Final = "sse"
WORKLOADS: Final = (
    Workload(JSON, "JSON, 1 KB answer, 32 connections", "json", 32, warming=320, seconds=1),
    Workload(BODY, "JSON, 400 KB body, 8 connections", "body", 8, warming=40, seconds=0.6),
    Workload(SSE, "SSE, 62 events 20 ms apart, 250 streams", "sse", 250, warming=250, seconds=2, is_stream=True),
    Workload("burst", "SSE, 62 events in bursts, 32 streams", "burst", 32, warming=96, seconds=0.8, is_stream=True),
    Workload(
        "mix", "Claude-Code-like, 50–150 KB bodies, 100 streams", "mix", 100, warming=100, seconds=2, is_stream=True
    ),
    Workload("json-tls", "JSON, TLS to the upstream", "json", 32, warming=320, seconds=1, tls=True),
    Workload("sse-tls", "SSE, TLS to the upstream", "sse", 250, warming=250, seconds=2, tls=True, is_stream=True),
)


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Measured:
    """The runs of a workload by proxy, round by round; a proxy that could not do it is missing."""

    workload: Workload
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def spread(self, name: str, figure: Callable[[Run], float] = lambda run: run.cpu_us) -> Spread:
        """Of a figure of one proxy; its CPU if none is named."""
        return Spread.of([figure(run) for run in self.runs[name]])

    def ratio(self, name: str, to: str) -> Spread:
        """CPU over CPU, each of the same round."""
        pairs = zip(self.runs[name], self.runs[to], strict=True)
        return Spread.of([one.cpu_us / other.cpu_us for one, other in pairs])

    def per_event_us(self, name: str) -> float:
        """CPU of a request divided by its events: what comes before the first one is in it."""
        return self.spread(name).median / EVENTS


@dataclass
class Timed:
    """The runs of an open loop by proxy; `upstream` is the same load without any."""

    title: str
    kind: Kind
    rate: float
    runs: dict[str, list[Timing]] = field(default_factory=dict)

    def median(self, name: str, figure: Callable[[Timing], float]) -> float:
        """Over the rounds, milliseconds."""
        return statistics.median(figure(run) for run in self.runs[name])

    def added(self, figure: Callable[[Timing], float], name: str = RELAY) -> float:
        """What a proxy adds to the figure of the upstream asked directly."""
        return self.median(name, figure) - self.median("upstream", figure)


@dataclass
class Results:
    """All of one run of the comparison."""

    measured: list[Measured] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    stream_bytes: dict[str, float] = field(default_factory=dict)
    streams_failed: dict[str, str] = field(default_factory=dict)
    """Peers that could not hold so many, and what they said."""
    ready_s: list[float] = field(default_factory=list)
    relay_requests: int = 0
    seconds: float = 0
    peers: str = ""
    """Versions; empty: they were not asked for."""
    load_before: float = 0

    def of(self, name: str) -> Measured | None:
        """A workload, if it was measured."""
        return next((one for one in self.measured if one.workload.name == name), None)
