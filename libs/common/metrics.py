"""Counters and gauges of a process in Prometheus text form. Names are a type, so a misspelt one does not check.

Plain dictionary additions: the event loop is one thread, and a counter on the hot path must cost next to nothing.
"""

from collections.abc import Callable
from typing import Final, Literal

Name = Literal[
    "relay_requests_total",
    "relay_requests_in_flight",
    "relay_refusals_total",
    "relay_refusals_uncounted_total",
    "relay_outcomes_total",
    "relay_drains_in_progress",
    "relay_meter_errors_total",
    "relay_usage_missing_total",
    "relay_upstream_errors_total",
    "relay_upstream_masked_total",
    "relay_upstream_retries_total",
    "relay_upstream_alarms_total",
    "relay_upstream_open_breakers",
    "relay_upstream_credentials",
    "relay_leases_open",
    "relay_leases_lost_total",
    "relay_leases_reaped_total",
    "relay_upstream_connections_open",
    "relay_upstream_connections_idle",
    "relay_events_unpublished",
    "relay_spool_bytes",
    "relay_spool_full_ppm",
    "relay_spool_failures_total",
    "relay_spool_damaged_total",
    "relay_spool_recovered_total",
    "relay_clock_skew_ms",
    "relay_partitions_closed",
    "relay_rewinds_total",
    "relay_rollups_written_total",
    "relay_events_published_total",
    "relay_publish_failures_total",
    "relay_events_settled_total",
    "relay_events_duplicate_total",
    "relay_events_parked_total",
    "relay_control_applied_total",
    "relay_batches_failed_total",
]


class Metrics:
    """Counters by name and one optional label value; gauges are read when asked for."""

    def __init__(self) -> None:
        self._counters: dict[tuple[Name, str], int] = {}
        self._gauges: dict[Name, Callable[[], int]] = {}

    def add(self, name: Name, label: str = "", amount: int = 1) -> None:
        """Count. `label` becomes `{kind="…"}`; it must come from our own code, never from a caller's text.

        Every label value is a series that is kept for the life of the process.
        """
        key = (name, label)
        self._counters[key] = self._counters.get(key, 0) + amount

    def gauge(self, name: Name, read: Callable[[], int]) -> None:
        """Register a value that is read at each scrape."""
        self._gauges[name] = read

    def value(self, name: Name, label: str = "") -> int:
        """The present value of a counter or gauge."""
        read = self._gauges.get(name)
        return read() if read is not None else self._counters.get((name, label), 0)

    def render(self) -> bytes:
        """Prometheus text exposition format, version 0.0.4."""
        lines = [f"{name}{_braces(label)} {n}\n" for (name, label), n in self._sorted()]
        lines += [f"{name} {read()}\n" for name, read in sorted(self._gauges.items())]
        return "".join(lines).encode()

    def _sorted(self) -> list[tuple[tuple[Name, str], int]]:
        return sorted(self._counters.items())


def _braces(label: str) -> str:
    if not label:
        return ""
    escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{kind="{escaped}"}}'


CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
