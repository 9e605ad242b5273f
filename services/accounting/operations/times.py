"""Times as an operator writes them."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from libs.common import clock

_AGO: Final = re.compile(r"(\d{1,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def time(text: str) -> datetime:
    """RFC 3339, or how long ago: `90s`, `15m`, `2h`, `3d`. Raises ArgumentTypeError."""
    if ago := _AGO.fullmatch(text):
        return clock.utc_now() - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 2026-11-25T14:00:00Z, or how long ago: 2h") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
