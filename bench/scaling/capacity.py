"""docs/capacity.md: the plan's tables and words around the measured inputs. Made of the result files alone, so a test can compare."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.scaling import inputs, plan
from bench.scaling.figures import amount
from bench.scaling.inputs import Inputs
from bench.scaling.plan import Line, Mix, Values

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "capacity.md"


def write() -> None:
    """Make the document anew. Raises inputs.Unreadable."""
    DOCUMENT.write_text(text(inputs.read()))


def text(measured: Inputs, mix: Mix | None = None) -> str:
    """The document."""
    mix = mix or Mix()
    values = {name: one.value for name, one in measured.items()}
    plans = [plan.computed(rate, mix, values) for rate in plan.RATES]
    sections = "\n\n".join(f"### {title}\n{_section(lines, plans)}" for title, lines in plan.SECTIONS.items())
    return f"""# Capacity: what so many requests a minute need

Made by `python -m bench.scaling --capacity` from the files in `bench/`; `make bench-scaling` measures and then makes it. A test
compares. Do not edit: change `bench/scaling/capacity.py`, or measure anew.

It is a first plan: arithmetic on figures of one small machine, where every process shares two cores with the load. What was
measured is in the last table; nobody has run a million requests a minute. Put in your own figures: each line has its formula.

## Assumptions
Traffic like Claude Code's: every request is a stream.

| name | value | what it is |
|---|---|---|
{_assumptions(mix)}

The headroom rule, in words: in the busiest minute no core, worker, disk or memory is used to more than {mix.used_at_peak:.0%} of what was
measured. The rest is for a lost node, a burst within the minute, and what the assumptions got wrong. Of replicas there is one more
than that, and never fewer than two.

## The plan
{sections}

{_reading(plans)}

## Predicted and measured
The same arithmetic, for loads that were really driven.

{_checks(values)}

## Inputs
| name | value | what it is | from |
|---|---|---|---|
{_inputs(measured)}

Not in them: TLS to the upstream and to callers (end the callers' in the load balancer), log shipping, the network's own cost
between machines, replication of JetStream (all figures are of one node), and a ClickHouse server: chDB inside a Python process
stood in for it, so its CPU is not planned here. [bench/RESULTS.md](../bench/RESULTS.md) (`make bench-smoke`) sets the gateway's cost beside Caddy's.
"""


def _assumptions(mix: Mix) -> str:
    rows = [f"| `{name}` | {getattr(mix, name):g} | {meaning} |" for name, meaning in plan.ASSUMPTIONS.items()]
    return "\n".join(rows)


def _section(lines: Sequence[Line], plans: Sequence[Values]) -> str:
    head = "".join(f" {rate:,} a minute |" for rate in plan.RATES)
    rows = [f"| what | name | formula |{head}", "|---|---|---|" + "---|" * len(plan.RATES)]
    for line in lines:
        cells = " | ".join(amount(values[line.name]) for values in plans)
        rows.append(f"| {line.title} | `{line.name}` | {line.formula} | {cells} |")
    return "\n".join(rows)


def _reading(plans: Sequence[Values]) -> str:
    small, middle, large = plans
    return f"""What follows from it
- **{plan.RATES[0]:,} a minute**: the least of everything is enough. One Redis server with a replica, three small NATS nodes.
- **{plan.RATES[1]:,} a minute**: {middle["gateways"]:.0f} gateways. One Redis server does it ({amount(middle["redis_cores"])} cores used, {amount(middle["redis_gb"])} GB).
- **{plan.RATES[2]:,} a minute**: Redis must be a Cluster of {large["redis_masters"]:.0f} masters or more, for CPU and for {amount(large["redis_gb"])} GB, nearly all of
  them the events remembered for 73 hours. All events go through one JetStream leader: {amount(large["per_s"])} messages a second where they do not
  travel together, {large["nats_used"]:.1f} times what the node here could sync. That, and {amount(large["stream_gb"] / 1000)} TB for thirty days of the stream, are what
  must be changed first (several streams, or fewer days); it is not built.
- **RELAY_STREAM_BYTES_MAX** must be raised at every size: by default a stream takes 2 GiB and then nothing more (spools fill, and
  gateways answer 529). At {plan.RATES[0]:,} a minute that is after {amount(small["stream_full_days"])} days, at {plan.RATES[1]:,} after {amount(middle["stream_full_days"])}; nothing is dropped before it is 30 days old.
- **RELAY_UPSTREAM_CONNECTIONS_MAX** (2,000 by default) bounds the open streams of a gateway: more than `gateway_open`.
- A million requests a minute with bodies of 100 kB are {amount(large["in_gbit"])} Gbit/s into the gateways and as much out of them."""


def _checks(values: Values) -> str:
    request_us = values["json_us"] + 99 * values["body_kb_us"] + 300 * values["event_us"]
    entities = values["redis_account_bytes"] + values["redis_key_bytes"] + values["redis_key_hash_bytes"]
    rows = [
        ("µs of a gateway for a stream of 300 events with a body of 100 kB: json_us + 99 × body_kb_us + 300 × event_us", request_us, values["mix_us"]),
        ("cores of a gateway while they came: mix_per_s × that / 10⁶", values["mix_per_s"] * request_us / 1e6, values["mix_cores"]),
        ("µs of Redis for such a stream: stream_redis_us", values["stream_redis_us"], values["mix_redis_us"]),
        ("µs of NATS for it: stream_nats_us", values["stream_nats_us"], values["mix_nats_us"]),
        ("µs of accounting for it: stream_accounting_us", values["stream_accounting_us"], values["mix_accounting_us"]),
        ("bytes of Redis for an account with its key: redis_account_bytes + redis_key_bytes + redis_key_hash_bytes", entities, values["redis_account_and_key_bytes"]),
        ("µs of Redis for a JSON request: at least admission_redis_us (admit and finish, without settlement)", values["admission_redis_us"], values["json_redis_us"]),
    ]  # fmt: skip
    lines = ["| what | predicted | measured | measured / predicted |", "|---|---|---|---|"]
    lines += [f"| {what} | {amount(said)} | {amount(seen)} | {seen / said:.2f} |" for what, said, seen in rows]
    return "\n".join(lines)


def _inputs(measured: Inputs) -> str:
    rows = [
        f"| `{name}` | {amount(one.value)} | {one.meaning} | `{one.command}`: [{one.file}](../bench/{one.file}) |"
        for name, one in measured.items()
    ]
    return "\n".join(rows)
