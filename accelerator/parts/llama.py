"""Causal language models of transformers that are stacks of Llama blocks, for `causal`: Llama, Qwen2, Qwen3 and kin.

They are recognised by their modules' names and their configuration; transformers itself is not imported. Tested with
5.24, whose names these are: `model.embed_tokens`, `model.layers`, `model.norm`, `lm_head`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedEngine
from ..export.graph.causal import NAME
from ..export.graph.specs import CausalSpec, TransformerSpec
from ..export.proof import Trace

__all__ = ["record", "spec_of", "weight"]

_PARTS = {
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def spec_of(
    model: Any, end_ids: Sequence[int], ranges: Sequence[tuple[int, int]] = (), positions: int | None = None
) -> CausalSpec:
    """The spec of a `...ForCausalLM`. ranges: ids that may be drawn, as (begin, end); () allows all.

    positions: the longest sequence needed, if shorter than the model's. Raises UnsupportedEngine
    for what the graphs do not support: other rotary embeddings, activations, norms, sliding windows.
    """
    _check(model)
    config, attention = model.config, model.model.layers[0].self_attn
    limit = config.max_position_embeddings
    stack = TransformerSpec(
        dim=config.hidden_size,
        layers=len(model.model.layers),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        ffn=config.intermediate_size,
        eps=config.rms_norm_eps,
        rope_base=float(_rope(config)["rope_theta"]),
        positions=limit if positions is None else min(positions, limit),
        qk_norm=hasattr(attention, "q_norm"),
        qkv_bias=attention.q_proj.bias is not None,
        out_bias=attention.o_proj.bias is not None,
    )
    return CausalSpec(stack, tuple(ranges) or ((0, config.vocab_size),), tuple(end_ids), half_split=True)


def _rope(config: Any) -> dict[str, Any]:
    """Before version 5 of transformers, base and scaling were separate attributes."""
    given = getattr(config, "rope_parameters", None)
    scaling = getattr(config, "rope_scaling", None) or {"rope_type": "default"}
    return dict(given) if given else {"rope_theta": getattr(config, "rope_theta", 1e4), **scaling}


def _check(model: Any) -> None:
    """Raises UnsupportedEngine for visible differences from Llama blocks; others fail the proof."""
    if not hasattr(getattr(model, "model", None), "layers") or not hasattr(model, "lm_head"):
        raise UnsupportedEngine(f"{type(model).__name__} has no model.layers and lm_head: it is not a Llama-like model")
    config, block = model.config, model.model.layers[0]
    rope, kinds = _rope(config), getattr(config, "layer_types", None) or ()
    attention, activation = block.self_attn, getattr(config, "hidden_act", None)
    odd = {
        f"rotary embeddings of type {rope.get('rope_type')!r}": rope.get("rope_type") != "default",
        "rotary embeddings of a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        f"the activation {activation!r}": activation != "silu",
        "a sliding window": "sliding_attention" in kinds,
        "layers of another kind": {name for name, _ in block.named_children()} != _CHILDREN,
        "biases in the feed-forward layers": getattr(block.mlp.gate_proj, "bias", None) is not None,
        "norms over all queries together": hasattr(attention, "q_norm")
        and attention.q_norm.weight.shape != (attention.head_dim,),
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise UnsupportedEngine(f"{type(model).__name__} has {', '.join(found)}, which the graphs do not support")


def weight(model: Any, name: str) -> np.ndarray:
    """A weight by its name in `export.graph.causal`, float32."""
    import torch

    tensor = torch.cat([part.detach().float() for part in _tensors(model, name)])
    return np.ascontiguousarray(tensor.numpy())


def _tensors(model: Any, name: str) -> list[Any]:
    """The tensors whose rows make up a weight, in order."""
    if name == "embeddings":
        return [model.model.embed_tokens.weight]
    _, rest = name.split(f"{NAME}.")
    if rest in ("head", "norm"):
        return [(model.lm_head if rest == "head" else model.model.norm).weight]
    index, _, part = rest.partition(".")
    block = model.model.layers[int(index)]
    part, _, bias = part.partition(".")
    if part == "qkv":
        owners = [getattr(block.self_attn, f"{each}_proj") for each in "qkv"]
    else:
        owners = [block.get_submodule(_PARTS[part])]
    return [owner.bias if bias else owner.weight for owner in owners]


def record(model: Any, spec: CausalSpec, prompt: np.ndarray, count: int) -> Trace:
    """The model's greedy tokens after a prompt int64 [T], and its logits [n, 1, vocabulary] at each: see `Trace`.

    Only ids that the spec allows and that do not end the sequence are drawn. The key-value ranges are in the model's
    own order, which pairs halves.
    """
    import torch

    count = min(count, spec.stack.positions - len(prompt))
    ends = np.isin(spec.rows, spec.end_ids)
    step, logits, tokens = torch.from_numpy(prompt)[None], [], []
    past: Any = None
    # Renamed in later versions, which warn about the old name.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode():
        for _ in range(count):
            answer = model(input_ids=step, use_cache=True, **{name: past})
            past = answer[name]
            logits.append(answer.logits[0, -1].float().numpy())
            token = int(spec.rows[np.where(ends, -np.inf, logits[-1][spec.rows]).argmax()])
            tokens.append(token)
            step = torch.tensor([[token]])
        ranges = [
            np.stack([getattr(layer, kind)[0].abs().amax(1).float().numpy() for layer in past.layers])
            for kind in ("keys", "values")
        ]
    codes = np.zeros((count, 0, 1), np.float32)  # there are no codebooks
    return Trace(prompt[None], np.array(tokens)[:, None], np.stack(logits), codes, *ranges)
