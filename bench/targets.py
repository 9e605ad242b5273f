"""What the issue demands of a run of the comparison, and whether it came out so."""

from dataclasses import dataclass
from typing import Final

from bench.workloads import BODY, JSON, RELAY, SSE, Results

NOT_MEASURED: Final = "not measured"
CLAUDE_RELAY_SERVICE_US: Final = {JSON: 6_180, SSE: 8_425}
"""CPU per request of claude-relay-service 1.1.314, from the design's lab; it was not run again."""
LAB_CADDY_US: Final = {JSON: 112, SSE: 1_670}
"""Caddy's in the same lab."""


@dataclass(frozen=True)
class Target:
    """One demand, and what was seen; a figure of None was not measured in this run."""

    demand: str
    figure: float | None
    limit: float
    unit: str = ""
    is_least: bool = False
    """Whether more is better."""

    @property
    def is_held(self) -> bool:
        """Whether what was seen is within the limit."""
        assert self.figure is not None
        return self.figure >= self.limit if self.is_least else self.figure <= self.limit

    @property
    def seen(self) -> str:
        """The figure with its unit."""
        return "–" if self.figure is None else f"{self.figure:,.2f}{self.unit}"

    @property
    def verdict(self) -> str:
        """Held, or by how much not."""
        if self.figure is None:
            return NOT_MEASURED
        if self.is_held:
            return "held"
        return f"**missed** by {abs(self.figure / self.limit - 1):.0%}"


def targets(results: Results) -> list[Target]:
    """Every target of the issue that this bench can judge; those of accounting stand in bench/ACCOUNTING.md."""
    return [
        Target("JSON ≤ 2.5 × Caddy's CPU", _ratio(results, JSON, "caddy"), 2.5, " ×"),
        Target("SSE ≤ 1.25 × Caddy's CPU", _ratio(results, SSE, "caddy"), 1.25, " ×"),
        Target("SSE ≤ 2.5 × nginx's CPU", _ratio(results, SSE, "nginx"), 2.5, " ×"),
        Target("JSON ≥ 50 × less than LiteLLM", _less(results, JSON), 50, " ×", is_least=True),
        Target("SSE ≥ 10 × less than LiteLLM", _less(results, SSE), 10, " ×", is_least=True),
        Target(
            "JSON ≥ 20 × less than claude-relay-service, by arithmetic", _less_by_lab(results, JSON), 20, " ×", True
        ),
        Target("SSE ≥ 4 × less than claude-relay-service, by arithmetic", _less_by_lab(results, SSE), 4, " ×", True),
        Target("400 KB body ≤ 2.5 ms of CPU", _cpu_ms(results, BODY), 2.5, " ms"),
        *_added(results),
        Target("≤ 60 KB per open stream", _kilobytes(results), 60, " KB"),
        Target("ready ≤ 2 s after start", max(results.ready_s, default=None), 2, " s"),
    ]


def claude_relay_service_us(results: Results, name: str) -> float | None:
    """The design's figure, times what Caddy needs in this run over what it needed there."""
    measured = results.of(name)
    if measured is None:
        return None
    return CLAUDE_RELAY_SERVICE_US[name] * measured.spread("caddy").median / LAB_CADDY_US[name]


def _added(results: Results) -> list[Target]:
    """Of each open loop; the gap only where there are events."""
    found = []
    for timed in results.timed:
        kind = "JSON" if timed.kind == JSON else "SSE"
        first_p50, first_p99 = timed.added(lambda run: run.first_p50_ms), timed.added(lambda run: run.first_p99_ms)
        found += [
            Target(f"{kind}: added time to first byte p50 ≤ 1 ms at half load", first_p50, 1, " ms"),
            Target(f"{kind}: added time to first byte p99 ≤ 5 ms at half load", first_p99, 5, " ms"),
        ]
        if timed.kind != JSON:
            gap = timed.added(lambda run: run.gap_p99_ms)
            found.append(Target("added gap between events p99 ≤ 5 ms at half load", gap, 5, " ms"))
    return found


def _ratio(results: Results, name: str, to: str) -> float | None:
    measured = results.of(name)
    return measured.ratio(RELAY, to).median if measured is not None else None


def _less(results: Results, name: str) -> float | None:
    measured = results.of(name)
    if measured is None or "litellm" not in measured.runs:
        return None
    return measured.ratio("litellm", RELAY).median


def _less_by_lab(results: Results, name: str) -> float | None:
    measured, theirs = results.of(name), claude_relay_service_us(results, name)
    return theirs / measured.spread(RELAY).median if measured is not None and theirs is not None else None


def _cpu_ms(results: Results, name: str) -> float | None:
    measured = results.of(name)
    return measured.spread(RELAY).median / 1000 if measured is not None else None


def _kilobytes(results: Results) -> float | None:
    found = results.stream_bytes.get(RELAY)
    return found / 1000 if found is not None else None
