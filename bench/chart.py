"""bench/results.svg: CPU per request as bars, one panel a workload, each with a scale of its own; readable on light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from bench.workloads import JSON, NAMES, PLAIN, RELAY, SSE, Measured, Results

_WIDTH: Final = 860
_LABEL: Final = 90
_VALUE: Final = 190
_BAR: Final = 18
_STEP: Final = 24
_TITLE: Final = 34
_TEXT: Final = "#7d8590"
"""Of a contrast that is enough on white and on black."""
_COLOURS: Final = {
    "nginx": "#57ab5a",
    "caddy": "#3192aa",
    "relay": "#e0823d",
    "litellm": "#9a7ee8",
    "portkey": "#d1619d",
}


@dataclass(frozen=True)
class Bar:
    """What a request costs a proxy."""

    cost_us: float
    to_caddy: float
    """The ratio that the table shows."""


@dataclass(frozen=True)
class Panel:
    """A title, and a bar for each proxy."""

    title: str
    bars: dict[str, Bar]


def panels(results: Results) -> list[Panel]:
    """The plain proxies beside the gateway; then, on a scale of their own, the peers beside both."""
    plain = [Panel(one.workload.title, _bars(one, (*PLAIN, RELAY))) for one in results.measured]
    peers = [
        Panel(f"{one.workload.title}: beside gateways of its kind", _bars(one, tuple(NAMES)))
        for one in results.measured
        if one.workload.name in (JSON, SSE) and one.runs.keys() - {*PLAIN, RELAY}
    ]
    return plain + peers


def drawn(results: Results) -> str:
    """The picture."""
    body, y = [], 30
    for panel in panels(results):
        body += _panel(panel, y)
        y += _TITLE + len(panel.bars) * _STEP
    size = f'width="{_WIDTH}" height="{y + 10}" viewBox="0 0 {_WIDTH} {y + 10}"'
    title = "CPU per request, µs (median; the number behind it: times Caddy's)"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13" role="img">',
            f"<title>{escape(title)}</title>",
            _text(0, 16, title, weight="bold"),
            *body,
            "</svg>",
            "",
        ]
    )


def _panel(panel: Panel, y: int) -> list[str]:
    longest = max(bar.cost_us for bar in panel.bars.values())
    lines = [_text(0, y + 22, panel.title, weight="bold")]
    for number, (name, bar) in enumerate(panel.bars.items()):
        top = y + _TITLE + number * _STEP - 4
        length = max(1.0, bar.cost_us / longest * (_WIDTH - _LABEL - _VALUE))
        label = f"{bar.cost_us:,.0f}" + ("" if name == "caddy" else f" ({bar.to_caddy:,.2f} ×)")
        lines += [
            _text(0, top + 13, NAMES[name]),
            f'<rect x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{_COLOURS[name]}"/>',
            _text(round(_LABEL + length + 8), top + 13, label),
        ]
    return lines


def _text(x: int, y: int, text: str, *, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" fill="{_TEXT}" font-weight="{weight}">{escape(text)}</text>'


def _bars(measured: Measured, names: Sequence[str]) -> dict[str, Bar]:
    return {
        name: Bar(measured.spread(name).median, measured.ratio(name, "caddy").median)
        for name in names
        if name in measured.runs
    }
