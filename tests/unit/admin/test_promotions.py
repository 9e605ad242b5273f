"""What is left of promotions at their ends, against a plain simulation that spends dollar by dollar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admin.promotions import Promotion, Spend, edges, unspent


def promotion(name: str, nanos: int, begins: int, ends: int) -> Promotion:
    return Promotion(name, nanos, begins, ends)


@pytest.mark.parametrize(
    ("promotions", "spends", "left"),
    [
        ([promotion("a", 10, 0, 5)], {0: 4}, {"a": 6}),
        ([promotion("a", 10, 0, 5)], {0: 12}, {"a": 0}),
        ([promotion("a", 10, 0, 5)], {5: 12}, {"a": 10}),
        ([promotion("a", 10, 0, 9), promotion("b", 10, 0, 5)], {0: 15}, {"a": 5, "b": 0}),
        ([promotion("a", 10, 0, 5), promotion("b", 10, 3, 9)], {0: 4, 3: 8}, {"a": 0, "b": 8}),
    ],
)
def test_the_one_that_ends_first_is_spent_first(
    promotions: list[Promotion], spends: dict[int, int], left: dict[str, int]
) -> None:
    assert unspent(promotions, [Spend(edge, spends.get(edge, 0)) for edge in edges(promotions)]) == left


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 20)), max_size=5),
    st.dictionaries(st.integers(0, 45), st.integers(0, 12), max_size=30),
)
def test_as_a_plain_simulation_has_it(found: list[tuple[int, int, int]], spent_at: dict[int, int]) -> None:
    promotions = [
        promotion(f"p{number}", nanos, begins, begins + length) for number, (nanos, begins, length) in enumerate(found)
    ]
    left = {one.credit_id: one.amount_nanos for one in promotions}
    for time in range(50):
        for _ in range(spent_at.get(time, 0)):
            running = [one for one in promotions if one.begins_at_ms <= time < one.ends_at_ms and left[one.credit_id]]
            if running:
                left[min(running, key=lambda one: (one.ends_at_ms, one.credit_id)).credit_id] -= 1
    times = edges(promotions)
    spends = [
        Spend(edge, sum(nanos for time, nanos in spent_at.items() if edge <= time < following))
        for edge, following in zip(times, [*times[1:], 10**6], strict=False)
    ]
    assert unspent(promotions, spends) == left
