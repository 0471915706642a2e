"""A causal model, or a dual one's slow model, as llama.cpp reads it: a GGUF file (needs the package `gguf`).

Where llama.cpp rotates halves and the model neighbours, or the other way round, rows of queries and keys are reordered;
the logits are then the same. It computes exact cosines where an engine may round them to bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..errors import EngineError
from ..export.graph import causal
from ..export.graph.dual_ar import DualARSpec
from ..export.graph.rope import interleaved
from ..export.graph.specs import CausalSpec, TransformerSpec, Weights

__all__ = ["Kind", "Spec", "causal_of", "kinds_of_head", "write_gguf"]

Kind = Literal["f32", "f16", "q8_0", "q4_0"]
Spec = DualARSpec | CausalSpec
_TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_NARROW = 256  # a width that does not divide by it has no Q6_K, in which llama-quantize keeps the head of a Q4_0


class _Model(NamedTuple):
    """What llama.cpp runs: the spec of a causal model, its weights by the names of "llama", and the architecture."""

    spec: CausalSpec
    weights: Weights
    name: str  # of the graph, and before the names of its weights
    architecture: str


def _model(spec: Spec, weights: Weights) -> _Model:
    """Architecture "qwen3" with norms over queries and keys, "qwen2" with biases and halves that are rotated, else
    "llama", which rotates neighbours. Raises EngineError for what none of them has.
    """
    own, name = causal_of(spec), "slow" if isinstance(spec, DualARSpec) else causal.NAME
    stack = own.stack
    if stack.out_bias or (stack.qk_norm and stack.qkv_bias):
        raise EngineError("llama.cpp has no architecture with these biases")
    if stack.qk_norm:
        return _Model(own, weights if own.half_split else _in_halves(weights, stack), name, "qwen3")
    if own.half_split and stack.qkv_bias:
        return _Model(own, weights, name, "qwen2")
    return _Model(own, interleaved(weights, stack) if own.half_split else weights, name, "llama")


def kinds_of_head(spec: Spec, kind: Kind) -> list[Kind]:
    """What the head is measured in: as the other matrices, and as llama-quantize would write it, if that differs.

    It keeps the head of a Q4_0 in Q6_K, or in Q8_0 where the width does not allow that. The latter is what matters: it
    is that of small models with large heads.
    """
    return [kind, "q8_0"] if kind == "q4_0" and causal_of(spec).stack.dim % _NARROW else [kind]


def causal_of(spec: Spec) -> CausalSpec:
    return spec.causal if isinstance(spec, DualARSpec) else spec


def write_gguf(path: Path, spec: Spec, weights: Weights, kind: Kind, head: Kind | None = None) -> None:
    """Write the model with the head of its export, its matrices of type `kind`, to `path`.

    head: the type of the head's matrix, if another. Raises EngineError for what llama.cpp has no architecture for.
    """
    import gguf

    model = _model(spec, weights)
    stack, rows = model.spec.stack, model.spec.rows
    writer = gguf.GGUFWriter(str(path), model.architecture)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(len(rows))
    writer.add_block_count(stack.layers)
    writer.add_context_length(stack.positions)
    writer.add_embedding_length(stack.dim)
    writer.add_feed_forward_length(stack.ffn)
    writer.add_head_count(stack.heads)
    writer.add_head_count_kv(stack.kv_heads)
    writer.add_key_length(stack.head_dim)
    writer.add_value_length(stack.head_dim)
    writer.add_rope_dimension_count(stack.head_dim)
    writer.add_rope_freq_base(stack.rope_base)
    writer.add_layer_norm_rms_eps(stack.eps)

    def add(name: str, array: np.ndarray, kind: Kind = kind) -> None:
        array = np.ascontiguousarray(array, np.float32)
        kept = gguf.GGMLQuantizationType[_TYPES[kind] if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, kept), raw_dtype=kept)

    unread = gguf.GGMLQuantizationType[_TYPES[kind]]  # asked for: inputs come embedded
    shape = gguf.quants.quant_shape_to_byte_shape((len(rows), stack.dim), unread)
    writer.add_tensor("token_embd.weight", np.zeros(shape, np.uint8), raw_dtype=unread)
    add("output_norm.weight", model.weights(f"{model.name}.norm"))
    last = model.weights(f"{model.name}.head")
    add("output.weight", last if isinstance(spec, DualARSpec) else last[rows], head or kind)
    for i in range(stack.layers):
        for name, array in _layer(model, f"{model.name}.{i}").items():
            add(f"blk.{i}.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer(model: _Model, name: str) -> dict[str, np.ndarray]:
    """A layer's tensors under llama.cpp's names."""
    stack, weights = model.spec.stack, model.weights
    tensors = {
        "attn_norm.weight": weights(f"{name}.attention_norm"),
        "attn_output.weight": weights(f"{name}.out"),
        "ffn_norm.weight": weights(f"{name}.ffn_norm"),
        **{f"ffn_{part}.weight": weights(f"{name}.{part}") for part in ("gate", "up", "down")},
    }
    ends = np.cumsum([stack.heads, stack.kv_heads]) * stack.head_dim
    for end in ("weight", "bias") if stack.qkv_bias else ("weight",):
        packed = weights(f"{name}.qkv" if end == "weight" else f"{name}.qkv.bias")
        parts = zip("qkv", np.split(packed, ends), strict=True)
        tensors |= {f"attn_{part}.{end}": array for part, array in parts}
    if stack.qk_norm:
        tensors |= {f"attn_{k}_norm.weight": weights(f"{name}.{k}_norm") for k in "qk"}
    return tensors


def _in_halves(weights: Weights, stack: TransformerSpec) -> Weights:
    """Weights for paired neighbours -> the same model's for paired halves: the inverse of `rope.interleaved`."""
    turned = (stack.heads + stack.kv_heads) * stack.head_dim  # rows of queries and keys

    def rows(name: str) -> np.ndarray:
        array = weights(name)
        if name.endswith((".q_norm", ".k_norm")):
            return _halves(array, stack.head_dim)
        if name.endswith(".qkv"):
            return np.concatenate([_halves(array[:turned], stack.head_dim), array[turned:]])
        return array

    return rows


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder each head's rows: even ones first, then odd ones."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)
