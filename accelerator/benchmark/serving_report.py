"""The result of `serving.run` as Markdown, a table for each scenario, and as charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from .chart import _STYLE, WIDTH, _draw, _Panel, _text
from .report import _list, _machine, _table, format_value

__all__ = ["to_markdown", "to_svg"]


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, what failed, and the machine."""
    sections = [
        f"# {_engine(result)} as a server",
        _introduction(result),
        *(f"> **Warning:** {warning}" for warning in result["warnings"]),
        *(section for scenario in result["scenarios"].values() for section in _scenario(scenario)),
        "## Machine",
        _table(["", ""], _machine(result["machine"])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _engine(result: Mapping[str, Any]) -> str:
    engine = result["engine"]
    return engine["name"] + (f" {engine['size']}, random weights," if engine["size"] else "")


def _introduction(result: Mapping[str, Any]) -> str:
    machine, versions, plan = result["machine"], result["machine"]["versions"], result["plan"]
    hardware = machine["hardware"]
    parts = ", ".join(f"{name} {_runs_on(part)}" for name, part in result["engine"]["parts"].items())
    lines = (
        f"{hardware['brand']}, {hardware['usable_cores']} usable cores ({hardware['usable_cpus']:g} CPUs), "
        f"{hardware['os']}; PyTorch {versions['torch']}, ONNX Runtime {versions['onnxruntime']}. Parts: {parts}. "
        f"Median of {plan['rounds']} interleaved rounds, quartiles in brackets; {result['began'][:10]}. "
        f"A frame is {format_value(result['engine']['frame_s'], 's')} of audio."
    )
    if result["options"]["quick"]:
        lines += " **A quick run: it shows that everything works, its figures mean nothing.**"
    return lines


def _runs_on(part: Mapping[str, Any]) -> str:
    threads = part["threads"]
    words = [part["backend"], part["precision"], f"{threads} thread{'s' * (threads > 1)}" if threads else None]
    return " ".join(word for word in words if word)


def _scenario(scenario: Mapping[str, Any]) -> Iterable[str]:
    figures, rows = scenario["figures"], scenario["rows"]
    there = [f for f in figures if any(f["name"] in row for row in rows.values())]
    yield f"## {scenario['title']}"
    yield scenario["about"]
    if there:
        yield _table(
            ["", *(figure["label"] for figure in there)],
            [[item, *(_cell(row.get(f["name"])) for f in there)] for item, row in rows.items()],
        )
    yield _list(f"{'failed' if item == 'all' else f'{item} failed'}: {why}" for item, why in scenario["errors"].items())
    yield _list(scenario["notes"])


def _cell(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "–"
    unit = figures["unit"]
    text = format_value(figures["median"], unit)
    if figures["n"] < 2 or unit == "bytes" or figures["p25"] == figures["p75"]:
        return text
    low, high = format_value(figures["p25"], unit), format_value(figures["p75"], unit)
    if low.split()[1:] == high.split()[1:]:  # one unit for both
        low = low.split()[0]
    return f"{text} ({low}–{high})"


def to_svg(result: Mapping[str, Any]) -> str:
    """Bars of the figures that are charted, a panel for each."""
    panels = list(_panels(result))
    hardware = result["machine"]["hardware"]
    title = f"Serving on a CPU: {result['engine']['name']}" + (f" {s}" if (s := result["engine"]["size"]) else "")
    subtitle = (
        f"{hardware['brand']}, {hardware['usable_cores']} cores; median of {result['plan']['rounds']} interleaved "
        f"rounds, whiskers are quartiles; {result['began'][:10]}"
    )
    top = 62
    height = top + sum(panel.height for panel in panels)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}  rect {{ fill: #1f883d }}\n</style>",
        _text(16, 26, title, "title"),
        _text(16, 46, subtitle, "small"),
    ]
    for panel in panels:
        body += _draw(panel, top)
        top += panel.height
    return "\n".join([*body, "</svg>"]) + "\n"


def _panels(result: Mapping[str, Any]) -> Iterable[_Panel]:
    for scenario in result["scenarios"].values():
        for figure in scenario["figures"]:
            if figure["charted"]:
                longer = "longer" if figure["charted"] == "higher" else "shorter"
                title = f"{scenario['title']}: {figure['label']}, {longer} is better"
                bars = [(item, row.get(figure["name"])) for item, row in scenario["rows"].items()]
                yield _Panel(title, bars, None, "")
