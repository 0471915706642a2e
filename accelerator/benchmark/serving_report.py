"""The result of `serving.run` as Markdown, a table for each scenario, and as charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .chart import Panel, drawing
from .report import _cell, _list, _table, document, format_value

__all__ = ["figures", "title", "to_markdown", "to_svg"]


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, what failed, and the machine."""
    engine = result["engine"]
    parts = ", ".join(f"{name} {_runs_on(part)}" for name, part in engine["parts"].items())
    said = f"Parts: {parts}.", f"A frame is {format_value(engine['frame_s'], 's')} of audio."
    return document(title(result), figures(result), result, said=said)


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"{_engine(result)} as a server"


def figures(result: Mapping[str, Any]) -> str:
    """The tables alone, one for each scenario."""
    sections = (section for scenario in result["scenarios"].values() for section in _scenario(scenario))
    return "\n\n".join(section for section in sections if section)


def _engine(result: Mapping[str, Any]) -> str:
    engine = result["engine"]
    return engine["name"] + (f" {engine['size']}, random weights," if engine["size"] else "")


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
            [[item, *(_figure(row.get(f["name"])) for f in there)] for item, row in rows.items()],
        )
    yield _list(f"{'failed' if item == 'all' else f'{item} failed'}: {why}" for item, why in scenario["errors"].items())
    yield _list(scenario["notes"])


def _figure(figures: Mapping[str, Any] | None) -> str:
    spread = figures is not None and figures["unit"] != "bytes" and figures["p25"] != figures["p75"]
    return _cell(figures, spread)


def to_svg(result: Mapping[str, Any]) -> str:
    """Bars of the figures that are charted, a panel for each."""
    title = f"Serving on a CPU: {result['engine']['name']}" + (f" {s}" if (s := result["engine"]["size"]) else "")
    return drawing(result, title, list(_panels(result)), "  rect { fill: #1f883d }\n")


def _panels(result: Mapping[str, Any]) -> Iterable[Panel]:
    for scenario in result["scenarios"].values():
        for figure in scenario["figures"]:
            if figure["charted"]:
                longer = "longer" if figure["charted"] == "higher" else "shorter"
                title = f"{scenario['title']}: {figure['label']}, {longer} is better"
                bars = [(item, row.get(figure["name"])) for item, row in scenario["rows"].items()]
                yield Panel(title, bars, None, "")
