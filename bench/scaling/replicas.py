"""1, 2 and 4 gateways behind nginx: what a request costs, who did it, and whether limits are one for all of them."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.rig import BenchFailed
from bench.scaling import figures
from bench.scaling.load import Plan
from bench.scaling.stack import REPLICAS, SHARED, Run, Stack

ROUNDS: Final = 3
_RPM: Final = 60
_SLOTS: Final = 20


@dataclass(frozen=True)
class Workload:
    """A load, by how many replicas there are."""

    title: str
    plan: Callable[[int], Plan]


@dataclass(frozen=True)
class Shared:
    """A limit of a key whose requests go to all replicas."""

    limit: str
    sent: int
    admitted: dict[str, int]
    """By gateway."""
    seconds: float


Runs = dict[tuple[str, int], list[Run]]


def workloads(stack: Stack, key: str) -> list[Workload]:
    """The same load for each replica, of JSON and of streams; and the same load in all, so less for each."""

    def each(count: int) -> Plan:
        return Plan(url=stack.shared[count], key=key, requests=1_500, connections=16 * count)

    def together(count: int) -> Plan:
        return Plan(url=stack.shared[count], key=key, requests=1_200, connections=16)

    def streams(count: int) -> Plan:
        return Plan(url=stack.shared[count], key=key, requests=120 * count, connections=60 * count, events=62)

    return [
        Workload("JSON, 16 connections a replica", each),
        Workload("SSE, 62 events, 60 streams a replica", streams),
        Workload("JSON, 16 connections in all", together),
    ]


def measured(stack: Stack, say: Callable[[str], None]) -> Runs:
    """Interleaved rounds, after a warming one. Every answer was 200 and whole, or BenchFailed."""
    key, _ = stack.key(stack.account())
    runs: Runs = defaultdict(list)
    wanted = workloads(stack, key)
    for gateway in stack.gateways.values():
        stack.measure(Plan(url=gateway, key=key, requests=200, connections=16))
    for _ in range(ROUNDS):
        for workload in wanted:
            for count in SHARED:
                run = stack.measure(workload.plan(count))
                runs[workload.title, count].append(run)
                say(f"  {workload.title}, {count} replicas: {run.gateways_us:.0f} us, {_per_second(run):.0f}/s")
    return runs


def limits_shared(stack: Stack) -> list[Shared]:
    """Two keys with a limit, sent through all replicas at once. Raises BenchFailed unless exactly the limit is let in."""
    account = stack.account()
    found = []
    for limit, value, sent, events in (("rpm", _RPM, 300, 0), ("in_flight", _SLOTS, 100, 62)):
        key, _ = stack.key(account, {limit: value})
        plan = Plan(url=stack.shared[REPLICAS], key=key, requests=sent, connections=100, events=events)
        report = stack.measure(plan, refused=None).report
        refilled = int(report.seconds * value / 60) if limit == "rpm" else 0
        admitted = report.statuses.get("200", 0)
        if not value <= admitted <= value + refilled:
            raise BenchFailed(f"a key with {limit} {value} was let in {admitted} times in {report.seconds} s")
        names = {url.removeprefix("http://"): name for name, url in stack.gateways.items()}
        shares = {names[address]: count for address, count in sorted(report.replicas["200"].items())}
        found.append(Shared(f"{limit} {value}", sent, dict(sorted(shares.items())), report.seconds))
    return found


def table(runs: Runs) -> list[str]:
    """One line for each load and number of replicas, and what came of it."""
    lines = [
        "| load | replicas | gateways µs | nginx | Redis | NATS | accounting | reads | messages | per s | p99 ms | shares % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (title, count), some in runs.items():
        beside = " | ".join(f"{_median(some, name):.0f}" for name in ("nginx", "redis", "nats", "accounting"))
        together = " | ".join(
            f"{statistics.median(run.each(name) for run in some):.2f}" for name in ("reads", "messages")
        )
        speed = statistics.median(_per_second(run) for run in some)
        late = statistics.median(run.report.p99_ms for run in some)
        cost = figures.spread([run.gateways_us for run in some])
        lines.append(
            f"| {title} | {count} | {cost} | {beside} | {together} | {speed:,.0f} | {late:,.0f} | {_shares(some)} |"
        )
    return lines


def verdicts(runs: Runs) -> list[str]:
    """Whether a request costs the same, however many replicas there are."""
    lines = ["| load, from 1 to 4 replicas | gateways | Redis | NATS |", "|---|---|---|---|"]
    for title in dict.fromkeys(title for title, _ in runs):
        by_count = [runs[title, count] for count in SHARED]
        gateways = [statistics.median(run.gateways_us for run in some) for some in by_count]
        beside = [[_median(some, name) for some in by_count] for name in ("redis", "nats")]
        said = " | ".join(figures.verdict(figures.growth(medians)) for medians in (gateways, *beside))
        lines.append(f"| {title} | {said} |")
    return lines


def limits_table(found: list[Shared]) -> list[str]:
    """What became of the keys with limits."""
    lines = ["| limit of the key | sent at once | let in | by gateway | s |", "|---|---|---|---|---|"]
    for one in found:
        shares = ", ".join(f"{name.removeprefix('gateway-')}: {count}" for name, count in one.admitted.items())
        lines.append(f"| {one.limit} | {one.sent} | **{sum(one.admitted.values())}** | {shares} | {one.seconds:.2f} |")
    return lines


def _median(runs: list[Run], name: str) -> float:
    return statistics.median(run.us(name) for run in runs)


def _per_second(run: Run) -> float:
    return run.requests / run.report.seconds


def _shares(runs: list[Run]) -> str:
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update(run.report.replicas["200"])
    return " / ".join(f"{100 * count / counts.total():.0f}" for _, count in sorted(counts.items()))
