"""Drawing tokens as transformers does, from ranges of ids, by a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from accelerator.errors import BadOutput
from accelerator.inference.token_sampling import TokenSampler, candidates
from accelerator.speech import SamplingParams

ROWS = np.array([*range(100, 150), *range(10, 20), 7])


def logits_of(seed: int, size: int = len(ROWS), spread: float = 2.0) -> np.ndarray:
    return (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def sampler(rows: np.ndarray = ROWS, allowed: Any = None, prompt: Any = (), **params: Any) -> TokenSampler:
    how = {"temperature": 0.8, "top_p": 0.95, "seed": 3, **params}
    return TokenSampler(SamplingParams(**how), rows, allowed=allowed, prompt=prompt)


def drawn(sampling: TokenSampler, count: int, begin: int = 0) -> list[int]:
    tokens = []
    for n in range(begin, begin + count):
        tokens.append(sampling.main(logits_of(n)))
        sampling.push(tokens[-1:])
    return tokens


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(50, 0.95), (None, 0.5), (5, 1.0), (None, 1.0), (1, 0.3), (400, 0.9)])
def test_what_may_be_drawn_is_what_transformers_keeps(temperature: float, top_k: int | None, top_p: float) -> None:
    """Spark-TTS's own values among them. Its order: temperature, top-k, top-p."""
    warpers: list[Any] = [theirs.TemperatureLogitsWarper(temperature)]
    warpers += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for seed in range(20):
        logits = logits_of(seed, 300)
        scores = torch.from_numpy(logits)[None]
        for warper in warpers:
            scores = warper(None, scores)
        expected = scores[0].softmax(-1).numpy()
        kept, shares = candidates(logits, temperature=temperature, top_p=top_p, top_k=top_k)
        assert set(kept) == set(np.flatnonzero(expected))
        np.testing.assert_allclose(shares, expected[kept], rtol=1e-4)
        assert (np.diff(shares) <= 0).all()


@pytest.mark.parametrize("size", [12_801, 20_000, 166_000])
def test_of_a_large_vocabulary_the_same_are_kept(size: int) -> None:
    """Sorted out in blocks: the last of top_k and its equals, wherever they lie, also where most cannot be drawn."""
    for seed in range(5):
        logits = np.round(logits_of(seed, size), 2)
        logits[:: 3 + seed] = -np.inf
        for top_k in (1, 49, 50):
            kept, _ = candidates(logits, temperature=0.8, top_k=top_k)
            assert set(kept) == set(np.flatnonzero(logits >= np.sort(logits)[-top_k]))
    few = np.full(size, -np.inf, np.float32)
    few[[0, 7, size - 1]] = 1.0, 2.0, 3.0
    assert candidates(few, temperature=1.0, top_k=50, top_p=0.999)[0].tolist() == [size - 1, 7, 0]


def test_the_crossing_token_stays() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.4], np.float32))
    for top_p, expected in ((0.45, [1]), (0.55, [1, 2]), (0.89, [1, 2]), (0.95, [1, 2, 0])):
        assert candidates(logits, temperature=1.0, top_p=top_p)[0].tolist() == expected


def test_equals_of_the_last_one_stay_too() -> None:
    kept, shares = candidates(np.array([1, 2, 1, 0, 1], np.float32), temperature=1.0, top_k=2)
    assert kept.tolist() == [1, 0, 2, 4]
    np.testing.assert_allclose(shares[1:], shares[1])


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits, sampling, count = np.log(np.array([0.1, 0.6, 0.3], np.float32)), sampler(np.arange(3)), 6000
    seen = np.zeros(3)
    for _ in range(count):
        token = sampling.main(logits * 0.8)
        seen[token] += 1
        sampling.push([token])
    np.testing.assert_allclose(seen / count, [0.1, 0.6, 0.3], atol=0.025)


def test_zero_is_greedy_and_the_first_of_equals_wins() -> None:
    logits = logits_of(0)
    assert sampler(temperature=0.0).main(logits) == ROWS[logits.argmax()]
    assert sampler(temperature=0.0).main(np.zeros(len(ROWS), np.float32)) == ROWS[0]


def test_a_seed_says_it_again_and_resuming_goes_on() -> None:
    whole = drawn(sampler(seed=11), 30)
    assert drawn(sampler(seed=11), 30) == whole
    assert drawn(sampler(seed=12), 30) != whole
    for at in (0, 1, 13):
        assert drawn(sampler(seed=11).resume(whole[:at]), 30 - at, begin=at) == whole[at:]
    penalised = sampler(seed=11, repetition_penalty=1.4)
    whole = drawn(penalised, 30)
    assert drawn(sampler(seed=11, repetition_penalty=1.4).resume(whole[:9]), 21, begin=9) == whole[9:]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_only_allowed_ids_are_drawn(temperature: float) -> None:
    tokens = drawn(sampler(allowed=[(105, 108), (12, 14)], temperature=temperature, top_p=1.0), 80)
    assert set(tokens) == {105, 106, 107, 12, 13}
    with pytest.raises(ValueError, match="none of the exported ids"):
        sampler(allowed=[(20, 100)])


def test_a_repetition_penalty_is_transformers() -> None:
    """Over the prompt's ids and those drawn, each once, whether its logit is positive or not."""
    said, vocabulary = [3, 9, 3, 17], np.arange(40)
    penalty = theirs.RepetitionPenaltyLogitsProcessor(1.7)
    for seed in range(30):
        logits = logits_of(seed, 40)
        sampling = sampler(vocabulary, prompt=said[:2], temperature=0.0, repetition_penalty=1.7)
        for token in said[2:]:
            sampling.push([token])
        expected = penalty(torch.tensor([said]), torch.from_numpy(logits.copy())[None])[0]
        assert sampling.main(logits) == int(expected.argmax())


@pytest.mark.parametrize("bad", [[np.nan, 1, 2], [-np.inf] * 3, [1, np.inf, 0]])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_unusable_logits(bad: list[float], temperature: float) -> None:
    for top_k in (None, 1):
        with pytest.raises(BadOutput, match="no token can be drawn from 3 logits"):
            sampler(np.arange(3), temperature=temperature, top_k=top_k).main(np.array(bad, np.float32))


def test_a_head_of_another_size_is_refused() -> None:
    with pytest.raises(BadOutput, match="5 logits instead of 61"):
        sampler().main(np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="needs a temperature and a top_p"):
        TokenSampler(SamplingParams(), ROWS)
