"""Charts as SVG, drawn by hand: no more is needed, and nothing has to be installed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Colours that are told apart in print, in the dark and by the colour-blind.
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600; font-size: 14px }
.grid { stroke: #ddd; stroke-width: 1 }
.a { stroke: #0072b2; fill: #0072b2 } .b { stroke: #d55e00; fill: #d55e00 }
polyline { fill: none !important; stroke-width: 2 }
.b-line { stroke-dasharray: 5 3 }
.bar { fill: #0072b2 } .behind { fill: #d55e00 }
@media (prefers-color-scheme: dark) {
  .back { fill: #161b22 } text { fill: #ddd } .grid { stroke: #333 }
  .a { stroke: #56b4e9; fill: #56b4e9 } .b { stroke: #e69f00; fill: #e69f00 }
  .bar { fill: #56b4e9 } .behind { fill: #e69f00 }
}
</style>"""
_PANEL_W, _PANEL_H = 220, 170
_LEFT, _TOP, _GAP = 46, 62, 64
_BAR_H = 20
_LABEL_W, _BARS_W = 230, 420


@dataclass(frozen=True)
class Panel:
    """One shape: sizes, and microseconds per task of flowrun and of the floor."""

    title: str
    sizes: Sequence[int]
    ours: Sequence[float]
    theirs: Sequence[float]


def panels(title: str, shown: Sequence[Panel]) -> str:
    """Return a chart of small ones side by side, all with the same axes."""
    values = [value for panel in shown for value in (*panel.ours, *panel.theirs)]
    top = max(values) * 1.1
    sizes = sorted({size for panel in shown for size in panel.sizes})
    width = _LEFT + len(shown) * (_PANEL_W + _GAP)
    parts = [
        _text(_LEFT, 20, title, "title"),
        f'<path class="a" d="M{_LEFT} 36h24" stroke-width="2"/>',
        _text(_LEFT + 30, 40, "flowrun"),
        f'<path class="b b-line" d="M{_LEFT + 100} 36h24" stroke-width="2"/>',
        _text(_LEFT + 130, 40, "floor, hand-written"),
    ]
    for number, panel in enumerate(shown):
        parts += _panel(panel, _LEFT + number * (_PANEL_W + _GAP), top, sizes, first=not number)
    return _svg(width, _TOP + _PANEL_H + 44, parts, title)


def _panel(
    panel: Panel, left: float, top: float, sizes: Sequence[int], *, first: bool
) -> list[str]:
    def x(size: int) -> float:
        spread = math.log(sizes[-1] / sizes[0]) or 1.0
        return left + _PANEL_W * math.log(size / sizes[0]) / spread

    def y(value: float) -> float:
        return _TOP + _PANEL_H * (1 - value / top)

    parts = [_text(left, _TOP - 6, panel.title)]
    step = _step(top)
    for tick in range(int(top / step) + 1):
        height = y(tick * step)
        parts.append(
            f'<line class="grid" x1="{left}" y1="{height:.1f}" x2="{left + _PANEL_W}"'
            f' y2="{height:.1f}"/>'
        )
        if first:
            parts.append(_text(left - 6, height + 4, f"{tick * step:g}", anchor="end"))
    parts += [_text(x(size), _TOP + _PANEL_H + 18, f"{size:,}", anchor="middle") for size in sizes]
    for values, kind in ((panel.theirs, "b"), (panel.ours, "a")):
        points = [(x(size), y(value)) for size, value in zip(panel.sizes, values, strict=True)]
        joined = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline class="{kind} {kind}-line" points="{joined}"/>')
        parts += [
            f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="3"/>'
            for across, down in points
        ]
    if first:
        parts.append(_text(left, _TOP + _PANEL_H + 36, "microseconds per task, by number of tasks"))
    return parts


def bars(title: str, shown: Sequence[tuple[str, float]]) -> str:
    """Return bars on a logarithmic axis; what is below 1 is drawn as being behind."""
    most = max(10.0, *(value for _, value in shown))
    least = min(1.0, *(value for _, value in shown))
    span = math.log10(most / least)

    def x(value: float) -> float:
        return _LABEL_W + _BARS_W * math.log10(value / least) / span

    parts = [_text(10, 20, title, "title")]
    bottom = 44 + len(shown) * (_BAR_H + 6)
    for power in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1):
        across = x(10**power)
        parts += [
            f'<line class="grid" x1="{across:.1f}" y1="36" x2="{across:.1f}" y2="{bottom}"/>',
            _text(across, bottom + 16, f"{10**power:g} x", anchor="middle"),
        ]
    for number, (label, value) in enumerate(shown):
        top = 40 + number * (_BAR_H + 6)
        start, end = sorted((x(1.0), x(value)))
        kind = "bar" if value >= 1 else "behind"
        size = f'width="{max(end - start, 1):.1f}" height="{_BAR_H}"'
        parts += [
            _text(_LABEL_W - 8, top + 14, label, anchor="end"),
            f'<rect class="{kind}" x="{start:.1f}" y="{top}" {size}/>',
            _text(end + 6, top + 14, f"{value:.2g}" if value < 10 else f"{value:,.0f}"),
        ]
    return _svg(_LABEL_W + _BARS_W + 60, bottom + 28, parts, title)


def _step(top: float) -> float:
    """Return a round distance of about a fifth of the height."""
    rough = top / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(title)}">'
    )
    back = f'<rect class="back" width="{width:.0f}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([head, _STYLE, back, *parts, "</svg>", ""])
