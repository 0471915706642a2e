"""The two layouts of rotary embeddings: the same scores, once rows are reordered."""

from __future__ import annotations

import numpy as np

from accelerator.export.graph.rope import interleaved, interleaved_ranges, rope_tables
from accelerator.export.graph.specs import KVRanges, TransformerSpec

SPEC = TransformerSpec(dim=24, layers=1, heads=4, kv_heads=2, head_dim=8, ffn=32, eps=1e-6, rope_base=1e4, positions=64)
WEIGHTS = {
    "causal.0.qkv": np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32),
    "causal.0.qkv.bias": np.random.default_rng(1).standard_normal(64).astype(np.float32),
    "causal.0.k_norm": np.arange(8, dtype=np.float32),
    "causal.0.out": np.random.default_rng(2).standard_normal((24, 32)).astype(np.float32),
}


def of_halves(x: np.ndarray, position: int) -> np.ndarray:
    """transformers' `x * cos + rotate_half(x) * sin` for heads [H, Dh]."""
    cos, sin = (np.concatenate([table[position]] * 2) for table in rope_tables(SPEC))
    half = np.concatenate([-x[:, 4:], x[:, :4]], axis=1)
    return x * cos + half * sin


def of_neighbours(x: np.ndarray, position: int) -> np.ndarray:
    cos, sin = (table[position] for table in rope_tables(SPEC))
    even, odd = x[:, ::2], x[:, 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


def test_scores_and_values_are_the_same() -> None:
    rng, ours = np.random.default_rng(3), interleaved(WEIGHTS.__getitem__, SPEC)
    name = "causal.0.qkv"
    for a, b in ((0, 0), (3, 17), (40, 63)):
        x = rng.standard_normal((2, 24)).astype(np.float32)
        halves = [(WEIGHTS[name] @ each + WEIGHTS[f"{name}.bias"]).reshape(8, 8) for each in x]
        neighbours = [(ours(name) @ each + ours(f"{name}.bias")).reshape(8, 8) for each in x]
        expected = of_halves(halves[0][:4], a) @ of_halves(halves[1][4:6], b).T  # 4 queries by 2 keys
        scores = of_neighbours(neighbours[0][:4], a) @ of_neighbours(neighbours[1][4:6], b).T
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        np.testing.assert_array_equal(neighbours[1][6:], halves[1][6:])


def test_norms_and_ranges_go_with_them_and_all_else_stays() -> None:
    ours = interleaved(WEIGHTS.__getitem__, SPEC)
    assert ours("causal.0.k_norm").tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert ours("causal.0.out") is WEIGHTS["causal.0.out"]
    keys, values = np.arange(16.0).reshape(1, 2, 8), np.ones((1, 2, 8))
    turned = interleaved_ranges(KVRanges(keys, values))
    assert turned.keys[0, 1].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]
    assert turned.values is values
