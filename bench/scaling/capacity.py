"""docs/capacity.md: the plan's tables and words around the measured inputs. Made of the result files alone: a test compares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.scaling import inputs, plan
from bench.scaling.figures import amount
from bench.scaling.inputs import Inputs
from bench.scaling.plan import Line, Values

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "capacity.md"


def write() -> None:
    """Make the document anew. Raises inputs.Unreadable."""
    DOCUMENT.write_text(text(inputs.read()))


def text(measured: Inputs) -> str:
    """The document."""
    values = {name: one.value for name, one in measured.items()}
    plans = [plan.computed(rate, values) for rate in plan.RATES]
    sections = "\n\n".join(f"### {title}\n{_section(lines, plans)}" for title, lines in plan.SECTIONS.items())
    return f"""# Capacity: what so many requests a minute need

Made by `python -m bench.scaling --capacity` from the files in `bench/`; `make bench-scaling` measures, and then makes it. Do not
edit it: change `bench/scaling/plan.py`, or measure anew.

This is a first plan: arithmetic on figures of one small machine, where all processes share two cores with the load. What was
measured of the sums is below, in *Predicted and measured*; nobody has run a million requests a minute. Put in your own figures:
each line has its formula, over the names of assumptions, inputs and the lines above it.

## Assumptions
Traffic is like Claude Code's: every request is a stream.

| name | value | what it is |
|---|---|---|
{_assumptions()}

The headroom rule in words: in the busiest minute no core, worker, disk or memory is used to more than half of what was measured.
The other half is for a lost node, a burst within the minute, and what the assumptions got wrong. Of gateways and workers there is
one more than that, and never fewer than two.

## The plan, by requests a minute at the busiest time
{sections}

{_reading(plans)}

## Predicted and measured
The same arithmetic for loads that were really driven. *Redis, NATS, accounting for such a stream* are foretold from streams of 62
events that came nine times as often; what comes more rarely travels together less, and costs more.

{_checks(values)}

## Inputs
| name | value | what it is | from |
|---|---|---|---|
{_inputs(measured)}

Not in them: TLS to the upstream (callers' ends in the load balancer), log shipping, the network between machines, replication of
JetStream (all figures are of one node), and a ClickHouse server: chDB inside a Python process stands in for it, so CPU of
ClickHouse is not planned here. [bench/RESULTS.md](../bench/RESULTS.md) sets the gateway's cost beside other proxies'.
"""


def _assumptions() -> str:
    return "\n".join(f"| `{name}` | {value:,g} | {meaning} |" for name, (value, meaning) in plan.ASSUMPTIONS.items())


def _section(lines: Sequence[Line], plans: Sequence[Values]) -> str:
    head = "".join(f" {rate:,} |" for rate in plan.RATES)
    rows = [f"| what | name | formula |{head}", "|---|---|---|" + "---|" * len(plan.RATES)]
    for line in lines:
        cells = " | ".join(amount(values[line.name]) for values in plans)
        rows.append(f"| {line.title} | `{line.name}` | `{line.formula}` | {cells} |")
    return "\n".join(rows)


def _reading(plans: Sequence[Values]) -> str:
    small, middle, large = ({name: amount(value) for name, value in values.items()} for values in plans)
    few, some, many = (f"{rate:,}" for rate in plan.RATES)
    return f"""What follows from it
- **{few} a minute**: the least of everything: {small["gateways"]} gateways, {small["workers"]} workers, one Redis server with a
  replica, three small NATS nodes.
- **{some} a minute**: {middle["gateways"]} gateways, {middle["workers"]} workers; Redis masters: {middle["masters"]}, with
  {middle["redis_cores"]} of a core in use, and {middle["redis_gb"]} GB.
- **{many} a minute**: {large["gateways"]} gateways. Redis must be a Cluster, {large["masters"]} masters, for CPU and for
  {large["redis_gb"]} GB, of which {large["remembered_gb"]} GB are events remembered for 73 hours (where an account has some
  thousand an hour it is `remembered_among_bytes` for each, less than half). All events go through the
  leader of one stream, {large["nats_used"]} times what the node here could sync if no two of them travel together, and
  {large["stream_gb"]} GB of them are kept: several streams, or fewer days, are not built and must be before anybody goes there.
- **RELAY_STREAM_BYTES_MAX** must be raised with the traffic. A stream that has reached it takes nothing more: spools fill, and
  then gateways answer 529. With `mean` of the busiest minute's rate, the default of 2 GiB is full after
  {small["full_days"]} days at {few} a minute, after {middle["full_days"]} at {some}. What is older than `stream_days` is
  deleted: a stream that would take longer to fill never does, but has no room for more.
- **RELAY_UPSTREAM_CONNECTIONS_MAX** (2,000 by default) bounds the streams of a gateway: it must be well above `gateway_open`.
- Bodies weigh more than answers: {large["in_gbit"]} Gbit/s into the gateways, and as much out of them, at {many} a minute."""


def _checks(values: Values) -> str:
    lines = ["| what | formula | predicted | measured | measured / predicted |", "|---|---|---|---|---|"]
    for check in plan.CHECKS:
        said, seen = plan.solved(check.formula, values), values[check.name]
        lines.append(f"| {check.title} | `{check.formula}` | {amount(said)} | {amount(seen)} | {seen / said:.2f} |")
    return "\n".join(lines)


def _inputs(measured: Inputs) -> str:
    rows = [
        f"| `{name}` | {amount(one.value)} | {one.meaning} | `{one.command}`, [{one.file}](../bench/{one.file}) |"
        for name, one in measured.items()
    ]
    return "\n".join(rows)
