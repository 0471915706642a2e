"""Small stacks of random weights, their graphs, and their compiled steps."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from accelerator.export.graph.dual_ar import (
    DualARSpec,
    KVRanges,
    TransformerSpec,
    build_fast,
    build_slow,
)
from accelerator.export.graph.quantize import RECIPES, Recipe
from accelerator.inference.compiled import NativeSession
from accelerator.inference.transformer import Transformer
from accelerator.kernels.llm.team import Team

STACK = TransformerSpec(
    dim=96, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=144, eps=1e-5, rope_base=1e4, positions=300
)
SPEC = DualARSpec(
    slow=STACK, fast=replace(STACK, positions=4), codebooks=4, codebook_size=32, semantic_begin=40, semantic_end=76,
    end_id=3, fast_codes=29, fast_input="pre_norm", scale_codebook_embeddings=False,
)  # fmt: skip
INT4_FLOAT_CACHE = replace(RECIPES["int4"], kv_bits=32)


def varied(spec: DualARSpec = SPEC, **changes: Any) -> DualARSpec:
    """The spec with both stacks changed."""
    slow = replace(spec.slow, **changes)
    return replace(spec, slow=slow, fast=replace(slow, positions=spec.fast.positions))


class Weights:
    """Random weights by the graphs' names."""

    def __init__(self, spec: DualARSpec) -> None:
        self._spec, self._made = spec, dict[str, np.ndarray]()

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._made:
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            shape = self._shape(name)
            values = rng.standard_normal(shape) / np.sqrt(shape[-1]) if len(shape) == 2 else 1 + rng.random(shape)
            self._made[name] = (values if not name.endswith("bias") else values - 1.5).astype(np.float32)
        return self._made[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        stack = getattr(self._spec, name.split(".")[0].removesuffix("_in"))
        dim, ffn, size = stack.dim, stack.ffn, stack.head_dim
        qkv = (stack.heads + 2 * stack.kv_heads) * size
        heads = {"slow.head": len(self._spec.rows), "fast.head": self._spec.fast_codes}
        if name in heads:
            return heads[name], dim
        if name.startswith("fast_in"):
            return (self._spec.fast.dim,) if name.endswith("bias") else (self._spec.fast.dim, self._spec.slow.dim)
        part = name.split(".", 2)[-1]
        shapes = {"qkv": (qkv, dim), "out": (dim, stack.heads * size), "gate": (ffn, dim), "up": (ffn, dim)}
        shapes |= {"down": (dim, ffn), "qkv.bias": (qkv,), "out.bias": (dim,), "q_norm": (size,), "k_norm": (size,)}
        return shapes.get(part, (dim,))


def ranges(spec: DualARSpec) -> KVRanges:
    shape = spec.slow.layers, spec.slow.kv_heads, spec.slow.head_dim
    rng = np.random.default_rng(5)
    return KVRanges(*(2 + rng.random(shape).astype(np.float32) for _ in range(2)))


def build(directory: Path, spec: DualARSpec, recipe: Recipe) -> Path:
    directory.mkdir(exist_ok=True)
    build_slow(directory, spec, Weights(spec), recipe, ranges(spec) if recipe.kv_bits == 8 else None)
    build_fast(directory, spec, Weights(spec), recipe)
    return directory


def transformer(directory: Path, spec: DualARSpec, rows: int, *, graph: str = "slow", threads: int = 2) -> Transformer:
    session = NativeSession(directory / f"{graph}.onnx", spec, Team(threads))
    outputs = {"slow": {"logits": len(spec.rows), "hidden": spec.fast.dim}, "fast": {"logits": spec.fast_codes}}
    return Transformer(session, getattr(spec, graph), outputs[graph], rows, 16)


def run(model: Transformer, x: np.ndarray, begin: int = 0) -> dict[str, np.ndarray]:
    """x [B, S, D] through rows begin, begin + 1, ...; copies of their outputs."""
    end = begin + len(x)
    model.input(x.shape[1], begin, end)[:] = x
    return {name: array[begin:end].copy() for name, array in model.step(x.shape[1], begin, end).items()}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
