import numpy as np
import pytest
import torch

from accelerator.reference.sampling import Sampling, candidates, draw, penalise, repetition_aware


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expected_distribution(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """The same rule, written out over the whole vocabulary in float64."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    kept = [
        token for rank, token in enumerate(order) if rank == 0 or (rank < top_k and p[order[: rank + 1]].sum() <= top_p)
    ]
    result = np.zeros_like(p)
    weights = np.exp((logits[kept] - logits.max()) / temperature)
    result[kept] = weights / weights.sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(0.7, 0.8, 30), (1.0, 1.0, 5), (1.5, 0.5, 100), (0.3, 0.01, 3)]
)
def test_candidates_follow_the_rule(temperature, top_p, top_k):
    logits = torch.randn(50, generator=generator()) * 2
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    index, probabilities = candidates(logits, sampling)
    result = np.zeros(50)
    result[index.numpy()] = probabilities.numpy()
    np.testing.assert_allclose(
        result, expected_distribution(logits.double().numpy(), temperature, top_p, top_k), atol=1e-6
    )


def test_the_token_that_crosses_top_p_is_dropped():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert candidates(logits, Sampling(top_p=0.81))[0].tolist() == [0, 1]
    assert candidates(logits, Sampling(top_p=0.79))[0].tolist() == [0]
    assert candidates(logits, Sampling(top_p=0.1))[0].tolist() == [0]


def test_draws_have_the_distribution():
    logits = torch.randn(12, generator=generator(1))
    sampling = Sampling(temperature=0.9, top_p=0.9, top_k=8)
    source = generator(2)
    n = 6000
    counts = np.bincount([draw(logits, sampling, source) for _ in range(n)], minlength=12)
    p = expected_distribution(logits.double().numpy(), 0.9, 0.9, 8)
    assert (counts[p == 0] == 0).all()
    chi_square = (((counts - n * p) ** 2)[p > 0] / (n * p[p > 0])).sum()
    assert chi_square < 24  # 99.9 % of up to 7 degrees of freedom


def test_zero_temperature_is_argmax_and_draws_nothing():
    source = generator()
    before = source.get_state()
    assert draw(torch.tensor([0.0, 3.0, 1.0]), Sampling(temperature=0), source) == 1
    assert repetition_aware(torch.tensor([0.0, 3.0, 1.0]), Sampling(temperature=0), [1], source, exempt=2) == 1
    assert source.get_state().equal(before)


def test_penalty_lowers_recent_logits_once():
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalise(logits, [0, 1, 1], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert penalise(logits, [], 2.0).tolist() == penalise(logits, [0], 1.0).tolist() == [2.0, -2.0, 1.0]
    assert logits.tolist() == [2.0, -2.0, 1.0]


def test_repetition_aware_takes_the_second_draw_only_for_a_repeat():
    logits = torch.tensor([1.0, 1.0, 1.0, 1.0])
    sampling, freer = Sampling(temperature=0.7, top_p=1.0), Sampling(temperature=1.0, top_p=0.9)
    taken = {"first": 0, "second": 0}
    for seed in range(40):
        source = generator(seed)
        first, second = draw(logits, sampling, source), draw(logits, freer, source)
        after = source.get_state()
        source = generator(seed)
        choice = repetition_aware(logits, sampling, [0, 3], source, exempt=3)
        assert choice == (second if first == 0 else first)  # 3 is recent, but exempt
        assert source.get_state().equal(after)
        taken["second" if first == 0 else "first"] += 1
    assert min(taken.values()) > 3
