"""The parts that all dual autoregressive engines share; an adapter adds its weights, its seam and its rules."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..errors import BadOutput, SessionError
from ..export import proof
from ..export.component import Component, Export, Progress, ProgressEvent
from ..export.graph import dual_ar as graphs
from ..export.graph import fitting, graph, quantize
from ..export.graph.dual_ar import DualARSpec, KVRanges, Weights, build_fast, build_slow
from ..export.graph.quantize import BY_ROW, RECIPES, Recipe
from ..export.proof import BARS, Bar, Trace, compare_arrays, compare_logits, replay
from ..export.sources import source_of
from ..hardware import detect
from ..hardware.pages import huge_pages
from ..inference import embeddings as tables
from ..inference import transformer
from ..inference.batcher import DualARDecoder
from ..inference.compiled import open_graphs
from ..inference.embeddings import write_table
from ..inference.transformer import Embeddings, Runner
from ..runtime.onnx import Session
from ..runtime.options import SHORT_SPIN_US, RunOptions
from .backends import compiled_kernels, onnx_runtime
from .part import Backend, Call

__all__ = [
    "EMBEDDINGS",
    "LANGUAGE_MODEL",
    "is_compiled",
    "language_model_backends",
    "language_model_components",
    "load_language_model",
]

EMBEDDINGS, LANGUAGE_MODEL = "embeddings", "text2semantic"
_TABLES = ("embeddings", "codebook_embeddings", "fast_embeddings")
_PROOF_THREADS = 2
_ROUNDING = 1.1  # how much further from PyTorch other rounding of the same weights may be, where these miss the bar
WIDE = "wide_"  # names graphs in integers by rows
COMPILED = "compiled.json"  # says that compiled kernels answer to these graphs' weights as they should


_HERE = (str(Path(__file__)), source_of(proof))  # bars too: what was rejected by others is to be judged anew


def language_model_components(
    spec: DualARSpec,
    weights: Weights,
    identity: Callable[[], str],
    trace: Callable[[], Trace],
    *,
    dtype: str = "fp32",
    wide: bool | None = None,
    compiled: bool | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> tuple[Component, Component]:
    """The embedding tables and the graphs of a dual autoregressive model.

    weights: called while exporting only. trace: PyTorch's answers, recorded once and kept for all precisions. dtype:
    what the engine computes in, "fp32" or "bf16"; an engine that rounds to bfloat16 cannot be matched to float32's bar.
    wide: whether a quantized export has both graphs once more, in integers by rows, which run prompts twice as fast
    with AVX512-VNNI and several times with AMX, with which large batches are faster, too. compiled: whether compiled
    kernels (`native`) are proven beside the graphs; they do without the wide ones but for prompts with AMX. None asks
    this machine.
    recipes: what each precision means; another one than the shipped makes other exports, held to the same bars.
    """
    config = spec.to_dict()
    compiled = kernels.available() if compiled is None else compiled
    if wide is None:
        wide = not {"amx_int8", *(() if compiled else ("avx512_vnni",))}.isdisjoint(detect().isa)
    recorded: list[Trace] = []

    def the_trace() -> Trace:
        if not recorded:
            recorded.append(trace())
        return recorded[0]

    def build_tables(directory: Path, precision: str, progress: Progress) -> None:
        for done, name in enumerate(_TABLES):
            progress(ProgressEvent(EMBEDDINGS, "build", done, len(_TABLES), precision))
            write_table(directory / f"{name}.npy", weights(name))

    def prove_tables(directory: Path, precision: str) -> dict[str, Any]:
        pairs = []
        for name in _TABLES:
            expected, table = weights(name), tables.Table(directory / f"{name}.npy")
            rows = np.unique(np.linspace(0, len(expected) - 1, 257).astype(np.int64))
            pairs.append((expected[rows], table[rows]))
        return compare_arrays(pairs, 0.0)

    def build_graphs(directory: Path, precision: str, progress: Progress) -> None:
        total = 4 + 5 * (spec.slow.layers + spec.fast.layers)  # weights read, about
        seen = 0

        def counted(name: str) -> np.ndarray:
            nonlocal seen
            seen += 1
            progress(ProgressEvent(LANGUAGE_MODEL, "build", min(seen, total), total, precision))
            return weights(name)

        recipe, ranges = recipes[precision], None
        if recipe.kv_bits == 8 and (seen_by := the_trace()).key_range is not None and seen_by.value_range is not None:
            ranges = KVRanges(seen_by.key_range, seen_by.value_range)
        build_slow(directory, spec, counted, recipe, ranges)
        build_fast(directory, spec, counted, recipe)
        if wide and ranges is not None:  # the same ranges: both work on one cache
            build_slow(directory, spec, counted, BY_ROW, ranges, name=f"{WIDE}slow")
            build_fast(directory, spec, counted, BY_ROW, name=f"{WIDE}fast")
        (directory / "spec.json").write_text(json.dumps(config))

    def compared(
        directory: Path, bar: Bar, options: RunOptions, graphs: Sequence[str] = ("slow", "fast")
    ) -> dict[str, Any]:
        return judged([Session(directory / f"{name}.onnx", options) for name in graphs], bar)

    def judged(sessions: Sequence[Runner], bar: Bar) -> dict[str, Any]:
        trace = the_trace()
        slow, fast, *wider = sessions
        pair = (wider[0], wider[1]) if wider else None
        answers = replay(DualARDecoder(spec, slow, fast, _WeightEmbeddings(spec, weights), wide=pair).generate, trace)
        pairs = {
            "main": (trace.main_logits, answers.main_logits),
            "codes": (trace.code_logits, answers.code_logits),
        }
        return {**compare_logits(pairs, bar), "frames": len(trace.frames)}

    exact_bar = BARS["fp32" if dtype == "fp32" else "fp32/bf16"]

    def structure(directory: Path) -> dict[str, Any]:
        """The same graphs with float32 weights, which no quantization noise excuses. Built aside, then deleted."""
        with tempfile.TemporaryDirectory(prefix="structure-", dir=directory) as aside:
            build_slow(Path(aside), spec, weights, RECIPES["fp32"])
            build_fast(Path(aside), spec, weights, RECIPES["fp32"])
            return compared(Path(aside), exact_bar, RunOptions(threads=_PROOF_THREADS, prepack=False))

    proven: list[dict[str, Any]] = []

    def prove_graphs(directory: Path, precision: str) -> dict[str, Any]:
        if precision == "fp32":
            return compared(directory, exact_bar, RunOptions(threads=_PROOF_THREADS))
        if not proven:
            proven.append(structure(directory))
        if not proven[0]["passed"]:
            return {**proven[0], "structure": proven[0]}
        options = RunOptions(threads=_PROOF_THREADS)
        report = compared(directory, BARS[precision], options)
        if (directory / f"{WIDE}slow.onnx").exists():
            # Prompts by the wide graphs and steps by the others; and all of it by the wide ones, as in a batch.
            names = [f"{WIDE}slow", f"{WIDE}fast"]
            wide_reports = [compared(directory, BARS[precision], options, g) for g in (["slow", "fast", *names], names)]
            kept = all(r["passed"] or _nearer(r, report) for r in wide_reports)
            report["wide"] = {"passed": kept, "prompts": wide_reports[0]}
            report["wide"]["all"] = wide_reports[1]
            if not kept:  # the export is published without them
                for name in names:
                    for file in directory.glob(f"{name}.*"):
                        file.unlink()
        if compiled:
            report["compiled"] = prove_compiled(directory, report)
        return {**report, "structure": proven[0]}

    def prove_compiled(directory: Path, beside: Mapping[str, Any]) -> dict[str, Any]:
        """Compiled kernels over the same weights, held to the same bar."""
        try:
            report = judged(open_graphs(directory, spec, ("slow", "fast"), _PROOF_THREADS), Bar(**beside["bar"]))
        except (SessionError, BadOutput) as error:  # sizes that they are not made for, or answers that cannot be right
            return {"passed": False, "error": str(error)}
        if report["passed"] or _nearer(report, beside, _ROUNDING):
            (directory / COMPILED).write_text(json.dumps({"passed": report["passed"]}))
        return report

    shared = (*_HERE, source_of(weights), source_of(graph), source_of(graphs), source_of(tables))
    return (
        Component(EMBEDDINGS, identity, config, ("fp32",), build_tables, prove_tables, shared),
        Component(
            LANGUAGE_MODEL,
            identity,
            {**config, "engine_dtype": dtype, "wide": wide, "compiled": compiled},
            tuple(recipes),
            build_graphs,
            prove_graphs,
            (
                *shared,
                source_of(quantize),
                source_of(fitting),
                source_of(transformer),
                *(kernels.sources() if compiled else ()),
            ),
            {precision: vars(recipe) for precision, recipe in recipes.items()},
            spec.weight_bytes,
        ),
    )


def _nearer(report: Mapping[str, Any], rejected: Mapping[str, Any], slack: float = 1.0) -> bool:
    """Whether graphs that miss the bar do no harm to others that miss it, too, and are published under proof="warn"."""
    return not rejected["passed"] and all(report[figure] <= slack * rejected[figure] for figure in rejected["bar"])


def language_model_backends(
    components: tuple[Component, Component], load: Callable[[Mapping[str, Path], RunOptions], Call]
) -> tuple[Backend, ...]:
    """Compiled kernels and ONNX Runtime, over the same two exports. load: makes the part's call of either."""

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        return is_compiled(exports[LANGUAGE_MODEL].path)

    return (
        compiled_kernels(components, load, available=kernels.available, proven=proven),
        onnx_runtime(components, load),
    )


