"""Stacks of Llama blocks (Touvron et al. 2023) as ONNX graphs, and language models made of one.

The graphs serve prefill and decode steps: KV caches are buffers [B, kv_heads, capacity, head_dim] that are input and
output at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from .graph import Graph
from .quantize import Recipe, linear
from .rope import rope_tables
from .specs import CausalSpec, Hidden, KVRanges, TransformerSpec, Weights

__all__ = ["build_stack", "norm", "transformer"]

_END = np.iinfo(np.int64).max
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64
_HALVES = {"axis": -1, "num_outputs": 2}


def build_stack(
    directory: Path,
    spec: CausalSpec,
    weights: Weights,
    recipe: Recipe,
    ranges: KVRanges | None = None,
    *,
    name: str,
    prefix: str,
    hidden: Hidden | None = None,
) -> None:
    """Write <name>.onnx: embedded tokens or frames in, logits of the next token out, [B, rows], and a hidden state.

    weights: called with names that begin with `prefix`, except for the projection's. The model must rotate neighbouring
    pairs, and its head must have only the rows that may be drawn. ranges: makes the key-value cache int8 if the recipe
    asks for that. Graphs of different recipes built with the same ranges can share a cache, for instance one graph for
    prompts and one for steps. hidden: the state to output as well.
    """
    stack = spec.stack
    with Graph(directory, name) as graph:
        x = graph.input("x", np.float32, ["batch", "length", stack.dim])
        last = graph.input("last", np.int64, ["batch", 1])  # each row's last real position
        x, skip = transformer(graph, stack, prefix, x, weights, recipe, ranges if recipe.kv_bits == 8 else None)
        x = graph.op("Add", x, skip)
        x = graph.op("GatherND", x, last, batch_dims=1)  # [B, D]
        normed = norm(graph, x, f"{prefix}.norm", weights, stack.eps)
        logits = linear(graph, recipe.head(), normed, f"{prefix}.head", weights(f"{prefix}.head"))
        if hidden is not None:
            state = normed if hidden.normed else x
            if hidden.projected:
                state = linear(graph, recipe, state, "fast_in", weights("fast_in"), weights("fast_in.bias"))
        graph.output(logits, "logits", np.float32, ["batch", len(spec.rows)])
        if hidden is not None:
            graph.output(state, "hidden", np.float32, ["batch", hidden.width])


def transformer(
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
    normed = norm(graph, x, f"{prefix}.0.attention_norm", weights, spec.eps)
    skip = x
    for i in range(spec.layers):
        name = f"{prefix}.{i}"
        scales = None if ranges is None else ranges.scales(i)
        attended = _attention(graph, spec, name, i, normed, weights, recipe, shared, scales)
        normed, skip = _skip_norm(graph, attended, skip, f"{name}.ffn_norm", weights, spec.eps)
        x = _feed_forward(graph, name, normed, weights, recipe)
        if i + 1 < spec.layers:
            normed, skip = _skip_norm(graph, x, skip, f"{prefix}.{i + 1}.attention_norm", weights, spec.eps)
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
    """Decoding reads a quarter of the bytes; a prompt is attended to in float32, whose kernel is a matrix kernel.

    For a prompt the cache is dequantized, and the new keys and values are quantized and appended. The decoding branch
    still works in place: `If` passes the bound buffers through to the operator.
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
            quantized = graph.op("QuantizeLinear", graph.op("Div", new, step), one, zero)  # rounds and saturates
            rest = graph.op("Slice", old, end, graph.constant([_END]), axis)
            filled.append(graph.op("Concat", head, quantized, rest, axis=2))
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


def norm(graph: Graph, x: str, name: str, weights: Weights, eps: float) -> str:
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
