"""The arithmetic of the capacity plan: what so many requests a minute need. Pure; every line says how it is computed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

RATES: Final = (100, 10_000, 1_000_000)
"""Requests a minute, at the busiest time."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What requests are like, and how much room is left: assumptions, to be replaced by a reader's own."""

    stream_s: float = 20
    events: float = 300
    event_bytes: float = 150
    body_kb: float = 100
    requests_per_account: float = 10
    """A minute, at the busiest time."""
    keys_per_account: float = 5
    mean_of_peak: float = 0.5
    used_at_peak: float = 0.5


ASSUMPTIONS: Final = {
    "stream_s": "seconds a stream takes",
    "events": "events of a stream",
    "event_bytes": "bytes of an event on the wire",
    "body_kb": "kB of a request's body",
    "requests_per_account": "requests a minute of one account, at the busiest time",
    "keys_per_account": "keys of one account",
    "mean_of_peak": "the mean over days, as a part of the busiest minute",
    "used_at_peak": "**the headroom rule**: how much of anything may be in use in the busiest minute",
}
_REMEMBERED_S: Final = 73 * 3600
_USAGE_KEPT_DAYS: Final = 30
_COPIES: Final = 3
"""Of the stream: RELAY_STREAM_REPLICAS in a cluster."""
_ARCHIVE_COPIES: Final = 2
_BATCH_S: Final = 0.2
_ONE_MORE: Final = 1
_LEAST: Final = 2
_GB: Final = 1e9

Values = dict[str, float]


@dataclass(frozen=True)
class Line:
    """One row: its name in the formulas of others, what it is, and how it comes about."""

    name: str
    title: str
    formula: str
    compute: Callable[[Values], float]


def _whole(used: str, least: int) -> Callable[[Values], float]:
    return lambda v: max(least, math.ceil(v[used] / v["used_at_peak"]) + _ONE_MORE)


