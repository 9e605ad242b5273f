"""What an account may still do, as headers on every answer: `anthropic-ratelimit-*`, of the scope that has least left.

Names and form are Anthropic's (PROTOCOL.md, section 3). `tokens` is input and output together.
"""

from datetime import UTC, datetime
from functools import lru_cache

from libs.common.leases import Figures, Window
from services.gateway.headers import Headers


def headers(figures: Figures) -> Headers:
    """Three for each window that limits anything."""
    found: Headers = []
    _add(found, b"requests", figures.requests)
    _add(found, b"input-tokens", figures.input)
    _add(found, b"output-tokens", figures.output)
    if figures.input is not None and figures.output is not None:
        together = Window(
            figures.input.limit + figures.output.limit,
            figures.input.remaining + figures.output.remaining,
            max(figures.input.reset_s, figures.output.reset_s),
        )
        _add(found, b"tokens", together)
    return found


def _add(found: Headers, name: bytes, window: Window | None) -> None:
    if window is not None:
        found += (
            (b"anthropic-ratelimit-" + name + b"-limit", b"%d" % window.limit),
            (b"anthropic-ratelimit-" + name + b"-remaining", b"%d" % window.remaining),
            (b"anthropic-ratelimit-" + name + b"-reset", _time(window.reset_s)),
        )


@lru_cache(maxsize=256)
def _time(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
