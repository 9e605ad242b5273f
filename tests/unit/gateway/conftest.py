"""What the gateway's unit tests leave behind is removed after each."""

from collections.abc import Iterator

import pytest

from tests.unit.gateway.exchanges import remove_spools


@pytest.fixture(autouse=True)
def no_spool_is_left() -> Iterator[None]:
    """Spools that a test made through `exchanges` are closed and removed."""
    yield
    remove_spools()
