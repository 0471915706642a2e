"""Convolutions in a chain by AMX, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from accelerator import kernels
from accelerator.codec.chain import Chain, Link, Paired, Product, pairs
from accelerator.codec.convolutions import convolver
from accelerator.codec.polyphase import polyphase
from tests.exact_convolutions import decibels, exact, seeded

pytestmark = pytest.mark.skipif(not kernels.multiplies_tiles(), reason="needs AMX with bfloat16, and numba")
AROUND = 64


def in_bf16(x: Tensor) -> Tensor:
    return functional.pad(x.to(torch.bfloat16), (0, 0, AROUND, AROUND))


@pytest.mark.parametrize(("out", "taps", "channels", "dilation"), [(32, 1, 32, 1), (96, 3, 64, 12), (64, 7, 160, 2)])
def test_pairs_give_what_a_convolution_gives(out: int, taps: int, channels: int, dilation: int) -> None:
    kernel, bias = seeded(out, taps, channels) / (channels * taps) ** 0.5, seeded(out, seed=1)
    ours = convolver(kernel, bias, dilation=dilation, form="pairs")
    assert isinstance(ours, Paired)
    for rows in (1, 31, 32, 33, 400):
        x = seeded(2, rows + (taps - 1) * dilation, channels, seed=rows)
        assert decibels(ours(x), exact(x, kernel, bias, dilation)) > 90


def test_what_pairs_lose_is_below_sixteen_bits() -> None:
    x = seeded(5, 32)
    made = pairs(x, 2, 3).float()
    assert made.shape == (10, 64)
    assert not made[:2].any()
    assert not made[7:].any()
    torch.testing.assert_close(made[2:7, :32] + made[2:7, 32:], x, rtol=2**-16, atol=0)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 500])
def test_a_chain_gives_what_its_links_give_one_after_the_other(rows: int, paired: bool) -> None:
    """A residual step over a transposed convolution, by tiles of 64 rows: with noughts beyond the ends, in each."""
    rate, pad, slope, length = 4, 2, 0.1, -(-rows // 4)
    weight, bias = seeded(64, 32, 2 * rate) / 16, seeded(32, seed=1)
    kernel, repeated = polyphase(weight, bias, rate)
    up = Product(kernel.transpose(1, 2), repeated, before=1, exact=paired)
    weights = [seeded(32, 5, 32, seed=i) / 160**0.5 for i in (2, 3)]
    inner = Product(weights[0], None, before=6, dilation=3, exact=paired)
    onward = Product(weights[1], bias, before=2, exact=paired)
    given, slopes = ("given", "y"), (1.0, slope)
    links = (
        Link(up, "given", "x", "low", rate=rate, pad=pad, slopes=slopes, halo=8, paired=paired),
        Link(inner, "low", low="next", slopes=slopes, halo=2, paired=paired),
        Link(onward, "next", "y", add="x", slopes=(0.5, 1.0)),
    )
    latents = seeded(length, 64, seed=rows)
    before = pairs(latents, AROUND, AROUND) if paired else in_bf16(latents)
    y = torch.empty(length * rate, 32)
    Chain(links, given, 64)(length * rate, {"given": before[AROUND:], "y": y})

    def low(x: Tensor) -> Tensor:
        return x.double() if paired else x.to(torch.bfloat16).double()

    x = functional.conv_transpose1d(low(latents).T, low(weight), bias.double(), rate, pad)
    h = functional.conv1d(low(functional.leaky_relu(x, slope)), low(weights[0]).transpose(1, 2), padding=6, dilation=3)
    h = functional.conv1d(low(functional.leaky_relu(h, slope)), low(weights[1]).transpose(1, 2), bias.double(), 1, 2)
    expected = functional.leaky_relu(x + h, 0.5).T
    assert decibels(y, expected) > (85 if paired else 60)


def test_threads_and_tiles_change_nothing() -> None:
    kernel, x = seeded(64, 3, 32), in_bf16(seeded(700, 32))
    product, answers, before = Product(kernel, None, before=1), [], torch.get_num_threads()
    try:
        for tile, threads in ((32, 1), (32, 3), (256, 2), (1024, 1)):
            torch.set_num_threads(threads)
            y = torch.full((700, 64), torch.nan)
            Chain([Link(product, "x", "y")], ("x", "y"), tile)(700, {"x": x[AROUND:], "y": y})
            answers.append(y)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, answers[0]) for each in answers)


def test_onednn_goes_on_with_its_own_tiles() -> None:
    """It remembers how it has configured a thread's tiles, and would not look again."""
    kernel, x = seeded(64, 3, 32), seeded(1, 300, 32)
    theirs = convolver(seeded(48, 3, 80), None, dtype=torch.bfloat16)
    ours, given = Paired(kernel, None, 1), seeded(1, 200, 80).to(torch.bfloat16)
    expected = theirs(given)
    for _ in range(3):
        first = ours(x)
        assert torch.equal(theirs(given), expected)
        assert torch.equal(ours(x), first)


def test_other_shapes_are_not_taken() -> None:
    assert Product.takes((64, 3, 32))
    assert not Product.takes((64, 3, 16))
    assert not Product.takes((1, 7, 32))
    assert not isinstance(convolver(seeded(64, 3, 16), None, form="pairs"), Paired)
