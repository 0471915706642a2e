"""Sampling: against straightforward float64 and torch formulations, by distribution, and as a sequence."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from accelerator.engines.fish_speech import layouts
from accelerator.errors import BadOutput
from accelerator.inference.sampling import Sampler, SamplingRule, TokenLayout, draw, nucleus, penalise
from accelerator.speech import SamplingParams
from tests import plain_sampling as plain

HEAD, S1 = layouts.HEAD.rule, layouts.S1.rule
LAYOUT = TokenLayout(semantic_begin=100, semantic_end=163, end_id=90, n_codebooks=4)
WARM = SamplingParams(temperature=0.8, top_p=0.9, top_k=30, repetition_penalty=1.3, seed=7)


def first_code(token: int, layout: TokenLayout = LAYOUT) -> int:
    """The code of the first codebook that a main token stands for, clamped into it (the end token has none)."""
    return min(max(token - layout.semantic_begin, 0), layout.n_semantic - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_logits(n: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (rng(seed).standard_normal(n) * scale).astype(np.float32)


def reference_probs(logits: np.ndarray, temperature: float, top_p: float, top_k: int | None) -> np.ndarray:
    """The rule word by word in float64, ties to the lower index; NaN-free input."""
    x = logits.astype(np.float64)
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    full = np.exp(x - x.max())
    full /= full.sum()
    kept, mass = [], 0.0
    for rank, i in enumerate(order):
        mass += full[i]
        if rank == 0 or (mass <= top_p and (top_k is None or rank < top_k)):
            kept.append(i)
    probs = np.zeros(len(x))
    tempered = x[kept] / max(temperature, 1e-5)
    weights = np.exp(tempered - tempered.max())
    probs[kept] = weights / weights.sum()
    return probs


def our_probs(logits: np.ndarray, temperature: float, top_p: float, top_k: int | None) -> np.ndarray:
    """What `draw` draws from, by ranks laid back onto indices."""
    ranked = nucleus(logits, top_p=top_p, top_k=top_k).astype(np.float64)
    assert np.all(ranked[1:] <= ranked[:-1])
    order = np.argsort(-logits, kind="stable")[: len(ranked)]
    np.testing.assert_array_equal(logits[order], ranked.astype(np.float32))
    weights = np.exp((ranked - ranked[0]) / max(temperature, 1e-5))
    probs = np.zeros(len(logits))
    probs[order] = weights / weights.sum()
    return probs


def near_a_cut(logits: np.ndarray, top_p: float) -> bool:
    """Whether rounding decides what crosses top_p, so that two correct answers differ."""
    full = np.exp(np.sort(logits.astype(np.float64))[::-1] - float(logits.max()))
    return bool(np.any(np.abs(np.cumsum(full / full.sum()) - top_p) < 1e-5))


def fits(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Pearson's chi-square test, at four standard deviations of its statistic."""
    freedom = len(observed) - 1
    return bool(((observed - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom))


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1024, 4097])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.9, 30), (0.7, None), (1.0, None), (1.0, 5), (1e-9, None), (0.999, 4096)]
)
def test_probabilities(n: int, scale: float, top_p: float, top_k: int | None) -> None:
    logits = random_logits(n, seed=n, scale=scale)
    ours, expected = our_probs(logits, 0.7, top_p, top_k), reference_probs(logits, 0.7, min(top_p, 1 + 1e-9), top_k)
    if top_p == 1.0:  # nothing is cut, whatever a sum rounds to
        expected = reference_probs(logits, 0.7, 2.0, top_k)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 30), (0.8, None), (0.95, 200)])
def test_probabilities_of_the_torch_formulation(top_p: float, top_k: int | None) -> None:
    import torch

    logits = random_logits(4097, seed=3, scale=3.0)
    x = torch.from_numpy(logits)
    ordered, index = torch.sort(x, descending=True)
    drop = torch.cumsum(torch.softmax(ordered, -1), -1) > top_p
    if top_k is not None:
        drop |= torch.arange(len(x)) >= top_k
    drop[0] = False
    expected = torch.softmax(x.masked_fill(drop.scatter(-1, index, drop), -math.inf) / 0.6, -1)
    np.testing.assert_allclose(our_probs(logits, 0.6, top_p, top_k), expected.numpy(), rtol=1e-5, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32) | st.just(-math.inf), min_size=1, max_size=150),
    temperature=st.floats(0.05, 2.0),
    top_p=st.floats(0.01, 1.0),
    top_k=st.none() | st.integers(1, 160),
)
def test_probabilities_property(logits: list[float], temperature: float, top_p: float, top_k: int | None) -> None:
    x = np.array(logits, np.float32)
    assume(np.isfinite(x.max()))
    assume(top_p == 1.0 or not near_a_cut(x, top_p))
    before = x.copy()
    expected = reference_probs(x, temperature, 2.0 if top_p == 1.0 else top_p, top_k)
    np.testing.assert_allclose(our_probs(x, temperature, top_p, top_k), expected, rtol=1e-5, atol=1e-9)
    token = draw(x, rng(), temperature=temperature, top_p=top_p, top_k=top_k)
    assert expected[token] > 0 or expected.max() > 1 - 1e-6
    np.testing.assert_array_equal(x, before)  # an argument is never written to


