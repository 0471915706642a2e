"""The dual autoregressive language model as two ONNX graphs: `slow` over frames, `fast` over a frame's codebooks.

The architecture is Fish-Speech's (Liao et al. 2024, arXiv:2411.01156) on Llama blocks (Touvron et al. 2023). Both
graphs serve prefill and decode: KV caches are buffers [B, kv_heads, capacity, head_dim] that are input and output at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto

from .graph import Graph
from .quantize import Recipe, linear

__all__ = [
    "DualARSpec",
    "KVRanges",
    "TransformerSpec",
    "Weights",
    "build_fast",
    "build_slow",
    "rope_tables",
    "round_to_bfloat16",
]

KV_MARGIN = 2.0  # room above the largest magnitude seen: other speakers have larger ones, and an int8 cache saturates
_END = np.iinfo(np.int64).max
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64
_HALVES = {"axis": -1, "num_outputs": 2}

Weights = Callable[[str], np.ndarray]
"""name -> float32 array, loaded when asked for. The names are those used below; linear weights are [out, in]."""


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
    rope_bf16: bool = False  # the engine rounds its table of cosines to bfloat16

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

        Rotation turns a pair of key dimensions by any angle later on, so both get the step of the pair's length.
        """
        pairs = self.keys[layer].reshape(len(self.keys[layer]), -1, 2)
        keys = np.repeat(np.sqrt(np.square(pairs).sum(axis=-1)), 2, axis=-1)
        steps = (np.maximum(r * KV_MARGIN / 127, 1e-6) for r in (keys, self.values[layer]))
        key_scale, value_scale = (s[:, None].astype(np.float32) for s in steps)
        return key_scale, value_scale


@dataclass(frozen=True)
class DualARSpec:
    """A dual autoregressive model: what the graphs and the decode loop must know of it."""

    slow: TransformerSpec
    fast: TransformerSpec
    codebooks: int
    codebook_size: int
    semantic_begin: int  # first vocabulary id that stands for a semantic code
    semantic_end: int  # last such id, inclusive
    end_id: int
    fast_codes: int  # how many of the fast head's rows the engine samples from
    fast_input: Literal["pre_norm", "post_norm"]
    scale_codebook_embeddings: bool
    fast_projection: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DualARSpec:
        return cls(**{**data, "slow": TransformerSpec(**data["slow"]), "fast": TransformerSpec(**data["fast"])})

    @property
    def weight_bytes(self) -> int:
        """Bytes of both graphs' matrices in float32."""
        head, fast_head = len(self.rows) * self.slow.dim, self.fast_codes * self.fast.dim
        return 4 * (self.slow.matrix_weights + self.fast.matrix_weights + head + fast_head)

    @property
    def rows(self) -> np.ndarray:
        """Vocabulary ids that can be sampled, in the order of the exported head: the semantic ids, then the end id."""
        return np.append(np.arange(self.semantic_begin, self.semantic_end + 1), self.end_id)


def build_slow(
    directory: Path,
    spec: DualARSpec,
    weights: Weights,
    recipe: Recipe,
    ranges: KVRanges | None = None,
    *,
    name: str = "slow",
) -> None:
    """Write <name>.onnx: embedded frames in, logits of the next main token and the fast model's input out.

    ranges: makes the key-value cache int8 if the recipe wants that. Graphs of different recipes built with the same
    ranges can work on one cache: one for prompts, say, and one for steps.
    """
    stack = spec.slow
    with Graph(directory, name) as graph:
        x = graph.input("x", np.float32, ["batch", "length", stack.dim])
        last = graph.input("last", np.int64, ["batch", 1])  # each row's last real position
        x, skip = _transformer(graph, stack, "slow", x, weights, recipe, ranges if recipe.kv_bits == 8 else None)
        x = graph.op("Add", x, skip)
        x = graph.op("GatherND", x, last, batch_dims=1)  # [B, D]
        normed = _norm(graph, x, "slow.norm", weights, stack.eps)
        logits = linear(graph, recipe.head(), normed, "slow.head", weights("slow.head"))
        hidden = x if spec.fast_input == "pre_norm" else normed
        if spec.fast_projection:
            hidden = linear(graph, recipe, hidden, "fast_in", weights("fast_in"), weights("fast_in.bias"))
        graph.output(logits, "logits", np.float32, ["batch", len(spec.rows)])
        graph.output(hidden, "hidden", np.float32, ["batch", spec.fast.dim])


