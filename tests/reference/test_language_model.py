import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from accelerator.reference import SIZES, load
from accelerator.reference.language_model import LanguageModel
from accelerator.reference.transformer import KVCache, rope_table, rotate
from accelerator.reference.weights import random_weights

TINY = SIZES["tiny"]


def columns(length: int, seed: int = 0) -> torch.Tensor:
    """Random columns [1, 5, T], half of them semantic."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 64, (1, 4, length), generator=generator)
    tokens = torch.randint(0, 256, (1, 1, length), generator=generator)
    semantic = torch.arange(length) % 2 == 1
    tokens[..., semantic] = 260 + codes[:, :1, semantic]
    return torch.cat((tokens, codes), dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("fast_input", ["pre_norm", "post_norm"])
def test_cached_steps_equal_a_full_forward(fast_input):
    lm = replace(TINY.language_model, fast_input=fast_input)
    model, _ = random_weights(replace(TINY, language_model=lm), seed=0)
    sequence = columns(17)
    cache = model.slow_cache(17)
    start = 0
    for size in (5, 1, 1, 4, 1, 5):  # prefill, steps, and several columns behind a past
        logits, hidden = model.slow(sequence[..., start : start + size], cache, start)
        start += size
        full_logits, full_hidden = model.slow(sequence[..., :start], model.slow_cache(start), 0)
        torch.testing.assert_close(logits, full_logits, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(hidden, full_hidden, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_fast_steps_equal_a_full_forward(tiny):
    model = tiny.language_model
    x = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    cache = model.fast_cache()
    for _ in range(2):  # the second frame overwrites the first
        stepped = torch.stack([model.fast(x[:, i : i + 1], cache, i) for i in range(4)], dim=1)
    for length in range(1, 5):
        full = model.fast(x[:, :length], model.fast_cache(), 0)
        torch.testing.assert_close(stepped[:, length - 1], full, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_batches_are_independent(tiny):
    model = tiny.language_model
    both = torch.cat((columns(6, 0), columns(6, 1)))
    logits, _ = model.slow(both, model.slow_cache(6, batch=2), 0)
    for row in range(2):
        alone, _ = model.slow(both[row : row + 1], model.slow_cache(6), 0)
        torch.testing.assert_close(logits[row], alone[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_slow_equals_the_mathematics_written_out(tiny):
    """An independent float64 Llama: complex rotation, repeated kv heads, explicit softmax, the whole output head."""
    model, lm = tiny.language_model, tiny.config.language_model
    sequence = columns(9)
    w = {name: p.double() for name, p in model.named_parameters()}
    tokens, codes = sequence[0, 0], sequence[0, 1:]
    x = w["embeddings.weight"][tokens].clone()
    for i, t in enumerate(tokens):
        if 260 <= t <= 323:
            for c in range(4):
                x[i] += w["codebook_embeddings.weight"][codes[c, i] + 64 * c]
            x[i] /= math.sqrt(5)

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def turn(x):  # [T, heads, 16]
        angles = torch.outer(torch.arange(9.0), 1e6 ** (-torch.arange(0, 16, 2) / 16))
        turns = torch.complex(angles.cos().bfloat16().double(), angles.sin().bfloat16().double())
        return torch.view_as_real(torch.view_as_complex(x.reshape(9, -1, 8, 2)) * turns[:, None]).flatten(-2)

    hidden_after = torch.ones(9, 9).triu(1).bool()
    for i in range(2):
        p = f"layers.{i}."
        y = norm(x, w[p + "attention_norm.weight"]) @ w[p + "attention.qkv.weight"].T
        q, k, v = (part.reshape(9, -1, 16) for part in y.split((64, 32, 32), dim=1))
        q = turn(norm(q, w[p + "attention.q_norm.weight"]))
        k = turn(norm(k, w[p + "attention.k_norm.weight"])).repeat_interleave(2, 1)
        scores = torch.einsum("qhe,khe->hqk", q, k) / 4
        weights = scores.masked_fill(hidden_after, -torch.inf).softmax(-1)
        y = torch.einsum("hqk,khe->qhe", weights, v.repeat_interleave(2, 1)).flatten(1)
        x = x + y @ w[p + "attention.out.weight"].T
        y = norm(x, w[p + "ffn_norm.weight"])
        gate = y @ w[p + "ffn.gate.weight"].T
        x = x + (gate * gate.sigmoid() * (y @ w[p + "ffn.up.weight"].T)) @ w[p + "ffn.down.weight"].T

    logits, hidden = model.slow(sequence, model.slow_cache(9), 0)
    torch.testing.assert_close(hidden[0].double(), x[-1], atol=1e-4, rtol=1e-4)
    full = norm(x[-1], w["norm.weight"]) @ w["output.weight"].T
    torch.testing.assert_close(logits[0].double(), full[list(lm.candidate_ids)], atol=1e-4, rtol=1e-4)


def test_rope_turns_interleaved_pairs_by_a_bfloat16_table():
    config = replace(TINY.language_model.slow, rope_base=100.0, head_dim=4)
    table = rope_table(3, config)
    assert table.shape == (3, 2, 2)
    assert table[2, 1].tolist() == [float(torch.tensor(f(0.2)).bfloat16()) for f in (math.cos, math.sin)]
    exact = rope_table(3, replace(config, rope_bf16=False))
    assert exact[2, 1].tolist() == pytest.approx([math.cos(0.2), math.sin(0.2)], abs=1e-7)
    turned = rotate(torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 1, 4), exact)[0, 2, 0]
    assert turned.tolist() == pytest.approx([math.cos(2), math.sin(2), -math.sin(0.2), math.cos(0.2)], abs=1e-6)


def test_caches_are_as_long_as_asked(tiny):
    cache = tiny.language_model.slow_cache(33)
    assert isinstance(cache, KVCache)
    assert cache.length == 33
    assert [k.shape for k in cache.keys] == [(1, 2, 33, 16)] * 2
    assert tiny.language_model.fast_cache(batch=3).values[0].shape == (3, 2, 4, 16)


def test_generation_allocates_what_it_needs(tiny, monkeypatch):
    lengths = []
    original = LanguageModel.slow_cache
    monkeypatch.setattr(LanguageModel, "slow_cache", lambda self, *how: lengths.append(how) or original(self, *how))
    list(tiny.generate(tiny.encode_text("abc"), max_new_tokens=7))
    assert lengths == [(5 + 7, 1)]


@torch.inference_mode()
def test_tied_output_uses_the_embeddings():
    lm = replace(TINY.language_model, tie_output=True)
    model, _ = random_weights(replace(TINY, language_model=lm), seed=0)
    assert "output.weight" not in dict(model.named_parameters())
    normed = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    expected = normed @ model.embeddings.weight[list(lm.candidate_ids)].T
    torch.testing.assert_close(model.slow_logits(normed), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_scaling_is_a_switch(tiny):
    sequence = columns(4)
    plain = replace(TINY.language_model, scale_codebook_embeddings=False)
    model, _ = random_weights(replace(TINY, language_model=plain), seed=0)  # the same weights as tiny
    scaled, unscaled = tiny.language_model.embed(sequence), model.embed(sequence)
    np.testing.assert_array_equal(scaled[:, 0::2], unscaled[:, 0::2])  # text columns
    np.testing.assert_allclose(scaled[:, 1::2] * math.sqrt(5), unscaled[:, 1::2], rtol=1e-5, atol=1e-6)


def test_parameter_names():
    names = {name for name, _ in load("tiny").language_model.named_parameters()}
    block = {
        "attention_norm.weight",
        "attention.qkv.weight",
        "attention.out.weight",
        "ffn_norm.weight",
        "ffn.gate.weight",
        "ffn.up.weight",
        "ffn.down.weight",
    }
    norms = {"attention.q_norm.weight", "attention.k_norm.weight"}
    top = {"embeddings", "codebook_embeddings", "norm", "output", "fast_embeddings", "fast_norm", "fast_output"}
    assert names == (
        {f"{name}.weight" for name in top}
        | {f"layers.{i}.{name}" for i in range(2) for name in block | norms}
        | {f"fast_layers.0.{name}" for name in block}
    )
