"""Counters and gauges, and the text a scraper reads."""

import re
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from libs.common.metrics import CONTENT_TYPE, Metrics, Name

SERIES = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{kind="((?:[^"\\\n]|\\["\\n])*)"\})? (-?\d+)')
UNESCAPED = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}


def parsed(text: bytes) -> dict[tuple[str, str], int]:
    """Name and label → value, read as the format's description says; every line must fit."""
    series: dict[tuple[str, str], int] = {}
    lines = text.decode().split("\n")
    assert lines.pop() == ""  # the last line must end too
    for line in lines:
        match = SERIES.fullmatch(line)
        assert match is not None, line
        label = re.sub(r'\\["\\n]', lambda escape: UNESCAPED[escape[0]], match[2] or "")
        assert (match[1], label) not in series
        series[match[1], label] = int(match[3])
    return series


def test_counters_and_gauges() -> None:
    metrics = Metrics()
    metrics.add("relay_requests_total", "messages")
    metrics.add("relay_requests_total", "messages", 2)
    metrics.add("relay_requests_total", "models")
    metrics.add("relay_publish_failures_total")
    now = 5
    metrics.gauge("relay_requests_in_flight", lambda: now)
    expected = {
        ("relay_requests_total", "messages"): 3,
        ("relay_requests_total", "models"): 1,
        ("relay_publish_failures_total", ""): 1,
        ("relay_requests_in_flight", ""): 5,
    }
    assert parsed(metrics.render()) == expected
    now = 7
    assert metrics.value("relay_requests_in_flight") == 7
    assert metrics.value("relay_requests_total", "messages") == 3
    assert metrics.value("relay_requests_total") == metrics.value("relay_outcomes_total", "free") == 0


def test_nothing_counted_yet() -> None:
    assert parsed(Metrics().render()) == {}


@given(st.dictionaries(st.text(min_size=1, max_size=10), st.integers(1, 10**18), max_size=5))
def test_labels_are_escaped(counts: dict[str, int]) -> None:
    metrics = Metrics()
    for label, count in counts.items():
        metrics.add("relay_outcomes_total", label, count)
    assert parsed(metrics.render()) == {("relay_outcomes_total", label): count for label, count in counts.items()}


def test_the_series_of_a_name_stand_together() -> None:
    metrics = Metrics()
    for label in ("b", "a"):
        metrics.add("relay_refusals_total", label)
        metrics.add("relay_outcomes_total", label)
    names = [name for name, _ in parsed(metrics.render())]
    assert names == sorted(names)


def test_names_follow_the_convention() -> None:
    for name in get_args(Name):
        assert re.fullmatch(r"relay_[a-z_]+[a-z]", name)
    assert "version=0.0.4" in CONTENT_TYPE
