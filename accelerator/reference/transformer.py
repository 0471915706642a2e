"""Llama blocks (RMSNorm, grouped-query attention with RoPE, SwiGLU), shared by the language model and the codec.

Sources: Llama 2 (Touvron et al. 2023), GQA (Ainslie et al. 2023), RoPE (Su et al. 2021), QK-norm (Henry et al. 2020).
B batch, T new positions, S positions seen, D dim, H heads, G kv heads, E head_dim, N cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig

__all__ = [
    "Block",
    "KVCache",
    "RMSNorm",
    "WindowedTransformer",
    "empty_embedding",
    "rope_table",
    "rotate",
    "run_blocks",
]


def empty_embedding(rows: int, dim: int) -> nn.Embedding:
    """An embedding [rows, dim] not initialised: on the meta device that alone would import all of torch._dynamo."""
    return nn.Embedding.from_pretrained(torch.empty(rows, dim), freeze=False)


def rope_table(length: int, config: TransformerConfig) -> Tensor:
    """cos and sin of every position and frequency: float32 [length, E/2, 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.arange(length, dtype=torch.float32)[:, None] * config.rope_base ** (-exponents)
    table = torch.stack((angles.cos(), angles.sin()), dim=-1)
    return table.bfloat16().float() if config.rope_bf16 else table


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [B, T, H, E] by rope [T, E/2, 2], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, T, H, E/2] each
    cos, sin = rope[:, None, :, 0], rope[:, None, :, 1]  # [T, 1, E/2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).type_as(x)


@dataclass(frozen=True)
class KVCache:
    """Keys and values [B, G, N, E] of each layer and the RoPE table [N, E/2, 2]. Sized once; written in place.

    How many slots are filled is the caller's knowledge (`start`), so filling slots again just overwrites them.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rope: Tensor

    @classmethod
    def allocate(cls, config: TransformerConfig, *, batch: int, length: int, dtype: torch.dtype) -> KVCache:
        def slots() -> Tensor:
            return torch.empty(batch, config.kv_heads, length, config.head_dim, dtype=dtype)

        layers = range(config.layers)
        return cls(tuple(slots() for _ in layers), tuple(slots() for _ in layers), rope_table(length, config))

    @property
    def length(self) -> int:
        return self.rope.shape[0]


class RMSNorm(nn.Module):
    """Normalise over the last axis in float32, cast back, then multiply by the weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        floats = x.float()
        return (floats * torch.rsqrt(floats.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """Grouped-query attention. `qkv` holds the rows of all query heads, then key heads, then value heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.dim, (config.heads + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        *,
        slots: tuple[Tensor, Tensor] | None,
        start: int,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split((self.heads, self.kv_heads, self.kv_heads), 2)
        q = rotate(self.q_norm(q), rope).transpose(1, 2)  # [B, H, T, E]
        k = rotate(self.k_norm(k), rope).transpose(1, 2)  # [B, G, T, E]
        v = v.transpose(1, 2)
        if slots is not None:
            k, v = _append(slots, k, v, start)  # [B, G, S, E]
        return self.out(_attend(q, k, v, mask, causal).transpose(1, 2).flatten(2))


def _append(slots: tuple[Tensor, Tensor], k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Write the new keys and values behind `start` positions; return all there are."""
    end = start + k.shape[2]
    slots[0][:, :, start:end] = k
    slots[1][:, :, start:end] = v
    return slots[0][:, :, :end], slots[1][:, :, :end]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Softmax attention of q [B, H, T, E] over k, v [B, G, S, E] -> [B, H, T, E].

    Seen is where the mask [T, S] is true; without one, everything, or with `causal` (T = S) everything up to the query.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == kv_heads:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if q.shape[2] == 1:  # the heads of a group are so many queries of one kv head: nothing is repeated in memory
        grouped = q.reshape(q.shape[0], kv_heads, heads // kv_heads, q.shape[3])
        return F.scaled_dot_product_attention(grouped, k, v).reshape(q.shape)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)


class SwiGLU(nn.Module):
    """Feed-forward network (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_dim)

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        *,
        slots: tuple[Tensor, Tensor] | None = None,
        start: int = 0,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, slots=slots, start=start, mask=mask, causal=causal)
        return x + self.ffn(self.ffn_norm(x))


def run_blocks(blocks: nn.ModuleList, x: Tensor, cache: KVCache, start: int) -> Tensor:
    """x [B, T, D] at positions start .. start+T-1 -> [B, T, D]; fills the cache's slots of these positions."""
    length, end = x.shape[1], start + x.shape[1]
    causal = length > 1 and start == 0
    mask = torch.ones(length, end, dtype=torch.bool).tril(start) if length > 1 and start > 0 else None  # [T, S]
    for block, keys, values in zip(blocks, cache.keys, cache.values, strict=True):
        x = block(x, cache.rope[start:end], slots=(keys, values), start=start, mask=mask, causal=causal)
    return x


class WindowedTransformer(nn.Module):
    """Causal transformer over x [B, D, T] in which a position sees the last `window` positions, itself included."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        steps = torch.arange(length)
        age = steps[:, None] - steps[None, :]  # [T, T]: how far back the key lies
        mask = (age >= 0) & (age < (self.config.window or length))
        rope = rope_table(length, self.config)
        x = x.transpose(1, 2)
        for block in self.layers:
            x = block(x, rope, mask=mask)
        return self.norm(x).transpose(1, 2)

    def reach(self, n: int) -> int:
        """Input positions that the last n outputs depend on."""
        assert self.config.window is not None, "a codec's transformer has a window"
        return n + self.config.layers * (self.config.window - 1)
