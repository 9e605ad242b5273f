"""What is said of figures: ratios of rounds, targets held and missed, a document and a chart that can be read."""

import re
from xml.etree import ElementTree as ET

import pytest

from bench import chart, report, targets
from bench.measures import Timing
from bench.rig import Run
from bench.workloads import WORKLOADS, Measured, Results, Timed

COSTS = {"nginx": [20.0, 22.0, 18.0], "caddy": [100.0, 110.0, 90.0], "relay": [240.0, 275.0, 198.0]}
LITELLM = {"litellm": [16_000.0, 15_000.0, 17_000.0]}


def run(cpu_us: float) -> Run:
    return Run(cpu_us=cpu_us, beside_us={"redis": 20.0, "nats": 60.0}, per_second=2_000, p50_ms=1.0, p99_ms=2.0)


def timing(first_ms: float, gap_ms: float) -> Timing:
    return Timing(0.01, 0.1, first_ms, first_ms * 3, 0.0, gap_ms)


def results(*, peers: bool = False) -> Results:
    costs = COSTS | (LITELLM if peers else {})
    runs = {name: [run(cost) for cost in rounds] for name, rounds in costs.items()}
    timed = Timed("SSE", "stamped", 200.0, {"upstream": [timing(0.5, 0.2)], "relay": [timing(2.5, 0.9)]})
    return Results(
        measured=[Measured(workload, dict(runs)) for workload in WORKLOADS],
        timed=[timed],
        stream_bytes={"relay": 61_000.0},
        ready_s=[1.2, 1.9, 1.3],
        relay_requests=12_345,
        seconds=300,
        peers="LiteLLM 1" if peers else "",
    )


def test_ratios_are_of_the_same_round() -> None:
    ratio = results().measured[0].ratio("relay", "caddy")
    assert (ratio.median, ratio.least, ratio.most) == pytest.approx((2.4, 2.2, 2.5))


def verdicts(found: Results) -> dict[str, str]:
    return {target.demand: target.verdict for target in targets.targets(found)}


def test_targets_are_held_or_missed_by_how_much() -> None:
    found = verdicts(results())
    assert found["JSON ≤ 2.5 × Caddy's CPU"] == "held"
    assert found["SSE ≤ 1.25 × Caddy's CPU"] == "**missed** by 92%"
    assert found["≤ 60 KB per open stream"] == "**missed** by 2%"
    assert found["ready ≤ 2 s after start"] == "held"
    assert found["JSON ≥ 50 × less than LiteLLM"] == targets.NOT_MEASURED
    assert found["JSON ≥ 20 × less than claude-relay-service, by arithmetic"] == "held"
    assert verdicts(results(peers=True))["JSON ≥ 50 × less than LiteLLM"] == "held"


def test_what_is_added_is_beside_the_same_load_without_a_proxy() -> None:
    figures = {target.demand: target.figure for target in targets.targets(results())}
    assert figures["SSE: added time to first byte p50 ≤ 1 ms at half load"] == pytest.approx(2.0)
    assert figures["added gap between events p99 ≤ 5 ms at half load"] == pytest.approx(0.7)


def test_what_was_not_measured_is_not_held() -> None:
    assert set(verdicts(Results()).values()) == {targets.NOT_MEASURED}


def test_a_peer_that_failed_is_named_with_its_reason() -> None:
    found = results(peers=True)
    del found.measured[1].runs["litellm"]
    found.measured[1].failed["litellm"] = "answers\n500"
    found.streams_failed["litellm"] = "closed"
    assert "LiteLLM, open streams: not measured. It said: `closed`" in "\n".join(report.tables(found))
    assert "LiteLLM, JSON, 400 KB body, 8 connections: not measured. It said: `answers 500`" in "\n".join(
        report.tables(found)
    )


def test_tables_have_as_many_cells_as_titles() -> None:
    for table in "\n".join(report.tables(results(peers=True))).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"\|", row)) for row in rows}) <= 1


@pytest.mark.parametrize("peers", [False, True])
def test_the_chart_is_a_picture_with_a_bar_for_each(peers: bool) -> None:
    found = results(peers=peers)
    picture = ET.fromstring(chart.drawn(found))
    bars = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == len(WORKLOADS) * 3 + (2 * 4 if peers else 0)
    width = float(picture.attrib["width"])
    assert all(0 < float(bar.attrib["x"]) + float(bar.attrib["width"]) < width for bar in bars)