@pytest.mark.parametrize(("top_p", "top_k", "temperature"), [(0.9, 30, 0.8), (0.8, None, 1.3), (1.0, 3, 0.5)])
def test_distribution_of_draws(top_p: float, top_k: int | None, temperature: float) -> None:
    logits = random_logits(200, seed=5, scale=1.5)
    logits[7] = logits[90] = logits.max()  # a tie for the first rank
    source, draws = rng(1), 50_000
    counts = np.bincount(
        [draw(logits, source, temperature=temperature, top_p=top_p, top_k=top_k) for _ in range(draws)], minlength=200
    )
    expected = reference_probs(logits, temperature, top_p, top_k) * draws
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], max(expected[~often].sum(), 1.0))
    assert fits(observed, wanted)


def test_the_token_which_crosses_top_p_is_dropped_unless_it_is_first() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    assert len(nucleus(logits, top_p=0.79)) == 1
    assert len(nucleus(logits, top_p=0.81)) == 2
    assert len(nucleus(logits, top_p=0.1)) == 1


def test_top_p_counts_the_mass_beyond_top_k() -> None:
    logits = np.zeros(100, np.float32)  # each 1 %: ranks 0..9 have 10 % of everything, though all of the kept
    assert len(nucleus(logits, top_p=0.055, top_k=10)) == 5


def test_equal_logits_rank_by_index() -> None:
    logits = np.array([1, 3, 2, 3, 3, 2], np.float32)
    seen = {draw(logits, source, temperature=1.0, top_p=1.0, top_k=2) for source in map(rng, range(50))}
    assert seen == {1, 3}
    seen = {draw(logits, source, temperature=1.0, top_p=1.0, top_k=4) for source in map(rng, range(200))}
    assert seen == {1, 2, 3, 4}


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full(300, -np.inf, np.float32)
    logits[[11, 200]] = 0.0
    for top_k in (None, 30):
        seen = {draw(logits, source, temperature=1.0, top_p=1.0, top_k=top_k) for source in map(rng, range(40))}
        assert seen == {11, 200}


def test_a_mask_of_lowest_floats_does_not_overflow() -> None:
    logits = np.full(10, np.finfo(np.float32).min, np.float32)
    logits[4] = 12.0
    assert draw(logits, rng(), temperature=1e-9, top_p=1.0) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf], []])
def test_unusable_logits(bad: list[float], temperature: float) -> None:
    with pytest.raises(BadOutput, match="no token can be drawn"):
        draw(np.array(bad, np.float32), rng(), temperature=temperature, top_p=0.9, top_k=30)


def test_greedy_is_the_first_maximum() -> None:
    logits = np.array([0, 5, 1, 5], np.float32)
    assert draw(logits, rng(), temperature=0.0, top_p=0.5) == 1
    assert {draw(np.array([0, 1e-2], np.float32), rng(s), temperature=1e-9, top_p=1.0) for s in range(30)} == {1}


def test_penalty_once_per_distinct_index() -> None:
    logits = np.array([2.0, -2.0, 0.0, 3.0], np.float32)
    np.testing.assert_allclose(penalise(logits, np.array([0, 1, 1, 0, 2]), 2.0), [1.0, -4.0, 0.0, 3.0])
    np.testing.assert_array_equal(logits, [2.0, -2.0, 0.0, 3.0])


def test_layout() -> None:
    assert LAYOUT.rows.tolist() == [*range(100, 164), 90]
    assert [LAYOUT.token(row) for row in range(65)] == LAYOUT.rows.tolist()
    assert LAYOUT.rows_of([100, 163, 90, 99, 164, 0, 130]) == [0, 63, 64, 30]


# Sequences


def one_hot(n: int, at: int, height: float = 50.0) -> np.ndarray:
    logits = np.zeros(n, np.float32)
    logits[at] = height
    return logits


def frame(token: int, *codes: int) -> list[int]:
    return [token, first_code(token), *(codes or (1, 2, 3))]


