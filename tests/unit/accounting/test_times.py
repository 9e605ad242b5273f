"""Times as an operator writes them."""

import argparse

import pytest

from libs.common import clock
from services.accounting.operations import times


def test_times_are_read_as_people_write_them() -> None:
    assert times.time("2026-11-25T14:00:00Z") == times.time("2026-11-25T14:00:00")
    assert (clock.utc_now() - times.time("2h")).total_seconds() == pytest.approx(7200, abs=5)
    with pytest.raises(argparse.ArgumentTypeError, match="no time"):
        times.time("yesterday")
