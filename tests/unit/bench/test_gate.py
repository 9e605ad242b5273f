"""The gate's verdict, and its record."""

import msgspec
import pytest

from bench import gate


@pytest.mark.parametrize(("ratio", "shut"), [(2.0, False), (2.6, False), (2.61, True), (20.0, True), (0.1, False)])
def test_the_gate_shuts_above_the_slack(ratio: float, shut: bool) -> None:
    assert gate.is_too_much(ratio, recorded=2.0) is shut


def test_a_refusal_has_both_figures_and_the_file() -> None:
    sentence = gate.verdict("json", 2.711, 2.0)
    for part in ("json", "2.71", "2.00", "1.3", "bench/gate.json"):
        assert part in sentence
    assert "too much" in sentence


def test_what_is_let_through_is_said_too() -> None:
    sentence = gate.verdict("sse", 1.9, 2.0)
    assert "1.90" in sentence and "2.00" in sentence
    assert "too much" not in sentence


def test_a_much_smaller_ratio_asks_for_a_new_record() -> None:
    assert "by hand" in gate.verdict("json", 1.5, 2.0)
    assert "by hand" not in gate.verdict("json", 1.6, 2.0)


def test_the_record_can_be_read_and_says_why() -> None:
    record = msgspec.json.decode(gate.RECORD.read_bytes(), type=gate.Record)
    assert record.why
    assert {check.kind for check in gate.CHECKS} == {"json", "sse"}


@pytest.mark.parametrize("text", [b"{}", b'{"json":0,"sse":1,"date":"","why":"x"}', b'{"json":2}'])
def test_a_record_that_lets_everything_through_is_not_read(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=gate.Record)
