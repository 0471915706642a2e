"""What graphs and the decode loop must know about a language model: its dimensions and the tokens it may draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["OPSET", "CausalSpec", "CodebookSpec", "Hidden", "KVRanges", "TransformerSpec", "Weights"]

OPSET = 20  # of all graphs
KV_MARGIN = 2.0  # headroom above the largest magnitude seen: other speakers exceed it, and an int8 cache saturates

Weights = Callable[[str], np.ndarray]
"""name -> float32 array, loaded on demand. The names are those of the graphs; linear weights are [out, in]."""


@dataclass(frozen=True)
class TransformerSpec:
    """Dimensions of one stack of Llama blocks."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    rope_base: float
    positions: int  # longest sequence
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    rope_bf16: bool = False  # the engine rounds its rotary table to bfloat16

    @property
    def matrix_weights(self) -> int:
        """Weights in the matrices of all blocks."""
        attention = self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.dim * self.ffn)


@dataclass(frozen=True)
class KVRanges:
    """Largest magnitudes seen in a key-value cache, float32 [layers, kv_heads, head_dim] each; keys after rotation."""

    keys: np.ndarray
    values: np.ndarray

    def scales(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """The int8 steps of a layer, [kv_heads, 1, head_dim] each.

        Later positions rotate a pair of key dimensions by any angle, so both get a step that fits the pair's length.
        """
        pairs = self.keys[layer].reshape(len(self.keys[layer]), -1, 2)
        keys = np.repeat(np.sqrt(np.square(pairs).sum(axis=-1)), 2, axis=-1)
        steps = (np.maximum(r * KV_MARGIN / 127, 1e-6) for r in (keys, self.values[layer]))
        key_scale, value_scale = (s[:, None].astype(np.float32) for s in steps)
        return key_scale, value_scale


@dataclass(frozen=True)
class Hidden:
    """The state [B, width] that a causal model hands to the model of a frame's codes, beside its logits.

    normed: taken after the last norm. projected: passed through a matrix of its own.
    """

    width: int
    normed: bool
    projected: bool


@dataclass(frozen=True)
class CausalSpec:
    """A causal language model, by itself or as the first stack of a dual one.

    ranges: the vocabulary ids that may be drawn, as (begin, end); the exported head has only their rows.
    end_ids: ids that end a sequence. half_split: the rotary embeddings pair a head's two halves (transformers'
    `rotate_half`) instead of neighbours (Meta's and fish-speech's).
    """

    stack: TransformerSpec
    ranges: tuple[tuple[int, int], ...]
    end_ids: tuple[int, ...]
    half_split: bool = False

    def __post_init__(self) -> None:
        assert len(np.unique(self.rows)) == len(self.rows), f"ids that occur twice in {self.ranges} or {self.end_ids}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CausalSpec:
        stack, ranges = TransformerSpec(**data["stack"]), tuple((int(a), int(b)) for a, b in data["ranges"])
        return cls(**{**data, "stack": stack, "ranges": ranges, "end_ids": tuple(data["end_ids"])})

    @property
    def rows(self) -> np.ndarray:
        """Row of the exported head -> vocabulary id, int64 [n]: the ranges in order, then the end ids beside them."""
        ids = [np.arange(*each, dtype=np.int64) for each in self.ranges]
        apart = [i for i in self.end_ids if not any(begin <= i < end for begin, end in self.ranges)]
        return np.concatenate([*ids, np.array(apart, np.int64)])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the graph's matrices in float32."""
        return 4 * (self.stack.matrix_weights + len(self.rows) * self.stack.dim)

    def graph(self, name: str) -> tuple[TransformerSpec, Hidden | None]:
        """The stack of a graph, and the hidden state that it outputs."""
        return self.stack, None


@dataclass(frozen=True)
class CodebookSpec:
    """What a dual model has on top of a causal one: a second stack, run once for each codebook of a frame.

    The main token determines the first code, counted from the id `begin`; the others are drawn from the first `drawn`
    rows of the second stack's head. size: codes in a codebook.
    """

    stack: TransformerSpec
    codebooks: int
    size: int
    drawn: int
    begin: int

    def first_code(self, token: int) -> int:
        """The code that a main token stands for, clamped into its codebook."""
        return min(max(token - self.begin, 0), self.size - 1)
