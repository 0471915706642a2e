"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), and their two layouts.

A head's dimensions are rotated in pairs, each by an angle of its own. Meta's Llama and fish-speech pair neighbours (2i,
2i + 1); transformers pairs the two halves (i, i + d/2). Attention scores do not depend on the order of a head's
dimensions, as long as queries and keys share it. So the rows of their projections are reordered at export, and all
graphs and kernels rotate neighbours.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .specs import KVRanges, TransformerSpec, Weights

__all__ = ["interleaved", "interleaved_ranges", "rope_tables", "round_to_bfloat16"]


def rope_tables(spec: TransformerSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, float32 [positions, head_dim/2], of rotary embeddings (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = 1.0 / np.float32(spec.rope_base) ** (
        np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    )
    angles = np.outer(np.arange(spec.positions, dtype=np.float32), frequencies.astype(np.float32))
    cos, sin = np.cos(angles), np.sin(angles)
    return (round_to_bfloat16(cos), round_to_bfloat16(sin)) if spec.rope_bf16 else (cos, sin)


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest numbers that bfloat16 holds, as float32."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)  # round to nearest, ties to even
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def interleaved(weights: Weights, spec: TransformerSpec) -> Weights:
    """Weights for paired halves -> the same model's for paired neighbours."""
    order = _order(spec.head_dim)

    def rows(name: str) -> np.ndarray:
        array = weights(name)
        if name.endswith((".q_norm", ".k_norm")):  # [Dh]
            return array[order]
        if name.endswith((".qkv", ".qkv.bias")):  # [(H + 2 Hkv) Dh, ...], the values last
            heads = array.reshape(-1, spec.head_dim, *array.shape[1:])
            turned = spec.heads + spec.kv_heads
            return np.concatenate([heads[:turned, order], heads[turned:]]).reshape(array.shape)
        return array

    return rows


def interleaved_ranges(ranges: KVRanges) -> KVRanges:
    """Ranges of a cache with paired halves -> with paired neighbours."""
    return replace(ranges, keys=ranges.keys[..., _order(ranges.keys.shape[-1])])


def _order(head_dim: int) -> np.ndarray:
    """Where each dimension comes from: 0, d/2, 1, d/2 + 1, ..."""
    return np.arange(head_dim).reshape(2, -1).T.reshape(-1)