def build_fast(directory: Path, spec: DualARSpec, weights: Weights, recipe: Recipe, *, name: str = "fast") -> None:
    """Write <name>.onnx: embedded codes in, logits of the next codebook out (last position only)."""
    stack = spec.fast
    with Graph(directory, name) as graph:
        x = graph.input("x", np.float32, ["batch", "length", stack.dim])
        x, skip = _transformer(graph, stack, "fast", x, weights, recipe)
        x = graph.op("Add", x, skip)
        x = graph.op("Gather", x, graph.constant(-1), axis=1)  # [B, D]
        x = _norm(graph, x, "fast.norm", weights, stack.eps)
        logits = linear(graph, recipe.head(), x, "fast.head", weights("fast.head")[: spec.fast_codes])
        graph.output(logits, "logits", np.float32, ["batch", spec.fast_codes])


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


def _transformer(
    graph: Graph,
    spec: TransformerSpec,
    prefix: str,
    x: str,
    weights: Weights,
    recipe: Recipe,
    ranges: KVRanges | None = None,
) -> tuple[str, str]:
    """Llama blocks; returns the last feed-forward's output and the residual it is still to be added to."""
    cos, sin = rope_tables(spec)
    shared = {
        "seqlens_k": graph.input("seqlens_k", np.int32, ["batch"]),  # each row's last position, after this run
        "total": graph.input("total_sequence_length", np.int32, []),  # the longest row, after this run
        "cos": graph.weight("cos", cos),
        "sin": graph.weight("sin", sin),
    }
    if ranges is not None:
        shared["prompt"] = graph.input("prompt", np.bool_, [])  # many positions, or the first one
        shared["end"] = graph.op("Reshape", graph.op("Cast", shared["total"], to=_INT64), graph.constant([1]))
        shared["start"] = graph.op("Sub", shared["end"], graph.op("Shape", x, start=1, end=2))  # of the new positions
    norm = _norm(graph, x, f"{prefix}.0.attention_norm", weights, spec.eps)
    skip = x
    for i in range(spec.layers):
        name = f"{prefix}.{i}"
        scales = None if ranges is None else ranges.scales(i)
        attended = _attention(graph, spec, name, i, norm, weights, recipe, shared, scales)
        norm, skip = _skip_norm(graph, attended, skip, f"{name}.ffn_norm", weights, spec.eps)
        x = _feed_forward(graph, name, norm, weights, recipe)
        if i + 1 < spec.layers:
            norm, skip = _skip_norm(graph, x, skip, f"{prefix}.{i + 1}.attention_norm", weights, spec.eps)
    return x, skip


def _attention(
    graph: Graph,
    spec: TransformerSpec,
    name: str,
    index: int,
    x: str,
    weights: Weights,
    recipe: Recipe,
    shared: dict[str, str],
    scales: tuple[np.ndarray, np.ndarray] | None,
) -> str:
    bias = weights(f"{name}.qkv.bias") if spec.qkv_bias else None
    qkv = linear(graph, recipe, x, f"{name}.qkv", weights(f"{name}.qkv"), bias)  # [B, S, (H + 2 Hkv) Dh]
    if spec.qk_norm:
        qkv = _normalise_heads(graph, spec, qkv, name, weights)
    cache: list[int | str] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
    dtype = np.float32 if scales is None else np.int8
    past = [graph.input(f"past_{kind}.{index}", dtype, cache) for kind in ("key", "value")]
    present = [f"present_{kind}.{index}" for kind in ("key", "value")]
    outputs = [f"{name}.attended", *present]
    if scales is None:
        _attend(graph, spec, qkv, past, shared, outputs)
    else:
        _attend_with_int8_cache(graph, spec, name, qkv, past, shared, scales, outputs)
    for value in present:
        graph.output(value, value, dtype, cache)
    bias = weights(f"{name}.out.bias") if spec.out_bias else None
    return linear(graph, recipe, outputs[0], f"{name}.out", weights(f"{name}.out"), bias)


