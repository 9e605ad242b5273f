"""Limits as JSON: absent stays, null is back to the default, money is a decimal string."""

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from libs.common.limits import ACCOUNT_DEFAULTS, Limits
from services.admin.problems import Unprocessable
from services.admin.resources import limits
from services.admin.resources.limits import LimitsChange, LimitsView


def change(**fields: Any) -> LimitsChange:
    return msgspec.convert(fields, LimitsChange)


def test_the_api_has_every_limit_there_is_and_no_other() -> None:
    stored = {name.replace("_nanos", "_usd") for name in Limits.__struct_fields__}
    assert set(LimitsChange.__struct_fields__) == set(LimitsView.__struct_fields__) == stored


def test_what_is_absent_stays() -> None:
    before = Limits(rpm=7, budget_day_nanos=5)
    assert limits.changed(before, UNSET) == limits.changed(before, change()) == before
    assert limits.changed(before, change(itpm=9)) == Limits(rpm=7, itpm=9, budget_day_nanos=5)


def test_null_takes_a_limit_away() -> None:
    before = Limits(rpm=7, otpm=8, budget_day_nanos=5, budget_week_nanos=6)
    assert limits.changed(before, change(rpm=None, budget_week_usd=None)) == Limits(otpm=8, budget_day_nanos=5)


def test_every_limit_can_be_set() -> None:
    values = {name: "1.000000001" if name.endswith("usd") else 3 for name in LimitsChange.__struct_fields__}
    made = limits.changed(Limits(), change(**values))
    assert {getattr(made, name) for name in Limits.__struct_fields__} == {3, 1_000_000_001}
    assert msgspec.to_builtins(limits.view(made)) == values


@pytest.mark.parametrize("text", ["0", "0.00", "9000000", "0.000000001"])
def test_budgets_are_exact(text: str) -> None:
    made = limits.view(limits.changed(Limits(), change(budget_total_usd=text))).budget_total_usd
    assert made is not None and float(made) == float(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "-0", "1e3", "NaN", "9000000.01", "1,0", "0.0000000001", "٣", " 1", "9" * 999]
)
@pytest.mark.parametrize("period", ["day", "week", "month", "total"])
def test_budgets_that_are_none(text: str, period: str) -> None:
    with pytest.raises(Unprocessable, match=rf"^limits\.budget_{period}_usd: ") as caught:
        limits.changed(Limits(), change(**{f"budget_{period}_usd": text}))
    assert len(caught.value.detail) < 200


@pytest.mark.parametrize(
    "fields",
    [
        {"rpm": 0},
        {"rpm": -1},
        {"rpm": 10**9 + 1},
        {"rpm": 1.5},
        {"rpm": "7"},
        {"rpm": True},
        {"in_flight": 0},
        {"in_flight": 10**6 + 1},
        {"budget_day_usd": 5},
        {"rps": 1},
        {"budget_day_nanos": 1},
    ],
)
def test_numbers_and_names_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(fields))):
        change(**fields)


def test_a_view_has_the_defaults_filled_in() -> None:
    shown = limits.view(Limits(rpm=5), ACCOUNT_DEFAULTS)
    assert (shown.rpm, shown.itpm, shown.otpm, shown.free_rpm, shown.in_flight) == (5, 2_000_000, 400_000, 1_000, 50)
    assert shown.budget_day_usd is None
    assert limits.view(Limits(rpm=5)).itpm is None


def test_a_budget_of_nothing_is_shown_as_one() -> None:
    assert limits.view(Limits(budget_day_nanos=0)).budget_day_usd == "0.00"
