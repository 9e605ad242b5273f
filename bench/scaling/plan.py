"""The arithmetic of the capacity plan: what so many requests a minute need. Pure.

A line's formula is what is computed and what the document shows, so the two cannot differ.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec

RATES: Final = (100, 10_000, 1_000_000)
"""Requests a minute, at the busiest time."""
_FUNCTIONS: Final = {"ceil": math.ceil, "max": max, "min": min}


class Line(msgspec.Struct, frozen=True):
    """One row."""

    name: str
    """In the formulas of lines below it."""
    title: str
    formula: str
    """Python's arithmetic over inputs, assumptions, `rate`, and the lines above; ceil, max, min."""


Values = dict[str, float]

ASSUMPTIONS: Final = {
    "stream_s": (20, "seconds a stream takes"),
    "events": (300, "events of a stream"),
    "event_bytes": (150, "bytes of an event on the wire"),
    "body_kb": (100, "kB of a request's body"),
    "account_rate": (10, "requests a minute of one account, at the busiest time"),
    "account_keys": (5, "keys of one account"),
    "mean": (0.5, "requests a minute over weeks, as a part of those of the busiest minute"),
    "used": (0.5, "**the headroom rule**: the part of anything that may be in use in the busiest minute"),
    "remembered_s": (73 * 3600, "seconds for which Redis remembers a settled event (`libs/common/rediskeys.py`)"),
    "stream_days": (30, "days for which NATS keeps an event (`libs/common/subjects.py`)"),
    "batch_s": (0.2, "`RELAY_BATCH_SECONDS`"),
}
"""Value and meaning of what was not measured: what requests are like, how much room is left, and three settings."""
TRAFFIC: Final = (
    Line("per_s", "requests a second", "rate / 60"),
    Line("open", "open streams", "per_s * stream_s"),
    Line("events_per_s", "events a second", "per_s * events"),
    Line("in_gbit", "Gbit/s from callers, and again to the upstream", "per_s * body_kb * 8 / 10**6"),
    Line("out_gbit", "Gbit/s from the upstream, and again to callers", "events_per_s * event_bytes * 8 / 10**9"),
    Line("accounts", "accounts", "rate / account_rate"),
    Line("keys", "keys", "accounts * account_keys"),
)
GATEWAYS: Final = (
    Line("body_us", "µs of gateway CPU for a body", "body_kb * body_kb_us"),
    Line("events_us", "for the events", "events * event_us"),
    Line("renewal_us", "for keeping the lease", "stream_s * stream_gateway_us_per_s"),
    Line("request_us", "for a request", "json_us + body_us + events_us + renewal_us"),
    Line("gateway_cores", "cores of all gateways", "per_s * request_us / 10**6"),
    Line("gateways", "**gateway replicas**, one core each", "max(2, ceil(gateway_cores / used) + 1)"),
    Line("gateway_open", "open streams of each", "open / gateways"),
    Line("gateway_files", "open files of each", "2 * gateway_open"),
    Line("streams_mb", "MB for its streams and their bodies", "gateway_open * (stream_bytes / 1000 + body_kb) / 1000"),
    Line("known_mb", "MB for the keys it has seen", "min(keys, 100_000) * known_key_bytes / 10**6"),
    Line("gateway_mb", "MB of memory to give it", "(gateway_bytes / 10**6 + known_mb + streams_mb) / used"),
)
REDIS: Final = (
    Line("lease_cores", "cores to renew leases", "open * stream_redis_us_per_s / 10**6"),
    Line("redis_cores", "cores in all", "per_s * stream_redis_us / 10**6 + lease_cores"),
    Line("remembered", "settled events remembered", "per_s * mean * remembered_s"),
    Line("remembered_gb", "GB for them", "remembered * remembered_alone_bytes / 10**9"),
    Line(
        "account_bytes",
        "bytes for an account",
        "redis_account_bytes + account_keys * (redis_key_bytes + redis_key_hash_bytes)",
    ),
    Line("redis_gb", "GB in all", "remembered_gb + (accounts * account_bytes + open * redis_lease_bytes) / 10**9"),
    Line("masters", "**Redis masters**, each with a replica; more than one: a Cluster", "ceil(redis_cores / used)"),
    Line("master_gb", "GB of memory of each", "redis_gb / masters / used"),
)
NATS: Final = (
    Line("nats_cores", "cores of the stream's leader", "per_s * stream_nats_us / 10**6"),
    Line("nats_used", "part in use of what one node can sync", "per_s / nats_messages_per_s"),
    Line("stream_gb", "GB of USAGE", "per_s * mean * 86_400 * stream_days * event_stored_bytes / 10**9"),
    Line("stream_max_gb", "GB for **RELAY_STREAM_BYTES_MAX**, and disk of each of three nodes", "stream_gb / used"),
    Line("full_days", "days after which the default of 2 GiB is full", "stream_days * 2**31 / 10**9 / stream_gb"),
)
ARCHIVE: Final = (
    Line("event_s", "seconds of a worker for an event", "max(1 / accounting_events_per_s, json_accounting_us / 10**6)"),
    Line("workers", "**accounting workers**", "max(2, ceil(per_s * event_s / used) + 1)"),
    Line("worker_mb", "MB of memory to give each", "accounting_rss_mb / used"),
    Line("admins", "**admin replicas**: no request passes it", "2"),
    Line("inserts_per_s", "inserts a second into ClickHouse, at most", "workers / batch_s"),
    Line("day_rows", "million rows a day", "per_s * mean * 86_400 / 10**6"),
    Line("row_bytes", "bytes of a row, its part of the sums included", "(usage_gb + sums_gb) * 10**9 / usage_rows"),
    Line("year_gb", "GB of **ClickHouse** for a year, in each copy", "day_rows * 365 * row_bytes / 1000"),
)
SECTIONS: Final = {
    "Traffic": TRAFFIC,
    "Gateways": GATEWAYS,
    "Redis": REDIS,
    "NATS": NATS,
    "Accounting, admin, ClickHouse": ARCHIVE,
}
CHECKS: Final = (
    Line(
        "mix_us",
        "µs of a gateway for a stream of 300 events, body of 100 kB",
        "json_us + 99 * body_kb_us + 300 * event_us",
    ),
    Line(
        "mix_cores",
        "cores of the gateway meanwhile",
        "mix_per_s * (json_us + 99 * body_kb_us + 300 * event_us) / 10**6",
    ),
    Line("mix_redis_us", "µs of Redis for such a stream", "stream_redis_us"),
    Line("mix_nats_us", "µs of NATS for it", "stream_nats_us"),
    Line("mix_accounting_us", "µs of accounting for it", "stream_accounting_us"),
    Line(
        "redis_account_and_key_bytes",
        "bytes of Redis for an account with its key",
        "redis_account_bytes + redis_key_bytes + redis_key_hash_bytes",
    ),
    Line("json_redis_us", "µs of Redis for a JSON request: at least admission's", "admission_redis_us"),
)
"""Foretold from some measured figures, and measured themselves, under the name of the line."""


def computed(rate: float, measured: Mapping[str, float]) -> Values:
    """Every line for one rate, by name, with inputs and assumptions."""
    values: Values = {**measured, **{name: value for name, (value, _) in ASSUMPTIONS.items()}, "rate": rate}
    for lines in SECTIONS.values():
        for line in lines:
            values[line.name] = solved(line.formula, values)
    return values


def solved(formula: str, values: Mapping[str, float]) -> float:
    """What a formula of ours comes to. Raises NameError for a name that has no value."""
    return float(eval(formula, {"__builtins__": {}, **_FUNCTIONS}, dict(values)))
