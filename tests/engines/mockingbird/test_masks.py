"""Masks are those that PyTorch's dropout would draw at the same place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from accelerator.engines.mockingbird.masks import Masks

WIDTHS = ((14, 12), (16, 10))


def drawn(length: int, steps: int, rates: tuple[float, float]) -> list[np.ndarray]:
    shapes = [(1, length, width) for width in WIDTHS[0]] + [(1, width) for width in WIDTHS[1]] * steps
    return [F.dropout(torch.ones(shape), rates[len(shape) == 2], training=True).numpy() for shape in shapes]


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.3, 0.0)])
def test_a_seed_gives_the_masks_that_pytorch_draws(rates: tuple[float, float]) -> None:
    masks = Masks(7, WIDTHS, rates)
    found = [*masks.text(9), *(mask for number in range(3) for mask in masks.step(number))]
    torch.manual_seed(7)
    for mask, expected in zip(found, drawn(9, 3, rates), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_a_step_asked_for_again_has_the_same_masks() -> None:
    masks = Masks(7, WIDTHS, (0.5, 0.5))
    masks.text(4)
    later, earlier = masks.step(5), masks.step(1)
    np.testing.assert_array_equal(masks.step(5)[0], later[0])
    np.testing.assert_array_equal(masks.step(1)[1], earlier[1])
    assert not np.array_equal(later[0], earlier[0])


def test_without_a_seed_pytorchs_random_state_goes_on() -> None:
    torch.manual_seed(3)
    first = Masks(None, WIDTHS, (0.5, 0.5)).text(5)[0]
    second = Masks(None, WIDTHS, (0.5, 0.5)).text(5)[0]
    torch.manual_seed(3)
    np.testing.assert_array_equal(first, F.dropout(torch.ones(1, 5, 14), 0.5, training=True).numpy())
    assert not np.array_equal(first, second)


def test_a_seed_leaves_pytorchs_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    Masks(7, WIDTHS, (0.5, 0.5)).step(3)
    assert torch.equal(before, torch.random.get_rng_state())
