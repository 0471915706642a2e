"""Compiled products of int16, and convolutions with one output, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from exact_convolutions import decibels, exact, seeded
from torch import Tensor

from accelerator import kernels
from accelerator.codec.convolutions import Kernel, Minimal, Packed, Plain, Split, product, splits
from accelerator.codec.dense import Dense, Single

compiled = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


def dense(kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Dense:
    return Dense(kernel.shape, lambda: kernel, bias, dilation)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize(("out", "channels", "batch"), [(32, 32, 1), (96, 160, 2), (224, 416, 1)])
def test_any_length_gives_what_a_convolution_gives(
    taps: int, dilation: int, out: int, channels: int, batch: int, threads: int
) -> None:
    kernel, bias = seeded(out, taps, channels) / (channels * taps) ** 0.5, seeded(out, seed=1)
    ours = dense(kernel, bias, dilation)
    for rows in (0, 1, 2, 11, 12, 13, 70):
        x = seeded(batch, rows + (taps - 1) * dilation, channels, seed=rows)
        before = x.clone()
        y = ours(x)
        assert y.shape == (batch, rows, out)
        assert not rows or decibels(y, exact(x, kernel, bias, dilation)) > 66
        assert torch.equal(x, before)


@compiled
def test_each_row_has_a_scale_of_its_own() -> None:
    kernel = seeded(64, 1, 256)
    x = seeded(1, 30, 256) * torch.logspace(-9, 9, 30)[:, None]
    for row, expected in zip(dense(kernel)(x)[0], exact(x, kernel, None)[0], strict=True):
        assert decibels(row, expected) > 66


@compiled
def test_no_sum_overflows() -> None:
    """Inputs and weights of the same size everywhere add up to the most that can be."""
    for sign in (1, -1):
        kernel, x = torch.full((32, 2, 512), 0.5 * sign), torch.full((1, 41, 512), 3.0)
        torch.testing.assert_close(dense(kernel)(x), exact(x, kernel, None).float(), rtol=1e-3, atol=0)


@compiled
def test_nothing_gives_the_bias() -> None:
    bias = seeded(32)
    for kernel, x in ((torch.zeros(32, 1, 64), seeded(1, 20, 64)), (seeded(32, 1, 64), torch.zeros(1, 20, 64))):
        assert torch.equal(dense(kernel, bias)(x), bias.expand(1, 20, 32))


@compiled
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(value: float) -> None:
    x = seeded(1, 40, 64)
    x[0, 20, 7] = value
    y = dense(seeded(32, 2, 64))(x)[0]
    assert not y[[19, 20]].isfinite().any()
    assert y[:19].isfinite().all()
    assert y[21:].isfinite().all()


@compiled
@pytest.mark.parametrize(("taps", "channels"), [(1, 3), (7, 96), (7, 32), (5, 33)])
def test_one_output_is_a_sum(taps: int, channels: int, threads: int) -> None:
    kernel, bias = seeded(1, taps, channels), seeded(1, seed=1)
    for given in (None, bias):
        ours = Single(kernel, given)
        for rows in (0, 1, 4, 500):
            x = seeded(2, rows + taps - 1, channels, seed=rows)
            y = ours(x)
            assert y.shape == (2, rows, 1)
            assert not rows or decibels(y, exact(x, kernel, given)) > 110


@compiled
def test_which_product_is_made() -> None:
    def kind(*shape: int, **options) -> type:
        return type(product(seeded(*shape), None, **options))

    assert kind(64, 1, 64, form="split") is (Split if splits() else Dense)
    assert kind(64, 1, 64, form="int16") is Dense
    assert kind(64, 2, 64, form="int16") is Minimal
    assert kind(64, 1, 64, form="winograd") is not Dense
    assert kind(64, 1, 60, form="int16") is not Dense
    assert kind(64, 1, 64, form="int16", stride=2) in (Packed, Plain)
    assert kind(1, 7, 96, form="winograd") is Single
    assert kind(1, 7, 96, form="winograd", dilation=3) is not Single
    assert kind(2, 7, 96, form="winograd") is not Single
    assert kind(1, 7, 96, form="plain") is Plain
    huge = Kernel((6144, 2, 1536), lambda: seeded(1))
    assert type(product(huge, None, form="int16")) is Dense, "evaluated weights would need too much memory"
