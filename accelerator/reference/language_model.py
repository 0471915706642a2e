"""The dual autoregressive transformer: text and codes in, one frame of codes after another out.

A column is one position of the sequence: [token, code 0, .., code C-1]. The slow transformer reads columns and answers
with a hidden state; its output head gives the main token (a semantic token, which is code 0 in disguise, or the end).
The fast transformer turns the hidden state and code 0 into codes 1 .. C-1 of the same frame.

Parameters: embeddings.weight [vocab, D], codebook_embeddings.weight [C*K, D], layers.{i}.* (see `transformer.Block`:
attention_norm.weight, attention.{qkv,out}.weight, attention.{q,k}_norm.weight with qk_norm, ffn_norm.weight,
ffn.{gate,up,down}.weight), norm.weight, output.weight [vocab, D] (absent when tied), fast_embeddings.weight [K, D],
fast_layers.{i}.*, fast_norm.weight, fast_output.weight [K, D].

B batch, T columns, C codebooks, K codebook_size, D dim.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LanguageModelConfig
from .transformer import Block, KVCache, RMSNorm, empty_embedding, run_blocks

__all__ = ["LanguageModel"]


class LanguageModel(nn.Module):
    """Stateless but for its weights: the KV caches are arguments, filled in place."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        slow, fast = config.slow, config.fast
        self.embeddings = empty_embedding(config.vocab_size, slow.dim)
        self.codebook_embeddings = empty_embedding(config.codebooks * config.codebook_size, slow.dim)
        self.layers = nn.ModuleList(Block(slow) for _ in range(slow.layers))
        self.norm = RMSNorm(slow.dim, slow.norm_eps)
        self.output = None if config.tie_output else nn.Linear(slow.dim, config.vocab_size, bias=False)
        self.fast_embeddings = empty_embedding(config.codebook_size, fast.dim)
        self.fast_layers = nn.ModuleList(Block(fast) for _ in range(fast.layers))
        self.fast_norm = RMSNorm(fast.dim, fast.norm_eps)
        self.fast_output = nn.Linear(fast.dim, config.codebook_size, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """The output head [vocab, D]."""
        return cast(Tensor, (self.embeddings if self.output is None else self.output).weight)

    def slow_cache(self, length: int, batch: int = 1) -> KVCache:
        """An empty cache for `length` columns."""
        dtype = self.embeddings.weight.dtype
        return KVCache.allocate(self.config.slow, batch=batch, length=length, dtype=dtype)

    def fast_cache(self, batch: int = 1) -> KVCache:
        """An empty cache for one frame; every frame overwrites it."""
        dtype = self.embeddings.weight.dtype
        return KVCache.allocate(self.config.fast, batch=batch, length=self.config.codebooks, dtype=dtype)

    def embed(self, columns: Tensor) -> Tensor:
        """Columns int64 [B, 1+C, T] -> [B, T, D]: token embedding, plus all codes' embeddings on semantic columns."""
        config = self.config
        tokens, codes = columns[:, 0], columns[:, 1:]
        offsets = torch.arange(config.codebooks)[:, None] * config.codebook_size
        semantic = ((tokens >= config.semantic_begin) & (tokens <= config.semantic_end))[..., None]  # [B, T, 1]
        x = self.embeddings(tokens)
        x = x + self.codebook_embeddings(codes + offsets).sum(1).masked_fill(~semantic, 0.0)
        if config.scale_codebook_embeddings:
            x = torch.where(semantic, x / math.sqrt(config.codebooks + 1), x)
        return x

    def slow(self, columns: Tensor, cache: KVCache, start: int) -> tuple[Tensor, Tensor]:
        """Columns [B, 1+C, T] at positions start.. -> (logits [B, K+1], fast input [B, D]), both of the last column.

        The logits are those of `config.candidate_ids`: no other token can be sampled, so no other row is computed.
        """
        x = run_blocks(self.layers, self.embed(columns), cache, start)[:, -1]
        normed = self.norm(x)
        return self.slow_logits(normed), x if self.config.fast_input == "pre_norm" else normed

    def slow_logits(self, normed: Tensor) -> Tensor:
        """Normed hidden states [.., D] -> logits [.., K+1]: the semantic tokens in order, then `im_end`."""
        config, weight = self.config, self.output_weight
        semantic = F.linear(normed, weight[config.semantic_begin : config.semantic_end + 1])
        return torch.cat((semantic, F.linear(normed, weight[config.im_end : config.im_end + 1])), dim=-1)

    def fast(self, x: Tensor, cache: KVCache, start: int) -> Tensor:
        """Inputs [B, T, D] at positions start.. of a frame -> logits [B, K] of the codebook after the last.

        Position 0 is the slow transformer's hidden state, position i > 0 the embedding of code i-1.
        """
        return self.fast_output(self.fast_norm(run_blocks(self.fast_layers, x, cache, start)[:, -1]))
