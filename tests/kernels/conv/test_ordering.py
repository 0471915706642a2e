"""Weights in the order in which compiled products read them, against what numpy makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from accelerator import kernels
from accelerator.export.graph.dual_ar import round_to_bfloat16
from accelerator.kernels import descriptors, tiles
from accelerator.kernels.conv.layers import _ordered

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")

THREADS = [1, 2, 5]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def evaluated(kernel: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """[columns, taps, in] at each point, float64 [points, columns / 32, in, 32]."""
    points = np.einsum("pt,oti->poi", factors, kernel.astype(np.float64))
    return points.reshape(len(factors), -1, 32, kernel.shape[2]).transpose(0, 1, 3, 2)


def unpaired(quantized: np.ndarray, points: int, channels: int) -> np.ndarray:
    """[points, columns / 32, in / 32, 16, 32, 2] -> [points, columns / 32, in, 32]."""
    paired = quantized.reshape(points, -1, channels // 32, 16, 32, 2)
    return paired.transpose(0, 1, 2, 5, 3, 4).reshape(points, -1, channels, 32)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("columns", "taps", "channels", "points"), [(32, 1, 32, 1), (96, 7, 160, 14), (64, 2, 64, 6)])
def test_float32_is_evaluated_and_rounded_once(
    columns: int, taps: int, channels: int, points: int, threads: int
) -> None:
    kernel, factors = drawn(columns, taps, channels), drawn(points, taps).astype(np.float64)
    answer, _ = _ordered(kernel, kernel.shape, 0, threads, factors)
    expected = evaluated(kernel, factors)
    np.testing.assert_allclose(answer.reshape(expected.shape), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("threads", THREADS)
def test_pairs_of_bfloat16_are_the_nearest(threads: int) -> None:
    kernel = drawn(64, 1, 96)
    answer, _ = _ordered(kernel, kernel.shape, descriptors.AS_BF16, threads)
    pairs = (answer.astype(np.uint32) << 16).view(np.float32).reshape(2, 48, 32, 2)  # [columns / 32, in / 2, 32, 2]
    expected = round_to_bfloat16(kernel).reshape(2, 32, 48, 2).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(pairs, expected)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize(("taps", "points"), [(1, 1), (2, 6)])
def test_int16_is_the_nearest_with_scales_that_leave_room_for_sums(taps: int, points: int, threads: int) -> None:
    kernel, factors = drawn(64, taps, 320), np.ones((1, 1)) if taps == 1 else drawn(points, taps).astype(np.float64)
    answer, scales = _ordered(kernel, kernel.shape, descriptors.AS_INT16, threads, factors)
    expected, scale = evaluated(kernel, factors), scales.reshape(points, 2, 1, 32).astype(np.float64)
    quantized = unpaired(answer, points, 320).astype(np.float64)
    assert np.abs(quantized - expected / scale).max() < 0.5 + 1e-2  # the scale is rounded to float32
    sums = np.add.reduceat(np.abs(quantized), range(0, 320, 32 * tiles.TOGETHER), axis=2).max(2)
    assert (sums * (tiles.LARGEST_INT16 + 1) < 2**31).all()
    full = np.maximum(sums * (tiles.LARGEST_INT16 + 1) / 2**31, np.abs(quantized).max(2) / tiles.LARGEST_INT16)
    assert (full > 0.98).all()  # no finer than could be


def test_what_is_not_multiplied_together_is_not_summed_together() -> None:
    kernel = np.full((32, 1, 64), 1.0, np.float32)
    _, whole = _ordered(kernel, kernel.shape, descriptors.AS_INT16, 1)
    _, halves = _ordered(kernel, kernel.shape, descriptors.AS_INT16, 1, run=32)
    assert (whole > 1.9 * halves).all()


def test_weights_of_zero_are_quantized_to_zero() -> None:
    kernel = np.zeros((32, 1, 32), np.float32)
    answer, scales = _ordered(kernel, kernel.shape, descriptors.AS_INT16, 1)
    assert not answer.any()
    assert (scales == 1).all()