def test_main_answers_vocabulary_ids() -> None:
    sampler = Sampler(HEAD, WARM, LAYOUT)
    assert sampler.main(one_hot(65, 5)) == 105
    assert sampler.main(one_hot(65, 64)) == 90
    assert isinstance(sampler.main(one_hot(65, 5)[None, None]), int)  # [1, 1, n] is accepted
    with pytest.raises(BadOutput, match="64 logits instead of 65"):
        sampler.main(one_hot(64, 5))


def test_unresolved_parameters() -> None:
    with pytest.raises(ValueError, match="over"):
        Sampler(HEAD, SamplingParams(), LAYOUT)


def two_ways(first: int, second: int) -> np.ndarray:
    """`first` alone at top_p 0.3; both, about equally, at RAS's 0.9."""
    logits = np.full(65, -20.0, np.float32)
    logits[first], logits[second], logits[[60, 61]] = 1.0, 0.9, -0.5
    return logits


def drawn(history: list[list[int]], logits: np.ndarray, rule=HEAD, **params: float) -> set[int]:
    options = {"temperature": 0.8, "top_p": 0.3, "top_k": 30} | params
    tokens = set()
    for seed in range(40):
        sampler = Sampler(rule, SamplingParams(seed=seed, **options), LAYOUT).resume(history)
        tokens.add(sampler.main(logits))
    return tokens


def test_ras_redraws_a_semantic_token_seen_in_the_last_ten() -> None:
    logits, other = two_ways(5, 6), frame(130)
    assert drawn([], logits) == {105}
    assert drawn([frame(105)], logits) == {105}, "the prefill's token is not in the window"
    assert drawn([other, frame(105)], logits) == {105, 106}
    assert drawn([other, frame(105), *[other] * 9], logits) == {105, 106}, "tenth to last"
    assert drawn([other, frame(105), *[other] * 10], logits) == {105}, "has left the window"
    assert drawn([other, frame(105)], logits, temperature=0.0) == {105}, "greedy stays greedy"


def test_ras_leaves_the_end_token_and_empty_slots_alone() -> None:
    assert drawn([frame(130), frame(90)], two_ways(64, 6)) == {90}
    low = TokenLayout(semantic_begin=1, semantic_end=64, end_id=0, n_codebooks=4)  # zero is the end token here
    sampler = Sampler(HEAD, SamplingParams(temperature=1.0, top_p=0.3, seed=1), low).resume([[1, 0, 0, 0, 0]] * 2)
    assert {sampler.main(two_ways(64, 6)) for _ in range(30)} == {0}


def test_ras_leaves_codes_and_penalties_alone() -> None:
    sampler = Sampler(HEAD, WARM, LAYOUT).resume([frame(105, 9, 9, 9)] * 5)
    assert sampler.code(1, one_hot(1024, 9)) == 9
    nearly = np.zeros(1024, np.float32)
    nearly[9], nearly[10] = 1.0, 0.99
    greedy = Sampler(HEAD, SamplingParams(temperature=0, top_p=1.0, repetition_penalty=2.0), LAYOUT)
    assert greedy.resume([frame(105, 9, 9, 9)] * 5).code(1, nearly) == 9


GREEDY_S1 = SamplingParams(temperature=0.0, top_p=0.7, repetition_penalty=2.0)


def s1(history: list[list[int]], layout: TokenLayout = LAYOUT) -> Sampler:
    return Sampler(S1, GREEDY_S1, layout).resume(history)


def slope(n: int, *ranked: int) -> np.ndarray:
    """Logits whose best indices are `ranked`, each 0.9 of the one before: a penalty of 2 moves one behind the rest."""
    logits = np.full(n, 0.01, np.float32)
    logits[list(ranked)] = 10 * 0.9 ** np.arange(len(ranked))
    return logits


def test_s1_penalises_the_codebooks_own_window() -> None:
    logits = slope(1024, 9, 8, 7)
    prefill, other = frame(101, 9, 9, 9), frame(101, 100, 200, 300)
    assert s1([]).code(1, logits) == 9
    assert s1([prefill]).code(1, logits) == 9, "the prefill's codes are not in the window"
    assert s1([prefill, frame(101, 9, 8, 7)]).code(1, logits) == 8
    assert s1([prefill, frame(101, 9, 8, 7)]).code(2, logits) == 9
    assert s1([prefill, frame(101, 100, 9, 7)]).code(2, logits) == 8
    assert s1([prefill, frame(101, 9, 8, 7), *[other] * 15]).code(1, logits) == 8, "sixteenth to last"
    assert s1([prefill, frame(101, 9, 8, 7), *[other] * 16]).code(1, logits) == 9, "has left the window"


