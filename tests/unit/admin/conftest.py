"""What every test here may use."""

import pytest

from libs.common import sealing
from tests.unit.admin.desk import Desk


@pytest.fixture
def desk() -> Desk:
    """Operations on a log of their own, with a key for secrets."""
    return Desk.opened(sealing.new_key())
