"""The loss curves as one SVG picture, drawn by hand: no plotting package is worth a dependency here."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ..errors import ReferenceEngineError

__all__ = ["curves", "draw", "plot"]

_SHOWN = {
    "codec": ("spectra", "valid_spectra", "usage", "judge", "matching"),
    "decoder": ("spectra", "valid_spectra", "judge", "matching"),
    "language-model": ("semantic", "valid_semantic", "codes", "valid_codes"),
}
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
_WIDTH, _HEIGHT, _MARGIN = 760, 300, 48

Points = Sequence[tuple[float, float]]


def plot(work: Path) -> Path:
    """Draw what has been trained so far; the picture's path. Raises ReferenceEngineError if there is nothing."""
    panels = {}
    for name, shown in _SHOWN.items():
        path = work / name / "losses.csv"
        if path.is_file():
            found = curves(path)
            panels[name] = {curve: found[curve] for curve in shown if curve in found}
    if not panels:
        raise ReferenceEngineError(f"no losses in {work}: train first")
    picture = work / "losses.svg"
    picture.write_text(draw(panels), encoding="utf-8")
    return picture


def curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """losses.csv -> (step, value) of each name."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for step, _, name, value in csv.reader(file):
            found.setdefault(name, []).append((float(step), float(value)))
    return found


def draw(panels: Mapping[str, Mapping[str, Points]]) -> str:
    """One panel below the other, each with a logarithmic axis."""
    body = "".join(
        f'<g transform="translate(0 {i * _HEIGHT})">{_panel(name, lines)}</g>'
        for i, (name, lines) in enumerate(panels.items())
    )
    size = f'width="{_WIDTH}" height="{_HEIGHT * len(panels)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">{body}</svg>\n'


def _panel(name: str, lines: Mapping[str, Points]) -> str:
    points = [(x, math.log10(y)) for line in lines.values() for x, y in line if y > 0]
    if not points:
        return ""
    right = max(x for x, _ in points)
    low, high = math.floor(min(y for _, y in points) * 4) / 4, math.ceil(max(y for _, y in points) * 4) / 4

    def place(x: float, y: float) -> str:
        across = _MARGIN + (_WIDTH - 4 * _MARGIN) * x / right
        down = _HEIGHT - _MARGIN + (2 * _MARGIN - _HEIGHT) * (y - low) / max(high - low, 0.25)
        return f"{across:.1f},{down:.1f}"

    parts = [f'<text x="{_MARGIN}" y="24" font-weight="bold">{escape(name)}, over {right:.0f} steps</text>']
    for quarter in range(round((high - low) * 4) + 1):
        y = low + quarter / 4
        (x0, y0), (x1, _) = (place(x, y).split(",") for x in (0.0, right))
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y0}" stroke="#ddd"/>')
        parts.append(f'<text x="4" y="{y0}">{10**y:.3g}</text>')
    for i, (curve, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(place(x, math.log10(y)) for x, y in line if y > 0)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(f'<text x="{_WIDTH - 3 * _MARGIN + 8}" y="{60 + 18 * i}" fill="{colour}">{escape(curve)}</text>')
    return "".join(parts)