def test_s1_penalises_zero_until_the_window_is_full() -> None:
    logits, other = slope(1024, 0, 8, 7), frame(101, 100, 200, 300)
    assert s1([]).code(1, logits) == 0, "the prefill has no window"
    assert s1([other]).code(1, logits) == 8
    assert s1([other] * 16).code(1, logits) == 8, "fifteen after the prefill: one empty slot left"
    assert s1([other] * 17).code(1, logits) == 0


def test_s1_main_sees_the_oldest_frame_of_the_window() -> None:
    """The engine's `previous_tokens[:, 0]`: one frame's main token and codes, all taken as vocabulary ids."""
    prefill, other = frame(101), frame(140)
    logits = slope(65, 5, 6, 7)
    assert s1([prefill]).main(logits) == 105
    assert s1([frame(105), other]).main(logits) == 105
    assert s1([prefill, frame(105)]).main(logits) == 106
    assert s1([prefill, frame(105), *[other] * 15]).main(logits) == 106, "still the oldest of sixteen"
    assert s1([prefill, frame(105), *[other] * 16]).main(logits) == 105
    assert s1([prefill, other, frame(105)]).main(logits) == 105, "any but the oldest is ignored"
    assert s1([prefill, frame(140, 105, 106, 3)]).main(logits) == 107, "codes hit semantic ids"
    assert s1([prefill, frame(140, 90, 1, 2)]).main(slope(65, 64, 3)) == 103, "and the end token"


def test_s1_takes_a_thousand_and_twenty_four_codes() -> None:
    logits = one_hot(4096, 1024)
    logits[33] = 10.0
    assert s1([]).code(1, logits) == 33
    assert Sampler(HEAD, GREEDY_S1, LAYOUT).code(1, logits) == 1024
    wide = frame(140, 2000, 2000, 2000)  # a window may hold codes that the logits lack
    assert s1([wide, wide]).code(1, one_hot(64, 7)) == 7


def naive_s1_window(history: list[list[int]]) -> np.ndarray:
    """The engine's windows, from a zeroed history of all frames after the prefill's: [1 + C, 16]."""
    frames = history[1:]
    slots = np.zeros((5, max(16, len(frames))), int)
    if frames:
        slots[:, : len(frames)] = np.array(frames).T
    return slots[:, :16] if len(frames) < 16 else slots[:, len(frames) - 16 : len(frames)]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_s1_windows_property(length: int, seed: int) -> None:
    source = rng(seed)
    history = [
        frame(int(t), *map(int, c))
        for t, c in zip(source.choice(LAYOUT.rows, length), source.integers(0, 200, (length, 3)), strict=True)
    ]
    window = naive_s1_window(history)
    main, code = random_logits(65, seed=seed), random_logits(200, seed=seed + 1)
    expected = main.copy()
    for token in set(window[:, 0].tolist()) & set(LAYOUT.rows.tolist()):
        row = LAYOUT.rows.tolist().index(token)
        expected[row] = main[row] * 2 if main[row] < 0 else main[row] / 2
    assert s1(history).main(main) == LAYOUT.rows[expected.argmax()]
    expected = code.copy()
    for value in set(window[3].tolist()):
        expected[value] = code[value] * 2 if code[value] < 0 else code[value] / 2
    assert s1(history).code(2, code) == expected.argmax()


def generate(sampler: Sampler, start: int, stop: int) -> list[list[int]]:
    frames = []
    for i in range(start, stop):
        token = sampler.main(random_logits(65, seed=i, scale=1.0))
        codes = [sampler.code(k, random_logits(1024, seed=100 * i + k)) for k in range(1, 4)]
        frames.append([token, first_code(token), *codes])
        sampler.push(frames[-1])
    return frames


@pytest.mark.parametrize("rule", [HEAD, S1], ids=["head", "s1"])
@pytest.mark.parametrize("cut", [0, 1, 2, 15, 16, 17, 18, 30])
@pytest.mark.parametrize("seed", [5, None])
def test_resuming_equals_continuing(rule, cut: int, seed: int | None) -> None:
    sampler = Sampler(rule, SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.5, seed=seed), LAYOUT)
    whole = generate(sampler, 0, 34)
    resumed = sampler.resume(np.array(whole[:cut]).reshape(cut, 5))
    assert resumed.frames == cut
    assert generate(resumed, cut, 34) == whole[cut:]