TRAFFIC: Final = (
    Line("per_s", "requests a second", "rate / 60", lambda v: v["rate"] / 60),
    Line("open", "open streams", "per_s × stream_s", lambda v: v["per_s"] * v["stream_s"]),
    Line("events_per_s", "events a second", "per_s × events", lambda v: v["per_s"] * v["events"]),
    Line("in_gbit", "Gbit/s from callers, and on to the upstream", "per_s × body_kb × 8 / 10⁶", lambda v: v["per_s"] * v["body_kb"] * 8e-6),
    Line("out_gbit", "Gbit/s from the upstream, and on to callers", "events_per_s × event_bytes × 8 / 10⁹", lambda v: v["events_per_s"] * v["event_bytes"] * 8e-9),
    Line("accounts", "accounts", "rate / requests_per_account", lambda v: v["rate"] / v["requests_per_account"]),
    Line("keys", "keys", "accounts × keys_per_account", lambda v: v["accounts"] * v["keys_per_account"]),
)  # fmt: skip
GATEWAYS: Final = (
    Line(
        "request_us", "µs CPU of a gateway for a request",
        "json_us + body_kb × body_kb_us + events × event_us + stream_s × stream_gateway_us_per_s",
        lambda v: v["json_us"] + v["body_kb"] * v["body_kb_us"] + v["events"] * v["event_us"] + v["stream_s"] * v["stream_gateway_us_per_s"],
    ),
    Line("gateway_cores", "cores of all gateways", "per_s × request_us / 10⁶", lambda v: v["per_s"] * v["request_us"] / 1e6),
    Line("gateways", "**gateway replicas** (one core each)", "⌈gateway_cores / used_at_peak⌉ + 1, at least 2", _whole("gateway_cores", _LEAST)),
    Line("gateway_open", "open streams of each", "open / gateways", lambda v: v["open"] / v["gateways"]),
    Line(
        "gateway_mb", "MB of memory of each at the peak",
        "(gateway_bytes + min(keys, 100,000) × known_key_bytes + gateway_open × (stream_bytes + body_kb × 1000)) / 10⁶",
        lambda v: (v["gateway_bytes"] + min(v["keys"], 100_000) * v["known_key_bytes"] + v["gateway_open"] * (v["stream_bytes"] + v["body_kb"] * 1000)) / 1e6,
    ),
    Line("gateway_files", "open files of each", "2 × gateway_open", lambda v: 2 * v["gateway_open"]),
)  # fmt: skip
REDIS: Final = (
    Line("redis_cores", "cores of Redis", "(per_s × stream_redis_us + open × stream_redis_us_per_s) / 10⁶", lambda v: (v["per_s"] * v["stream_redis_us"] + v["open"] * v["stream_redis_us_per_s"]) / 1e6),
    Line("remembered", "events remembered for 73 h", "per_s × mean_of_peak × 262,800", lambda v: v["per_s"] * v["mean_of_peak"] * _REMEMBERED_S),
    Line("remembered_gb", "GB for them", "remembered × remembered_alone_bytes / 10⁹", lambda v: v["remembered"] * v["remembered_alone_bytes"] / _GB),
    Line(
        "redis_gb", "GB of Redis in all",
        "remembered_gb + (accounts × redis_account_bytes + keys × (redis_key_bytes + redis_key_hash_bytes) + open × redis_lease_bytes) / 10⁹",
        lambda v: v["remembered_gb"] + (v["accounts"] * v["redis_account_bytes"] + v["keys"] * (v["redis_key_bytes"] + v["redis_key_hash_bytes"]) + v["open"] * v["redis_lease_bytes"]) / _GB,
    ),
    Line("redis_masters", "**Redis masters** for CPU (1: one server with its replica; more: a Cluster)", "⌈redis_cores / used_at_peak⌉", lambda v: math.ceil(v["redis_cores"] / v["used_at_peak"])),
    Line("redis_master_gb", "GB of memory of each master and of each replica", "redis_gb / redis_masters / used_at_peak", lambda v: v["redis_gb"] / v["redis_masters"] / v["used_at_peak"]),
)  # fmt: skip
NATS: Final = (
    Line("nats_cores", "cores of the stream's leader", "per_s × stream_nats_us / 10⁶", lambda v: v["per_s"] * v["stream_nats_us"] / 1e6),
    Line("nats_used", "part used of the messages one node can sync", "per_s / nats_messages_per_s", lambda v: v["per_s"] / v["nats_messages_per_s"]),
    Line("stream_gb", "GB of the stream in 30 days: **RELAY_STREAM_BYTES_MAX** is at least this / used_at_peak", "per_s × mean_of_peak × 86,400 × 30 × event_stored_bytes / 10⁹", lambda v: v["per_s"] * v["mean_of_peak"] * 86_400 * _USAGE_KEPT_DAYS * v["event_stored_bytes"] / _GB),
    Line("nats_disk_gb", "GB of disk of each of the three nodes", "stream_gb / used_at_peak", lambda v: v["stream_gb"] / v["used_at_peak"]),
    Line("stream_full_days", "days until a stream of the default 2 GiB is full", "2.147 / stream_gb × 30", lambda v: 2.147483648 / v["stream_gb"] * _USAGE_KEPT_DAYS),
)  # fmt: skip
ARCHIVE: Final = (
    Line("accounting_used", "accounting workers' time", "per_s × max(1 / accounting_events_per_s, stream_accounting_us / 10⁶)", lambda v: v["per_s"] * max(1 / v["accounting_events_per_s"], v["stream_accounting_us"] / 1e6)),
    Line("workers", "**accounting workers**", "⌈accounting_used / used_at_peak⌉ + 1, at least 2", _whole("accounting_used", _LEAST)),
    Line("admins", "**admin replicas** (no request passes it)", "2", lambda _: _LEAST),
    Line("inserts_per_s", "inserts a second into ClickHouse, at most", "workers / RELAY_BATCH_SECONDS (0.2)", lambda v: v["workers"] / _BATCH_S),
    Line("rows_per_day", "million rows a day", "per_s × mean_of_peak × 86,400 / 10⁶", lambda v: v["per_s"] * v["mean_of_peak"] * 86_400 / 1e6),
    Line("row_bytes", "bytes of a row, its part of the sums included", "(usage_gb + sums_gb) × 10⁹ / usage_rows", lambda v: (v["usage_gb"] + v["sums_gb"]) * _GB / v["usage_rows"]),
    Line("archive_gb", "GB of ClickHouse for a year, each of two copies", "rows_per_day × 365 × row_bytes / 1000", lambda v: v["rows_per_day"] * 365 * v["row_bytes"] / 1000),
)  # fmt: skip
SECTIONS: Final = {
    "Traffic": TRAFFIC, "Gateways": GATEWAYS, "Redis": REDIS, "NATS": NATS, "Accounting, admin, ClickHouse": ARCHIVE
}  # fmt: skip


def computed(rate: float, mix: Mix, measured: Mapping[str, float]) -> Values:
    """Every line for one rate, by name; the inputs too. A line may use those above it."""
    values: Values = {**measured, **msgspec.structs.asdict(mix), "rate": rate}
    for lines in SECTIONS.values():
        for line in lines:
            values[line.name] = line.compute(values)
    return values
