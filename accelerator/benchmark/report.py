"""The result as Markdown: a table of measures by arms, then how and on what it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["document", "figures", "title", "to_markdown"]


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, speed-ups, failures, method and machine."""
    return document(title(result), figures(result), result, "## How it was measured", _list(_method(result)))


def document(title: str, figures: str, result: Mapping[str, Any], *more: str, said: Iterable[str] = ()) -> str:
    """A page of figures: on what they were measured before them, warnings too, and the machine at the end.

    said: further sentences of how they were measured.
    """
    sections = [
        f"# {title}",
        _introduction(result, *said),
        *(f"> **Warning:** {warning}" for warning in result["warnings"]),
        figures,
        *more,
        "## Machine",
        _table(["", ""], _machine(result["machine"])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    return f"Benchmark of {_engine(result)}"


def figures(result: Mapping[str, Any]) -> str:
    """The tables alone: measures by arms, speed-ups, what failed."""
    arms = result["arms"]
    sections = [
        _table(["", *map(_arm_title, arms)], _rows(result)),
        _captions(result),
        *_speed_ups(result),
        *_failures(arms),
    ]
    return "\n\n".join(section for section in sections if section)


def format_value(value: float, unit: str) -> str:
    """A figure for people: three significant digits and a fitting unit."""
    if unit == "bytes":
        return f"{_three(value / 2**30)} GiB" if value >= 2**30 else f"{_three(value / 2**20)} MiB"
    if unit == "s":
        return f"{_three(value * 1e3)} ms" if value < 1 else f"{_three(value)} s"
    return _three(value)


def _three(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _engine(result: Mapping[str, Any]) -> str:
    engine = result["engine"]
    return engine["name"] + (f" {engine['size']}, random weights" if engine["size"] else "")


def _introduction(result: Mapping[str, Any], *more: str) -> str:
    """What it was measured on, and how; more sentences behind that."""
    machine, plan = result["machine"], result["plan"]
    hardware, versions = machine["hardware"], machine["versions"]
    lines = (
        f"{hardware['brand']}, {hardware['usable_cores']} usable cores ({hardware['usable_cpus']:g} CPUs), "
        f"{hardware['os']}; PyTorch {versions['torch']}, ONNX Runtime {versions['onnxruntime']}. "
        f"Median of {plan['rounds']} interleaved rounds, quartiles in brackets; {result['began'][:10]}."
    )
    if result["options"]["quick"]:
        more += ("**A quick run: it shows that everything works, its figures mean nothing.**",)
    return " ".join((lines, *more))


def _arm_title(name: str) -> str:
    return {"as-shipped": "engine as shipped (`as-shipped`)"}.get(name, f"`{name}`")


def _rows(result: Mapping[str, Any]) -> Iterable[list[str]]:
    for row in result["metrics"]:
        cells = [arm["metrics"].get(row["name"]) for arm in result["arms"].values()]
        if not any(cells):
            continue
        label = f"&nbsp;&nbsp;of which {row['label']}" if row["part_of"] else f"**{row['label']}**"
        spread = row["part_of"] is None and row["unit"] in ("s", "ratio")
        yield [label, *(_cell(cell, spread) for cell in cells)]


def _cell(figures: Mapping[str, Any] | None, spread: bool) -> str:
    if figures is None:
        return "–"
    unit = figures["unit"]
    text = format_value(figures["median"], unit)
    if not spread or figures["n"] < 2:
        return text
    low, high = format_value(figures["p25"], unit), format_value(figures["p75"], unit)
    if low.split()[1:] == high.split()[1:]:  # one unit for both
        low = low.split()[0]
    return f"{text} ({low}–{high})"


def _captions(result: Mapping[str, Any]) -> str:
    frame_s = result["engine"]["frame_s"]
    if not frame_s:
        return ""
    return (
        f"Real time is a factor below 1, and at most {format_value(frame_s, 's')} a frame for language model and codec "
        "together. The rest of a frame is embedding and Python, and in PyTorch also sampling."
    )


def _speed_ups(result: Mapping[str, Any]) -> Iterable[str]:
    titles = {
        "over_as_shipped": "Speed-up over the engine as shipped",
        "over_right_sized": "Speed-up over PyTorch with a right-sized cache",
    }
    if result["engine"]["as_shipped"] == "same":
        yield (
            "This engine sizes its cache to the request by itself, so as shipped it *is* PyTorch with a right-sized "
            "cache: there is no slower baseline."
        )
    for name, title in titles.items():
        arms = result["ratios"][name]
        rows = [
            [row["label"], *(_cell(arm.get(row["name"]), True) for arm in arms.values())]
            for row in result["metrics"]
            if any(row["name"] in arm for arm in arms.values())
        ]
        if rows:
            yield f"## {title}"
            yield _table(["times less", *map(_arm_title, arms)], rows)


def _failures(arms: Mapping[str, Any]) -> Iterable[str]:
    items = [
        f"`{name}`{'' if what == 'arm' else f', {what}'}: {reason}"
        for name, arm in arms.items()
        for what, reason in arm["errors"].items()
    ]
    if items:
        yield "## What failed"
        yield _list(items)


def _method(result: Mapping[str, Any]) -> Iterable[str]:
    plan = result["plan"]
    yield (
        "Every arm runs in a process of its own and only one works at a time, so that threads and memory of one do not "
        "disturb another."
    )
    if result["method"]["resident"]:
        yield "All arms stay in memory; each round takes one measure after the other, each through all arms."
    else:
        yield "Memory holds one arm at a time: each round starts one arm after the other anew and takes all measures."
    yield (
        "Each process does everything once before it is timed. Speed-ups are computed round by round, between figures "
        "taken beside each other, and summarised then; so they need not equal the quotient of two medians."
    )
    yield (
        f"A frame's time is the mean over {plan['frames']} decode steps behind a synthetic prompt of text and "
        "a voice's frames; prefill is the time until the first frame is there."
    )
    yield (
        f"End to end speaks one sentence {_length(result)}, through the engine's own call (as shipped) or "
        "`UniversalOptimizer.synthesize`, without a seed; the factor is elapsed time over audio time, with actual "
        "lengths."
    )
    yield (
        "Load is from the start of a fresh process, imports included, to a ready engine, with exports in the cache. "
        "Peak memory is that of the arm's whole process, over all measures; file-mapped pages are shared and can be "
        "dropped."
    )
    for name, arm in result["arms"].items():
        if arm["threads"]:
            spins = arm["spin_us"]
            threads = (
                f"{k} {v}{f' (spinning {spins[k]} µs)' if spins.get(k) else ''}" for k, v in arm["threads"].items()
            )
            yield f"`{name}` threads: " + ", ".join(threads) + "."
        wanted = {"speak": _sentence(result)}
        fewer = {c: n for c, n in arm["frames_a_round"].items() if n < wanted.get(c, plan["frames"])}
        if fewer:
            steps = ", ".join(f"{n} end to end" if c == "speak" else f"{n} at context {c}" for c, n in fewer.items())
            yield f"`{name}` is slow and was given fewer decode steps a round: {steps}."
        for note in arm["notes"]:
            yield f"`{name}`: {note}."


def _sentence(result: Mapping[str, Any]) -> int:
    """Frames of the sentence, for an arm that has time for all of it."""
    plan, frame_s = result["plan"], result["engine"]["frame_s"]
    read = plan.get("text_s") is not None and frame_s
    return round(plan["text_s"] / frame_s) if read else int(plan["frames"])


def _length(result: Mapping[str, Any]) -> str:
    plan, frames = result["plan"], _sentence(result)
    if plan.get("text_s") is None:
        return f"for {frames} frames"
    return f"of {len(plan['text'].split())} words for as long as it would be read ({frames} frames)"


def _machine(machine: Mapping[str, Any]) -> Iterable[list[str]]:
    yield from (list(row) for row in machine["rows"])
    yield ["Versions", ", ".join(f"{k} {v}" for k, v in machine["versions"].items())]
    if machine["environment"]:
        yield ["Environment", ", ".join(f"{k}={v}" for k, v in machine["environment"].items())]
    if machine["load_average"]:
        yield ["Load before", ", ".join(f"{v:g}" for v in machine["load_average"])]
    if machine["others_cpus"] is not None:
        yield ["Busy with something else", f"{machine['others_cpus']:g} CPUs on average during the run"]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] + ["---:" if len(head) > 2 else "---"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items)
