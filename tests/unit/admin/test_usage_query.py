"""What may be asked, and that statements hold no value of the question."""

from typing import Any

import pytest

from services.admin.usage.query import FILTERS, METRICS, TAGGED_KEYS_MAX, Query, plan

SPAN: dict[str, Any] = {"from_ms": 1_735_689_600_000, "to_ms": 1_767_225_600_000}
NOW_MS = 1_790_000_000_000


@pytest.mark.parametrize(
    "asked",
    [
        {"metrics": ()},
        {"metrics": ("cost", "cost")},
        {"metrics": ("count()",)},
        {"group": ("model", "model")},
        {"group": ("model", "key", "day")},
        {"group": ("hour", "day")},
        {"group": ("status",)},
        {"filters": {"status": ("200",)}},
        {"filters": {"model": ()}},
        {"top": 0},
        {"top": 1001},
        {"order": "requests"},
        {"to_ms": SPAN["from_ms"]},
        {"from_ms": -1},
        {"tags": dict.fromkeys(map(str, range(TAGGED_KEYS_MAX + 1)), "x")},
    ],
)
def test_what_cannot_be_asked_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Query(**({"metrics": ("cost",)} | SPAN | asked))


def test_no_value_is_a_part_of_the_statement() -> None:
    asked: dict[str, Any] = {
        "accounts": ("needle",),
        "filters": dict.fromkeys(FILTERS, ("needle",)),
        "tags": {"needle": "needle"},
        "group": ("tag", "day"),
        "metrics": METRICS,
        "zone": "Asia/Kolkata",
    }
    for everything in (False, True):
        found = plan(Query(**SPAN | asked), NOW_MS, everything=everything)
        assert "needle" not in found.sql and "Kolkata" not in found.sql
        assert str(found.parameters).count("needle") == 9


@pytest.mark.parametrize(
    ("asked", "tables"),
    [
        ({"group": ("day",)}, {"usage_by_day"}),
        ({"group": ("hour",)}, {"usage_by_hour"}),
        ({"group": ("key",)}, {"usage_by_hour"}),
        ({"filters": {"member": ("",)}}, {"usage_by_hour"}),
        ({"group": ("day",), "zone": "America/New_York"}, {"usage_by_hour"}),
        ({"group": ("model",), "from_ms": SPAN["from_ms"] + 3_600_000}, {"usage_by_day", "usage_by_hour"}),
        ({"group": ("model",), "from_ms": SPAN["from_ms"] + 1}, {"usage_by_day", "usage_by_hour", "usage"}),
        ({"group": ("day",), "zone": "Asia/Kolkata"}, {"usage_by_hour", "usage"}),
        ({"metrics": ("rate_limited",)}, {"usage_by_day", "refusals"}),
        ({"to_ms": NOW_MS}, {"usage_by_day", "usage_by_hour", "usage"}),
    ],
)
def test_sums_are_read_where_nothing_cuts_them(asked: dict[str, Any], tables: set[str]) -> None:
    sql = plan(Query(**({"metrics": ("cost",)} | SPAN | asked)), NOW_MS).sql
    assert {
        name for name in ("usage", "usage_by_hour", "usage_by_day", "refusals") if f"FROM {name} FINAL" in sql
    } == tables
