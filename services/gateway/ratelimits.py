"""What an account may still do, as headers on every answer: `anthropic-ratelimit-*`, of the scope that has least left.

Names and form are Anthropic's (PROTOCOL.md, section 3). `tokens` is input and output together.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from libs.common.leases import Figures, Window
from services.gateway.headers import Headers

_Names = tuple[bytes, bytes, bytes]


def _names(window: bytes) -> _Names:
    prefix = b"anthropic-ratelimit-" + window
    return prefix + b"-limit", prefix + b"-remaining", prefix + b"-reset"


_REQUESTS: Final = _names(b"requests")
_INPUT: Final = _names(b"input-tokens")
_OUTPUT: Final = _names(b"output-tokens")
_TOKENS: Final = _names(b"tokens")


def headers(figures: Figures) -> Headers:
    """Three for each window that limits anything."""
    found: Headers = []
    _add(found, _REQUESTS, figures.requests)
    _add(found, _INPUT, figures.input)
    _add(found, _OUTPUT, figures.output)
    if figures.input is not None and figures.output is not None:
        together = Window(
            figures.input.limit + figures.output.limit,
            figures.input.remaining + figures.output.remaining,
            max(figures.input.reset_s, figures.output.reset_s),
        )
        _add(found, _TOKENS, together)
    return found


def _add(found: Headers, names: _Names, window: Window | None) -> None:
    if window is not None:
        limit, remaining, reset = names
        found += (
            (limit, b"%d" % window.limit),
            (remaining, b"%d" % window.remaining),
            (reset, _time(window.reset_s)),
        )


@lru_cache(maxsize=256)
def _time(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
