"""A causal language model, such as Llama or Qwen2, as one ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .quantize import Recipe
from .rope import interleaved, interleaved_ranges
from .specs import CausalSpec, KVRanges, Weights
from .transformer import build_stack

__all__ = ["NAME", "build_causal"]

NAME = "causal"  # of the graph, and before the names of its weights


def build_causal(
    directory: Path,
    spec: CausalSpec,
    weights: Weights,
    recipe: Recipe,
    ranges: KVRanges | None = None,
    *,
    name: str = NAME,
) -> None:
    """Write <name>.onnx: embedded tokens [B, S, D] in, logits of the next one [B, rows] out.

    weights: the model's own; "causal.head" is [vocabulary, D], of which `spec.rows` are exported. ranges:
    in the order of the model's own cache; see `build_stack`.
    """
    if spec.half_split:
        weights, ranges = interleaved(weights, spec.stack), ranges and interleaved_ranges(ranges)

    def cut(name: str) -> np.ndarray:
        return weights(name)[spec.rows] if name == f"{NAME}.head" else weights(name)

    build_stack(directory, spec, cut, recipe, ranges, name=name, prefix=NAME)
