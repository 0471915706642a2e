"""Compiled draws against numpy's: the same tokens from the same random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from accelerator import kernels
from accelerator.engines.fish_speech.layouts import HEAD, S1
from accelerator.inference.frame_loop import draw as compiled_draw
from accelerator.inference.sampling import Draws, Sampler, TokenLayout, draw, nucleus, penalise
from accelerator.speech import SamplingParams
from tests.plain_sampling import hard_logits

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


class Given:
    """A source of one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def described(
    number: float = 0.5,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    recent: np.ndarray | None = None,
    penalty: float = 1.0,
    rows: int | None = None,
) -> Draws:
    recent = np.zeros((1, 0), np.int64) if recent is None else recent[None]
    return Draws(np.ascontiguousarray(recent), np.array([number]), temperature, top_p, top_k, penalty, rows)


def on_an_edge(logits: np.ndarray, temperature: float, top_p: float, top_k: int | None, number: float) -> bool:
    """Whether rounding decides, so that two correct answers differ."""
    masses = np.exp(np.sort(logits.astype(np.float64))[::-1] - float(logits.max()))
    if top_p < 1 and np.any(np.abs(np.cumsum(masses / masses.sum()) - top_p) < 1e-5):
        return True
    size = nucleus(logits, top_p=top_p, top_k=top_k).size
    kept = np.sort(np.argsort(-logits, kind="stable")[:size])
    weights = np.exp((logits[kept].astype(np.float64) - float(logits.max())) / max(temperature, 1e-5))
    return bool(np.any(np.abs(np.cumsum(weights / weights.sum()) - number) < 1e-5))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 200, 1024, 4097])
def test_every_draw_is_numpys(n: int) -> None:
    random, compared = np.random.default_rng(n), 0
    for _ in range(300):
        logits, number = hard_logits(random, n), float(random.random())
        top_p = float(random.choice([1e-9, 0.3, 0.7, 0.9, 0.999, 1.0]))
        top_k = random.choice([None, 1, 5, 30, 64, 5000])
        temperature = float(random.choice([0.0, 1e-5, 0.7, 1.0, 3.0]))
        recent, penalty = random.integers(-3, n + 3, 16), float(random.choice([0.9, 1.1, 7.0]))
        before = logits.copy()
        options = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        drawn = compiled_draw(logits, described(number, recent=recent, penalty=penalty, **options))
        np.testing.assert_array_equal(logits, before)
        expected = penalise(logits, [int(v) for v in recent if 0 <= v < n], penalty)
        if not math.isfinite(expected.max()):
            assert drawn == -1
        elif temperature == 0.0 or not on_an_edge(expected, **options, number=number):
            assert drawn == draw(expected, Given(number), **options)  # type: ignore[arg-type]
            compared += 1
    assert compared > 100


def test_draws_have_the_distribution() -> None:
    logits = (np.random.default_rng(5).standard_normal(200) * 1.5).astype(np.float32)
    logits[7] = logits[90] = logits.max()
    count = 20_000  # numbers that lie evenly draw everything as often as it is likely, to a half
    counts = np.zeros(200)
    for i in range(count):
        counts[compiled_draw(logits, described((i + 0.5) / count, temperature=0.8, top_p=0.9, top_k=30))] += 1
    order = np.argsort(-logits, kind="stable")[: nucleus(logits, top_p=0.9, top_k=30).size]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / 0.8)
    assert np.abs(counts[order] - count * weights / weights.sum()).max() < 2
    assert counts.sum() == counts[order].sum() == count


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf]])
def test_unusable_logits(bad: list[float], temperature: float) -> None:
    for top_p in (0.9, 1.0):
        assert compiled_draw(np.array(bad, np.float32), described(temperature=temperature, top_p=top_p)) == -1


def test_only_leading_logits_may_be_drawn() -> None:
    logits = np.arange(50, dtype=np.float32) * 100
    assert compiled_draw(logits, described(rows=20)) == 19
    assert compiled_draw(logits, described(rows=200)) == 49


@pytest.mark.parametrize("rule", ["head", "s1"])
def test_a_samplers_draws_are_what_it_would_draw(rule: str) -> None:
    layout = TokenLayout(semantic_begin=1000, semantic_end=2023, end_id=7, n_codebooks=10)
    params = SamplingParams(temperature=0.8, top_p=0.8, top_k=200, repetition_penalty=1.4, seed=3)
    random = np.random.default_rng(0)
    frames = [[1005, 5, *random.integers(0, 1024, 9)] for _ in range(20)]
    for history in ([], frames[:1], frames[:5], frames):
        ours, theirs = (Sampler({"s1": S1, "head": HEAD}[rule].rule, params, layout).resume(history) for _ in range(2))
        logits = random.standard_normal((9, 1200)).astype(np.float32)
        draws = ours.draws()
        assert draws.uniforms.shape == (9,)
        for k in range(9):
            alone = draws._replace(recent=draws.recent[k : k + 1].copy(), uniforms=draws.uniforms[k:].copy())
            assert compiled_draw(logits[k], alone) == theirs.code(k + 1, logits[k])
