"""The bench of accounting says whether its targets were held, in a form that the capacity plan can read."""

import shutil
from pathlib import Path

import pytest

from bench import accounting
from bench.accounting import Found
from bench.scaling import inputs

CPU_US = dict.fromkeys(("accounting", "redis", "clickhouse", "nats", "bench"), 54.0)


def document(*, seconds: float, lag_s: float) -> str:
    backlog = Found("backlog", 200_000, seconds, CPU_US, 0, 304)
    offered = Found("offered", 100_000, 11.0, CPU_US, lag_s, 287)
    return accounting.text([backlog, offered], load_before=0.3)


@pytest.mark.parametrize(
    ("seconds", "lag_s", "rate", "lag"),
    [
        (20.0, 2.0, "10,000 | held", "2.00 | held"),
        (20.1, 2.01, "9,950 | **missed**", "2.01 | **missed**"),
    ],
)
def test_targets_are_held_or_missed(seconds: float, lag_s: float, rate: str, lag: str) -> None:
    text = document(seconds=seconds, lag_s=lag_s)
    assert f"| 10,000 events/s of a backlog | {rate} |" in text
    assert f"| lag ≤ 2 s while 10,000/s are offered | {lag} |" in text


def test_the_capacity_plan_can_read_it(tmp_path: Path) -> None:
    for name in ("SCALING.md", "ADMISSION.md", "ANALYTICS.md"):
        shutil.copy(inputs.BENCH / name, tmp_path)
    (tmp_path / "ACCOUNTING.md").write_text(document(seconds=16.0, lag_s=1.0))
    found = inputs.read(tmp_path)
    assert (found["accounting_events_per_s"].value, found["accounting_rss_mb"].value) == (12_500, 304)