def _attend(
    graph: Graph,
    spec: TransformerSpec,
    qkv: str,
    past: Sequence[str],
    shared: dict[str, str],
    outputs: Sequence[str],
    scales: Sequence[str] = (),
) -> None:
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) with rotary embedding, through the cache."""
    inputs = [qkv, "", "", *past, shared["seqlens_k"], shared["total"], shared["cos"], shared["sin"]]
    attributes: dict[str, Any] = {"num_heads": spec.heads, "kv_num_heads": spec.kv_heads}
    attributes |= {"do_rotary": 1, "rotary_interleaved": 1}
    if scales:
        inputs += ["", "", "", *scales]
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    graph.node("GroupQueryAttention", inputs, outputs, "com.microsoft", attributes)


def _attend_with_int8_cache(
    graph: Graph,
    spec: TransformerSpec,
    name: str,
    qkv: str,
    past: Sequence[str],
    shared: dict[str, str],
    scales: tuple[np.ndarray, np.ndarray],
    outputs: Sequence[str],
) -> None:
    """Decode reads a quarter of the bytes; a prompt is attended to in float32, whose kernel is a matrix one.

    What the cache holds is taken for what it stands for, and what is new is rounded and put behind it. The decoding
    branch still works in place: `If` hands the bound buffers through to the operator.
    """
    steps = [graph.weight(f"{name}.{kind}_scale", s) for kind, s in zip(("key", "value"), scales, strict=True)]

    def fill() -> list[tuple[str, Any]]:
        attended, *fresh = [f"{name}.fill.{v}" for v in ("attended", "key", "value")]
        start, end, axis = shared["start"], shared["end"], graph.constant([2])
        before = [graph.op("Slice", old, graph.constant([0]), start, axis) for old in past]
        known = [graph.op("Mul", graph.op("Cast", b, to=_FLOAT), s) for b, s in zip(before, steps, strict=True)]
        _attend(graph, spec, qkv, known, shared, [attended, *fresh])
        filled = []
        for old, head, both, step in zip(past, before, fresh, steps, strict=True):
            one, zero = graph.constant(1, np.float32), graph.constant(0, np.int8)
            new = graph.op("Slice", both, start, end, axis)
            levels = graph.op("QuantizeLinear", graph.op("Div", new, step), one, zero)  # rounds and saturates
            rest = graph.op("Slice", old, end, graph.constant([_END]), axis)
            filled.append(graph.op("Concat", head, levels, rest, axis=2))
        return [(attended, np.float32), (filled[0], np.int8), (filled[1], np.int8)]

    def go_on() -> list[tuple[str, Any]]:
        names = [f"{name}.step.{v}" for v in ("attended", "key", "value")]
        _attend(graph, spec, qkv, past, shared, names, steps)
        return [(names[0], np.float32), (names[1], np.int8), (names[2], np.int8)]

    branches = {
        "then_branch": graph.branch(f"{name}.fill", fill),
        "else_branch": graph.branch(f"{name}.step", go_on),
    }
    graph.node("If", [shared["prompt"]], outputs, "", branches)


def _feed_forward(graph: Graph, name: str, x: str, weights: Weights, recipe: Recipe) -> str:
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""
    both = np.concatenate([weights(f"{name}.gate"), weights(f"{name}.up")])  # one matrix: x is quantized once
    gate, up = graph.node("Split", [linear(graph, recipe, x, f"{name}.gate_up", both)], 2, "", _HALVES)
    silu = graph.fused("QuickGelu", gate, alpha=1.0)  # x * sigmoid(x)
    return linear(graph, recipe, graph.op("Mul", silu, up), f"{name}.down", weights(f"{name}.down"))


def _norm(graph: Graph, x: str, name: str, weights: Weights, eps: float) -> str:
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    scale = graph.weight(name, weights(name))
    return graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1)


def _skip_norm(graph: Graph, x: str, skip: str, name: str, weights: Weights, eps: float) -> tuple[str, str]:
    """RMSNorm of x + skip, and that sum."""
    outputs = [f"{name}.out", "", "", f"{name}.sum"]
    inputs = [x, skip, graph.weight(name, weights(name))]
    graph.node("SkipSimplifiedLayerNormalization", inputs, outputs, "com.microsoft", {"epsilon": eps})
    return outputs[0], outputs[3]


def _normalise_heads(graph: Graph, spec: TransformerSpec, qkv: str, name: str, weights: Weights) -> str:
    """RMSNorm over each query and key head of packed qkv. The CPU's GroupQueryAttention takes no norm weights.

    All heads are normalised in one operator, then scaled by their own weights: fewer operators, fewer wake-ups.
    """
    width, kv_width = (spec.heads + spec.kv_heads) * spec.head_dim, spec.kv_heads * spec.head_dim
    qk, value = graph.node("Split", [qkv, graph.constant([width, kv_width])], 2, "", {"axis": -1})
    heads = graph.op("Reshape", qk, graph.constant([0, 0, -1, spec.head_dim]))  # [B, S, H + Hkv, Dh]
    one = graph.constant(np.ones(spec.head_dim), np.float32)
    heads = graph.op("SimplifiedLayerNormalization", heads, one, axis=-1, epsilon=spec.eps, stash_type=1)
    scales = [np.tile(weights(f"{name}.{k}_norm"), n) for k, n in (("q", spec.heads), ("k", spec.kv_heads))]
    qk = graph.op("Reshape", heads, graph.constant([0, 0, -1]))
    qk = graph.op("Mul", qk, graph.weight(f"{name}.qk_norm", np.concatenate(scales)))
    return graph.op("Concat", qk, value, axis=-1)