def is_compiled(directory: Path) -> bool:
    """Whether compiled kernels were proven over the graphs of an export."""
    return (directory / COMPILED).exists()


def load_language_model(paths: Mapping[str, Path], options: RunOptions) -> DualARDecoder:
    """A decoder over the two exports of `language_model_components`."""
    directory = paths[LANGUAGE_MODEL]
    spec = DualARSpec.from_dict(json.loads((directory / "spec.json").read_text()))
    if options.backend == "native":
        return _load_compiled(directory, spec, Embeddings(paths[EMBEDDINGS], spec), options)
    names = ["slow", "fast"]
    if (directory / f"{WIDE}slow.onnx").exists():
        names.append(f"{WIDE}slow")
        if "amx_int8" in detect().isa:  # elsewhere they are the faster ones for prompts only
            names.append(f"{WIDE}fast")
    with huge_pages():  # a step reads all weights
        slow, fast, *wide = (Session(directory / f"{name}.onnx", options) for name in names)
    pair = (wide[0], wide[1] if len(wide) > 1 else None) if wide else None
    return DualARDecoder(spec, slow, fast, Embeddings(paths[EMBEDDINGS], spec), wide=pair)


def _load_compiled(directory: Path, spec: DualARSpec, embeddings: Embeddings, options: RunOptions) -> DualARDecoder:
    """Compiled kernels; with AMX, whose matrix instructions they do not use, prompts are for the wide graph."""
    prompts = directory / f"{WIDE}slow.onnx"
    with huge_pages():
        slow, fast = open_graphs(directory, spec, ("slow", "fast"), options.threads)
        wide = None
        if "amx_int8" in detect().isa and prompts.exists():
            wide = Session(prompts, replace(options, backend="onnxruntime", spin_us=SHORT_SPIN_US)), None
    return DualARDecoder(spec, slow, fast, embeddings, wide=wide)


class _WeightEmbeddings(Embeddings):
    """Embeddings straight from the engine's weights, so that the proof of the graphs needs no other export."""

    def __init__(self, spec: DualARSpec, weights: Weights) -> None:
        self._prepare(spec, *(weights(name) for name in _TABLES))
