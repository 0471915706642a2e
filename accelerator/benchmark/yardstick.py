"""The language model's backbone beside llama.cpp: `accelerator bench llama-cpp`.

    result = run(BenchOptions(size="s1-mini", **DEFAULTS), report=print)    # JSON-able
    print(to_markdown(result))

The export's graph and llama.cpp get the same weights and inputs and as many threads; see `llama_cpp.compare`.
Everything happens in this process, whose memory holds all arms at once.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import kernels
from ..cache import ContentCache
from ..errors import EngineError, ExportError
from ..export.component import export_beside, export_component
from ..export.graph.causal import NAME
from ..export.graph.specs import CausalSpec
from ..hardware import choose_tier, detect
from ..parts.backends import is_compiled
from ..parts.causal import CAUSAL, exported_spec
from ..parts.graphs import LANGUAGE_MODEL, PREFILL
from ..runtime.options import SHORT_SPIN_US, RunOptions
from . import llama_cpp
from .arms import open_adapter
from .llama_cpp import Graphs
from .plan import BenchOptions, Plan
from .record import Record
from .report import _cell, _engine, _list, _table, document
from .statistics import ratio

__all__ = ["DEFAULTS", "SCHEMA", "figures", "run", "title", "to_markdown"]

SCHEMA = 1
DEFAULTS: Mapping[str, Any] = {"precisions": ("int4", "int8"), "contexts": (200, 600, 1500)}
_KINDS: Mapping[str, llama_cpp.Kind] = {"int4": "q4_0", "int8": "q8_0", "fp32": "f32"}
_NO_FLASH = ", no flash attention"
_MEASURES = {"step": "step at context {}", "prompt": "prompt of {} positions"}


def run(options: BenchOptions, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure, which takes minutes, and return the JSON-able result. report: told each step in one line.

    `frames` steps are taken at each context and round. A precision that cannot be exported is in the result with its
    reason. Raises EngineError without llama.cpp or for an engine without a backbone, ExportError if there is no export.
    """
    if reason := llama_cpp.missing():
        raise EngineError(reason)
    plan, record = Plan.of(options), Record("accelerator-llama-cpp-benchmark", SCHEMA, report)
    adapter = open_adapter(plan, options.checkpoint)
    backbone = getattr(adapter, "backbone", None)
    if backbone is None:
        raise EngineError(f"{adapter.name} has no language model that llama.cpp could be given, too")
    spec, weights = backbone()
    graphs, errors = _exports(plan, adapter, report)
    if isinstance(spec, CausalSpec):  # whose head an export may have cut, or not
        spec = exported_spec(next(iter(graphs.values())).steps.parent)
    tier = choose_tier(detect())
    settings = RunOptions(threads=options.threads or tier.threads, spin_us=SHORT_SPIN_US)
    report(f"measuring {', '.join(graphs)} and llama.cpp with {settings.threads} threads")
    figures = llama_cpp.compare(
        spec,
        weights,
        graphs,
        settings,
        kinds=[_KINDS[precision] for precision in graphs],
        contexts=plan.contexts,
        rounds=plan.rounds,
        steps=plan.frames,
    )
    return record.result(
        plan.to_dict(),
        engine={"name": adapter.name, "size": plan.size if options.checkpoint is None else None},
        llama_cpp=importlib.metadata.version("llama-cpp-python"),
        threads=settings.threads,
        figures=figures,
        ratios={measure: _times(by_arm, graphs) for measure, by_arm in figures.items()},
        ratios_of_8_bits={measure: _times(by_arm, graphs, ", q8_0 head") for measure, by_arm in figures.items()},
        shares={measure: _shares(by_arm, graphs) for measure, by_arm in figures.items()},
        errors=errors,
    )


