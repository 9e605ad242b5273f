"""docs/capacity.md says what the result files say, and its arithmetic is right."""

from pathlib import Path

import pytest

from bench.scaling import capacity, figures, inputs, plan
from bench.scaling.figures import Figure


def test_the_document_is_made_of_the_result_files_as_they_are() -> None:
    assert capacity.DOCUMENT.read_text() == capacity.text(inputs.read()), "run `python -m bench.scaling --capacity`"


def test_figures_are_read_as_they_were_written() -> None:
    written = {"small": Figure(0.0123, "µs of something"), "large": Figure(1_234_567, "bytes (of it)")}
    assert figures.parsed("\n".join(figures.rendered(written))) == written


@pytest.mark.parametrize(
    ("medians", "said"),
    [
        ([100.0, 110.0, 100.0], "+10%: flat"),
        ([100.0, 120.0, 100.0], "+20%: **not flat**"),
        ([100.0, 95.0, 120.0], "+20%: **not flat**"),
        ([100.0, 104.0, 70.0], "-30%: does not grow"),
    ],
)
def test_flat_is_judged_by_what_is_farthest_from_the_first(medians: list[float], said: str) -> None:
    assert figures.verdict(figures.growth(medians)) == said


def test_a_figure_that_is_missing_is_named(tmp_path: Path) -> None:
    for path in inputs.BENCH.glob("*.md"):
        text = path.read_text()
        (tmp_path / path.name).write_text(
            text.replace("| backlog |", "| other |") if path.stem == "ACCOUNTING" else text
        )
    with pytest.raises(inputs.Unreadable, match="accounting_events_per_s"):
        inputs.read(tmp_path)


def test_the_plan_of_round_figures_is_what_a_hand_computes() -> None:
    names = {name for lines in plan.SECTIONS.values() for line in lines for name in _names(line.formula)}
    measured = dict.fromkeys(names, 1.0) | {
        "json_us": 400.0,
        "body_kb_us": 2.0,
        "event_us": 30.0,
        "stream_gateway_us_per_s": 20.0,
        "stream_redis_us": 300.0,
        "stream_redis_us_per_s": 5.0,
        "remembered_alone_bytes": 150.0,
        "event_stored_bytes": 700.0,
        "nats_messages_per_s": 5_000.0,
        "accounting_events_per_s": 10_000.0,
        "stream_accounting_us": 200.0,
    }
    found = plan.computed(60_000, measured)  # a thousand a second
    assert found["open"] == 20_000
    assert found["request_us"] == 400 + 200 + 9_000 + 400
    assert found["gateway_cores"] == pytest.approx(10)
    assert found["gateways"] == 21  # half of twenty cores, and one more
    assert found["redis_cores"] == pytest.approx(0.3 + 0.1)
    assert found["masters"] == 1
    assert found["remembered_gb"] == pytest.approx(500 * 73 * 3600 * 150 / 1e9)
    assert found["stream_gb"] == pytest.approx(500 * 86_400 * 30 * 700 / 1e9)
    assert found["nats_used"] == pytest.approx(0.2)
    assert found["workers"] == 2  # a fifth of one, doubled, and one more
    assert found["day_rows"] == pytest.approx(43.2)


def _names(formula: str) -> set[str]:
    return set(compile(formula, "formula", "eval").co_names) - {"ceil", "max", "min"}
