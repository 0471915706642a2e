"""The result as an SVG bar chart: time per frame at each context, and the real-time factor. No dependency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from .report import format_value

__all__ = ["Panel", "drawing", "to_svg"]

WIDTH, LEFT, RIGHT = 860, 190, 90  # labels left of the bars, values right of them
BAR, GAP, HEAD, FOOT = 20, 8, 46, 40
_LOG_FROM = 12.0  # the largest bar is this many times the smallest: a linear axis would hide the smallest

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px }
  .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #8b949e; stroke-opacity: .3 }
  .whisker { stroke: #59636e; stroke-width: 1.5 }
  .limit { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 5 3 }
  .limit-label { font-size: 11px; fill: #cf222e }
  .as-shipped { fill: #9a6700 } .pytorch { fill: #bf8700 } .onnxruntime { fill: #1f883d }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .whisker { stroke: #9198a1 }
    .limit { stroke: #f85149 } .limit-label { fill: #f85149 }
    .as-shipped { fill: #9e6a03 } .pytorch { fill: #d29922 } .onnxruntime { fill: #3fb950 }
  }
"""


@dataclass(frozen=True)
class Panel:
    """One group of bars. bars: (arm, figures or None if it failed). limit: where real time is, in the bars' unit."""

    title: str
    bars: list[tuple[str, Mapping[str, Any] | None]]
    limit: float | None
    limit_label: str

    @property
    def height(self) -> int:
        return HEAD + len(self.bars) * (BAR + GAP) + FOOT


def to_svg(result: Mapping[str, Any]) -> str:
    """A chart of `run`'s result; shorter bars are better, red lines are real time."""
    size = result["engine"]["size"]
    title = f"Speech on a CPU: {result['engine']['name']}{f' {size}' if size else ''}, shorter is better"
    return drawing(result, title, _panels(result))


def drawing(result: Mapping[str, Any], title: str, panels: Sequence[Panel], style: str = "") -> str:
    """The panels below each other, under a title and what the result was measured on. style: more rules."""
    hardware, plan = result["machine"]["hardware"], result["plan"]
    subtitle = (
        f"{hardware['brand']}, {hardware['usable_cores']} cores; median of {plan['rounds']} interleaved rounds, "
        f"whiskers are quartiles; {result['began'][:10]}"
    )
    top = 62
    height = top + sum(panel.height for panel in panels)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}{style}</style>",
        _text(16, 26, title, "title"),
        _text(16, 46, subtitle, "small"),
    ]
    for panel in panels:
        body += _draw(panel, top)
        top += panel.height
    return "\n".join([*body, "</svg>"]) + "\n"


def _panels(result: Mapping[str, Any]) -> list[Panel]:
    frame_s = result["engine"]["frame_s"]
    wanted = [
        (f"frame_{context}", f"One frame at context {context}", frame_s, f"real time, {format_value(frame_s, 's')}")
        if frame_s
        else (f"frame_{context}", f"One frame at context {context}", None, "")
        for context in result["plan"]["contexts"]
    ]
    wanted.append(("rtf", "End-to-end real-time factor: elapsed time / audio time", 1.0, "real time"))
    panels = []
    for metric, title, limit, label in wanted:
        bars = [(name, arm["metrics"].get(metric)) for name, arm in result["arms"].items()]
        panels.append(Panel(title, bars, limit, label))
    return panels


def _draw(panel: Panel, top: int) -> list[str]:
    values = [f[k] for _, f in panel.bars if f is not None for k in ("median", "p25", "p75")]
    medians = [f["median"] for _, f in panel.bars if f is not None]
    if not medians:
        return [
            _text(16, top + 20, panel.title, "title"),
            _text(LEFT, top + HEAD + 15, "nothing was measured", "small"),
        ]
    low, high = min([*values, panel.limit or math.inf]), max([*values, panel.limit or 0])
    logarithmic = max(medians) / max(min(medians), 1e-12) > _LOG_FROM
    axis = _Axis(low, high, logarithmic)
    unit = next(f["unit"] for _, f in panel.bars if f is not None)
    bottom = top + HEAD + len(panel.bars) * (BAR + GAP)
    parts = [_text(16, top + 20, panel.title + (" (logarithmic axis)" if logarithmic else ""), "title")]
    for tick in axis.ticks:
        x = axis(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{top + HEAD - 6}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, format_tick(tick, unit), "small", "middle"))
    for i, (name, figures) in enumerate(panel.bars):
        y = top + HEAD + i * (BAR + GAP)
        parts.append(_text(LEFT - 10, y + 15, name, "", "end"))
        if figures is None:
            parts.append(_text(LEFT + 6, y + 15, "failed or not measured", "small"))
            continue
        x, x25, x75 = (axis(figures[k]) for k in ("median", "p25", "p75"))
        colour = name if name == "as-shipped" else name.partition("-")[0]
        width = max(1.0, x - LEFT)
        middle = y + BAR / 2
        parts.append(f'<rect class="{colour}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>')
        parts.append(f'<line class="whisker" x1="{x25:.1f}" y1="{middle}" x2="{x75:.1f}" y2="{middle}"/>')
        parts.append(_text(max(x, x75) + 6, y + 15, format_value(figures["median"], unit)))
    if panel.limit is not None:
        x = axis(panel.limit)
        parts.append(f'<line class="limit" x1="{x:.1f}" y1="{top + HEAD - 10}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, top + HEAD - 14, panel.limit_label, "limit-label", "middle"))
    return parts


class _Axis:
    """Value -> x coordinate, linear from zero or logarithmic over whole decades."""

    def __init__(self, low: float, high: float, logarithmic: bool) -> None:
        self._logarithmic = logarithmic
        if logarithmic:
            first, last = math.floor(math.log10(low) - 0.2), math.ceil(math.log10(high))
            self._low, self._high = float(first), float(max(last, first + 1))
            self.ticks = [10.0**k for k in range(first, int(self._high) + 1)]
        else:
            step = _round_step(high / 5)
            count = math.ceil(high / step)
            self._low, self._high = 0.0, step * count
            self.ticks = [step * k for k in range(count + 1)]

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self._logarithmic else value
        return LEFT + (WIDTH - LEFT - RIGHT) * (place - self._low) / (self._high - self._low)


def _round_step(step: float) -> float:
    """The next larger 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step * (1 - 1e-9))


def format_tick(value: float, unit: str) -> str:
    """A round number and its unit: 50 ms, 2 s, 0.5."""
    if unit == "s":
        return f"{value * 1e3:g} ms" if 0 < value < 1 else f"{value:g} s" if value else "0"
    return f"{value:g}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{style} text-anchor="{anchor}">{escape(text)}</text>'