def _exports(plan: Plan, adapter: Any, report: Callable[[str], None]) -> tuple[dict[str, Graphs], dict[str, str]]:
    """Precision -> its graphs, and what became of the others."""
    options, cache = plan.options, ContentCache(plan.options.cache_dir)
    components = {c.name: c for part in adapter.parts() for c in part.components}
    model, name = (components[CAUSAL], NAME) if CAUSAL in components else (components[LANGUAGE_MODEL], "slow")
    graphs: dict[str, Graphs] = {}
    errors: dict[str, str] = {}
    failure = ExportError("no precision was asked for: name one")
    for precision in options.precisions:
        report(f"exporting {precision}, unless it is in the cache")
        try:
            export = export_component(model, precision, cache, proof=options.proof)
            export.entry.verified()
        except ExportError as error:
            failure, errors[precision] = error, str(error)
            report(f"{precision} failed: {error}")
        else:
            beside = export_beside(components[PREFILL], export, cache) if PREFILL in components else None
            prefill = None if beside is None else beside.path / f"{PREFILL}_{name}.onnx"
            compiled = kernels.available() and is_compiled(export.proof)
            graphs[precision] = Graphs(export.path / f"{name}.onnx", prefill, compiled)
    if not graphs:
        raise failure
    return graphs, errors


def _times(by_arm: Mapping[str, Any], precisions: Iterable[str], head: str = "") -> dict[str, Any]:
    """Precision -> how many times less it needs than llama.cpp's better setting, round by round. head: of its file, as
    arms are called."""
    times = {}
    for precision in precisions:
        theirs = f"llama.cpp {_KINDS[precision]}{head}"
        others = [by_arm[name] for name in (theirs, f"{theirs}{_NO_FLASH}") if name in by_arm]
        if others:
            best = min(others, key=lambda figures: float(figures["median"]))
            times[precision] = ratio(best["values"], by_arm[precision]["values"])
    return times


def _shares(by_arm: Mapping[str, Any], precisions: Iterable[str]) -> dict[str, Any]:
    """Precision -> of the pace at which the same bytes can be read, round by round."""
    return {
        precision: ratio(reading["values"], by_arm[precision]["values"])
        for precision in precisions
        if (reading := by_arm.get(f"reading {precision}")) is not None
    }


def to_markdown(result: Mapping[str, Any]) -> str:
    """The figures of `run`: medians with quartiles, and quotients with llama.cpp's better setting."""
    how = (
        f"The same weights and inputs, {result['threads']} threads, and huge pages on both sides where the system "
        f"has them. A step's time is the mean over {result['plan']['frames']} steps behind so many positions. "
        "llama.cpp is there as it chooses by itself and without flash attention; *times less* compares with "
        "whichever is faster, round by round."
    )
    if any(result.get("ratios_of_8_bits", {}).values()):
        how += (
            " `q8_0 head` is the file as llama-quantize writes it, which keeps the head of such a model in eight bits."
        )
    if any(result.get("shares", {}).values()):
        how += " *Of reading* is how long the same threads take to read the same bytes, as a part of the step."
    return document(title(result), figures(result), result, how, said=[f"llama-cpp-python {result['llama_cpp']}."])


def title(result: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    precisions = " and ".join(next(iter(result["ratios"].values())))
    return f"The language model of {_engine(result)} in {precisions}, beside llama.cpp"


def figures(result: Mapping[str, Any]) -> str:
    """The table alone, and what failed."""
    ratios = result["ratios"]
    precisions = list(next(iter(ratios.values())))
    head, rows = [""], [[_title(measure)] for measure in ratios]
    for precision in precisions:
        for column, cells in _columns(result, precision):
            head.append(column)
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell)
    failed = _list(f"`{precision}` failed: {reason}" for precision, reason in result["errors"].items())
    return "\n\n".join(section for section in (_table(head, rows), failed) if section)


def _columns(result: Mapping[str, Any], precision: str) -> Iterator[tuple[str, list[str]]]:
    """Of a precision: what llama.cpp needs, what it needs itself, and the quotients."""
    measures = result["figures"]
    for arm in next(iter(measures.values())):
        if arm == precision or arm.startswith(f"llama.cpp {_KINDS[precision]}"):
            yield f"`{arm}`", [_cell(by_arm[arm], True) for by_arm in measures.values()]
    yield f"`{precision}`: times less", [_cell(times[precision], True) for times in result["ratios"].values()]
    for key, name in (("ratios_of_8_bits", "times less than with a `q8_0 head`"), ("shares", "of reading")):
        given = result.get(key, {})  # records of earlier versions have none
        if any(precision in by_precision for by_precision in given.values()):
            cells = [given[measure].get(precision) for measure in measures]
            yield f"`{precision}`: {name}", ["" if cell is None else _cell(cell, True) for cell in cells]


def _title(measure: str) -> str:
    kind, _, positions = measure.partition("_")
    return _MEASURES[kind].format(positions)
