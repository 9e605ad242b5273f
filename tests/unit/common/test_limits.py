"""Limits as the scripts read them, and back."""

import pytest

from libs.common.limits import ACCOUNT_DEFAULTS, Limits, packed, unpacked


@pytest.mark.parametrize(
    "limits",
    [Limits(), Limits(rpm=1), Limits(budget_total_nanos=0), ACCOUNT_DEFAULTS],
)
def test_what_was_packed_is_read_again(limits: Limits) -> None:
    assert unpacked(packed(limits)) == limits


def test_defaults_that_were_in_force_are_read_as_limits() -> None:
    read = unpacked(packed(Limits(rpm=7, budget_day_nanos=9 * 10**15), ACCOUNT_DEFAULTS))
    assert (read.rpm, read.itpm, read.budget_day_nanos) == (7, ACCOUNT_DEFAULTS.itpm, 9 * 10**15)
