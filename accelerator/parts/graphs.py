"""The files of a dual autoregressive model: embedding tables, graphs, and prefill graphs.

This file and its imports hold only what determines the files, nothing that runs or judges them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..errors import ExportError
from ..export.component import Export, Progress, ProgressEvent, counted
from ..export.graph.dual_ar import DualARSpec, KVRanges, Weights, build_fast, build_slow
from ..export.graph.quantize import BY_ROW, RECIPES, Recipe
from ..export.trace import Trace
from ..inference.embeddings import write_table

__all__ = [
    "EMBEDDINGS",
    "GRAPHS",
    "LANGUAGE_MODEL",
    "PREFILL",
    "TABLES",
    "float32_graphs",
    "graphs",
    "prefill_graphs",
    "prefill_names",
    "tables",
]

EMBEDDINGS, LANGUAGE_MODEL, PREFILL = "embeddings", "text2semantic", "prefill"
TABLES = ("embeddings", "codebook_embeddings", "fast_embeddings")
GRAPHS = ("slow", "fast")
_RANGES = "ranges.npy"  # of an int8 cache: all graphs that work on it are built with the same ranges

Build = Callable[[Path, str, Progress], None]


def tables(weights: Weights) -> Build:
    """Writes the embedding tables."""

    def build(directory: Path, precision: str, progress: Progress) -> None:
        for done, name in enumerate(TABLES):
            progress(ProgressEvent(EMBEDDINGS, "build", done, len(TABLES), precision))
            write_table(directory / f"{name}.npy", weights(name))

    return build


def graphs(spec: DualARSpec, weights: Weights, recipes: Mapping[str, Recipe], trace: Callable[[], Trace]) -> Build:
    """Writes the graphs of the slow and of the fast model. trace: gives the ranges of the cache."""

    def build(directory: Path, precision: str, progress: Progress) -> None:
        asked, recipe, ranges = _counted(LANGUAGE_MODEL, spec, weights, precision, progress), recipes[precision], None
        if recipe.kv_bits == 8 and (seen := trace()).key_range is not None and seen.value_range is not None:
            ranges = KVRanges(seen.key_range, seen.value_range)
            np.save(directory / _RANGES, np.stack([ranges.keys, ranges.values]))
        build_slow(directory, spec, asked, recipe, ranges)
        build_fast(directory, spec, asked, recipe)
        (directory / "spec.json").write_text(json.dumps(spec.to_dict()))

    return build


def prefill_graphs(spec: DualARSpec, weights: Weights) -> Callable[[Path, str, Progress, Export], None]:
    """Writes both graphs quantized by rows, for the same cache as the graphs that they belong to."""

    def build(directory: Path, precision: str, progress: Progress, beside: Export) -> None:
        asked = _counted(PREFILL, spec, weights, precision, progress)
        slow, fast = prefill_names()
        if not (beside.path / _RANGES).exists():
            raise ExportError(f"{PREFILL} needs an int8 cache, which {LANGUAGE_MODEL} as {precision} does not have")
        build_slow(directory, spec, asked, BY_ROW, KVRanges(*np.load(beside.path / _RANGES)), name=slow)
        build_fast(directory, spec, asked, BY_ROW, name=fast)

    return build


def prefill_names() -> tuple[str, str]:
    """The names of the prefill graphs."""
    slow, fast = (f"{PREFILL}_{name}" for name in GRAPHS)
    return slow, fast


def float32_graphs(directory: Path, spec: DualARSpec, weights: Weights) -> None:
    """Write the same graphs with float32 weights, free of quantization noise, for a proof."""
    build_slow(directory, spec, weights, RECIPES["fp32"])
    build_fast(directory, spec, weights, RECIPES["fp32"])


def _counted(component: str, spec: DualARSpec, weights: Weights, precision: str, progress: Progress) -> Weights:
    """The weights, reporting progress as they are asked for."""
    total = 4 + 5 * (spec.slow.layers + spec.fast.layers)  # about
    return counted(weights, total, ProgressEvent(component, "build", precision=precision), progress)
