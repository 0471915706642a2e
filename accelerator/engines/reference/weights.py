"""The language model's dimensions, and its weights by the names of the graphs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...export.graph.dual_ar import DualARSpec, TransformerSpec

__all__ = ["spec_of", "weight"]


def spec_of(lm: Any) -> DualARSpec:
    """lm: the configuration of a `ReferenceEngine`'s language model."""

    def stack(config: Any, positions: int) -> TransformerSpec:
        return TransformerSpec(
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            ffn=config.ffn_dim,
            eps=config.norm_eps,
            rope_base=config.rope_base,
            positions=positions,
            qk_norm=config.qk_norm,
            rope_bf16=config.rope_bf16,
        )

    return DualARSpec(
        slow=stack(lm.slow, lm.max_seq_len),
        fast=stack(lm.fast, lm.codebooks),
        codebooks=lm.codebooks,
        codebook_size=lm.codebook_size,
        semantic_begin=lm.semantic_begin,
        semantic_end=lm.semantic_end,
        end_id=lm.im_end,
        fast_codes=lm.codebook_size,
        fast_input=lm.fast_input,
        scale_codebook_embeddings=lm.scale_codebook_embeddings,
    )


def weight(model: Any, name: str) -> np.ndarray:
    """A weight of the engine's language model by the graphs' name of it, float32."""
    module, _, rest = name.partition(".")
    if name == "slow.head":
        tensor = model.output_weight[list(model.config.candidate_ids)]
    elif name == "fast.head":
        tensor = model.fast_output.weight
    elif not rest:
        tensor = getattr(model, name).weight
    elif rest == "norm":
        tensor = (model.norm if module == "slow" else model.fast_norm).weight
    else:
        index, _, weight = rest.partition(".")
        block = (model.layers if module == "slow" else model.fast_layers)[int(index)]
        owner = block if weight.endswith("_norm") and weight[0] not in "qk" else block.attention
        owner = block.ffn if weight in ("gate", "up", "down") else owner
        tensor = getattr(owner, weight).weight
    return np.asarray(tensor.detach().float().numpy())