def test_resuming_in_the_middle_of_a_frame_starts_that_frame_again() -> None:
    sampler = Sampler(HEAD, WARM, LAYOUT)
    whole = generate(sampler.resume([]), 0, 3)
    frames = generate(sampler, 0, 2)
    sampler.main(random_logits(65, seed=99))  # this frame's other parts failed
    assert frames + generate(sampler.resume(frames), 2, 3) == whole


def test_seeds() -> None:
    def run(seed: int | None) -> list[list[int]]:
        return generate(Sampler(HEAD, SamplingParams(temperature=1.5, top_p=1.0, seed=seed), LAYOUT), 0, 5)

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert run(None) != run(None)
    assert run(2**63 - 1) == run(2**63 - 1)


def test_frames_draw_independently() -> None:
    """The first random numbers of consecutive frames are a fair sequence too, not only those within one."""
    sampler = Sampler(HEAD, SamplingParams(temperature=1.0, top_p=1.0, seed=0), LAYOUT)
    flat = np.zeros(8, np.float32)
    pairs = np.zeros((8, 8))
    last = 0
    for _ in range(6400):
        token = sampler.code(1, flat)
        pairs[last, token] += 1
        last = token
        sampler.push(frame(101))
    assert fits(pairs.ravel(), np.full(64, 100.0))


def test_threads_equal_serial() -> None:
    def run(seed: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.9, top_p=0.9, top_k=30, repetition_penalty=1.2, seed=seed)
        return generate(Sampler(S1 if seed % 2 else HEAD, params, LAYOUT), 0, 12)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, range(32)))
    assert together == [run(seed) for seed in range(32)]


# The fast implementation against the plain one: the same tokens from the same random numbers


@pytest.mark.parametrize("n", [1, 2, 30, 63, 64, 65, 200, 1024, 4097])
def test_every_draw_is_the_plain_ones(n: int) -> None:
    random = rng(n)
    for case in range(400):
        logits = plain.hard_logits(random, n)
        options = {
            "top_p": float(random.choice([1e-9, 0.3, 0.7, 0.9, 0.999, 1.0])),
            "top_k": random.choice([None, 1, 5, 30, 64, 65, 5000]),
        }
        if random.random() < 0.5:
            rows, penalty = random.integers(0, n, 16), float(random.choice([0.9, 1.1, 1.3, 7.0]))
            penalised = penalise(logits, rows, penalty)
            np.testing.assert_array_equal(penalised, plain.penalise(logits, rows, penalty))
            logits = penalised
        ranked = nucleus(logits, **options) if np.isfinite(logits.max()) else None
        if ranked is None:
            for function in (nucleus, plain.nucleus):
                with pytest.raises(BadOutput):
                    function(logits, **options)
            continue
        np.testing.assert_array_equal(ranked, plain.nucleus(logits, **options))
        temperature = float(random.choice([0.0, 1e-6, 0.7, 1.0, 3.0]))
        ours, theirs = rng(case), rng(case)
        drawn = [draw(logits, ours, temperature=temperature, **options) for _ in range(3)]
        assert drawn == [plain.draw(logits, theirs, temperature=temperature, **options) for _ in range(3)]


BOTH = SamplingRule(repetition="both", window=8, penalised="main_tokens", prefill_counts=True)
LARGE = TokenLayout(semantic_begin=1000, semantic_end=2023, end_id=7, n_codebooks=10)


@pytest.mark.parametrize("rule", [HEAD, S1, BOTH], ids=["head", "s1", "both"])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.7, 0.7, 30), (1.0, 0.95, None), (0.8, 1.0, 400)])
def test_every_frame_is_the_plain_ones(rule: SamplingRule, temperature: float, top_p: float, top_k: int | None) -> None:
    for seed in range(3):
        random = rng(seed)
        options = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": 2**62 + seed}
        params = SamplingParams(repetition_penalty=1.1, **options)
        ours, theirs, frames = Sampler(rule, params, LARGE), plain.PlainSampler(rule, params, LARGE), []
        likely = random.standard_normal(1025).astype(np.float32)  # the same in every frame, so that tokens come again
        for number in range(40):
            if number == 25:
                ours = ours.resume(frames)
            logits = [
                likely + random.standard_normal(1025).astype(np.float32) * 0.3,
                *[random_logits(1024, number)] * 9,
            ]
            drawn = []
            for sampler in (ours, theirs):
                token = sampler.main(logits[0])
                codes = [sampler.code(k, logits[k]) for k in range(1, 10)]
                drawn.append([token, first_code(token, LARGE), *codes])
            assert drawn[0] == drawn[1]
            frames.append(drawn[0])
            ours.push(drawn[0])
            theirs.push(drawn[0])
        assert len({frame[0] for frame in frames}) > 5
