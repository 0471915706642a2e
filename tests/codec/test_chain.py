"""Convolutions in a chain, by AMX or by vectors of bfloat16, against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from accelerator import kernels
from accelerator.codec.chain import Chain, Link, Product, around, bfloats, floats, gates, pairs
from accelerator.codec.convolutions import convolver
from accelerator.codec.polyphase import polyphase
from tests.exact_convolutions import decibels, exact, seeded

pytestmark = pytest.mark.skipif(not kernels.multiplies_chains(), reason="needs AMX or AVX512_BF16, and numba")
AROUND = 64


def of_pairs(low: np.ndarray) -> np.ndarray:
    """What an exact product takes, as numbers."""
    if not kernels.multiplies_tiles():
        return low.view(np.float32)
    high, rest = np.split(floats(low), 2, axis=1)
    return high + rest


def in_bf16(x: Tensor) -> np.ndarray:
    return np.pad(bfloats(x.numpy()), ((AROUND, AROUND), (0, 0)))


@pytest.mark.parametrize(("out", "taps", "channels", "dilation"), [(32, 1, 32, 1), (96, 3, 64, 12), (64, 7, 160, 2)])
def test_an_exact_product_gives_what_a_convolution_gives(out: int, taps: int, channels: int, dilation: int) -> None:
    kernel, bias = seeded(out, taps, channels) / (channels * taps) ** 0.5, seeded(out, seed=1)
    reach = (taps - 1) * dilation // 2
    product = Product(kernel.numpy(), bias.numpy(), before=reach, dilation=dilation, exact=True)
    chain = Chain([Link(product, "x", "y")], ("x", "y"), 192)
    for rows in (1, 31, 32, 33, 400):
        x, y = seeded(rows, channels, seed=rows), np.empty((rows, out), np.float32)
        chain(rows, {"x": pairs(x.numpy(), AROUND, AROUND)[AROUND:], "y": y}, threads=1)
        padded = functional.pad(x, (0, 0, reach, reach))
        assert decibels(torch.from_numpy(y), exact(padded[None], kernel, bias, dilation)[0]) > 90


def test_bfloat16_is_what_pytorch_rounds_to() -> None:
    x = torch.cat((seeded(1000), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, -3e38])))  # with two ties
    expected = x.to(torch.bfloat16)
    np.testing.assert_array_equal(bfloats(x.numpy()).view(np.int16), expected.view(torch.int16).numpy())
    np.testing.assert_array_equal(floats(bfloats(x.numpy())), expected.float().numpy())


def test_what_pairs_lose_is_below_sixteen_bits() -> None:
    x = seeded(5, 32).numpy()
    made = pairs(x, 2, 3)
    assert made.shape == (10, 64)
    assert not made[:2].any()
    assert not made[7:].any()
    np.testing.assert_allclose(of_pairs(made[2:7]), x, rtol=2**-16)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("spread", "within"), [(0.1, 2e-5), (2.0, 1e-3), (40.0, 1e-2)])
def test_a_gated_link_gives_tanh_times_the_logistic_function(paired: bool, spread: float, within: float) -> None:
    """Also where both are as good as 0 or 1. Its answer has half of the columns. A large sum is exact to 16 bits."""
    rows, channels = 70, 64
    kernel, shift, added = seeded(2 * channels, 1, 32), seeded(2 * channels, seed=1), seeded(2 * channels, seed=2)
    x = spread * seeded(rows, 32, seed=3)
    product = Product(gates(kernel.numpy()), gates(shift.numpy()), before=0, exact=True)
    chain = Chain([Link(product, "x", low="low", paired=paired, gated=True)], ("x", "low"), 32)
    low = around(rows, channels * (2 if paired else 1), np.uint16, 0)
    buffers = {"x": pairs(x.numpy(), AROUND, AROUND)[AROUND:], "low": low}
    chain(rows, buffers, {0: gates(added.numpy())}, threads=2)
    up, gate = (exact(x[None], kernel, shift + added)[0]).chunk(2, dim=1)
    expected, got = up.tanh() * gate.sigmoid(), of_pairs(low) if paired else floats(low)
    np.testing.assert_allclose(got, expected.numpy(), atol=within + (0 if paired else 4e-3))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 500])
def test_a_chain_gives_what_its_links_give_one_after_the_other(rows: int, paired: bool) -> None:
    """A residual step over a transposed convolution, by tiles of 64 rows: with noughts beyond the ends, in each."""
    rate, pad, slope, length = 4, 2, 0.1, -(-rows // 4)
    weight, bias = seeded(64, 32, 2 * rate) / 16, seeded(32, seed=1)
    kernel, repeated = polyphase(weight.numpy(), bias.numpy(), rate)
    up = Product(kernel.swapaxes(1, 2), repeated, before=1, exact=paired)
    weights = [seeded(32, 5, 32, seed=i) / 160**0.5 for i in (2, 3)]
    inner = Product(weights[0].numpy(), None, before=6, dilation=3, exact=paired)
    onward = Product(weights[1].numpy(), bias.numpy(), before=2, exact=paired)
    given, slopes = ("given", "y"), (1.0, slope)
    links = (
        Link(up, "given", "x", "low", rate=rate, pad=pad, slopes=slopes, halo=8, paired=paired),
        Link(inner, "low", low="next", slopes=slopes, halo=2, paired=paired),
        Link(onward, "next", "y", add="x", slopes=(0.5, 1.0)),
    )
    latents = seeded(length, 64, seed=rows)
    before = pairs(latents.numpy(), AROUND, AROUND) if paired else in_bf16(latents)
    y = np.empty((length * rate, 32), np.float32)
    Chain(links, given, 64)(length * rate, {"given": before[AROUND:], "y": y}, threads=1)

    def low(x: Tensor) -> Tensor:
        return x.double() if paired else x.to(torch.bfloat16).double()

    x = functional.conv_transpose1d(low(latents).T, low(weight), bias.double(), rate, pad)
    h = functional.conv1d(low(functional.leaky_relu(x, slope)), low(weights[0]).transpose(1, 2), padding=6, dilation=3)
    h = functional.conv1d(low(functional.leaky_relu(h, slope)), low(weights[1]).transpose(1, 2), bias.double(), 1, 2)
    expected = functional.leaky_relu(x + h, 0.5).T
    assert decibels(torch.from_numpy(y), expected) > (85 if paired else 60)


def test_threads_and_tiles_change_nothing() -> None:
    kernel, x = seeded(64, 3, 32).numpy(), in_bf16(seeded(700, 32))
    product, answers = Product(kernel, None, before=1), []
    for tile, threads in ((32, 1), (32, 3), (256, 2), (1024, 1)):
        y = np.full((700, 64), np.nan, np.float32)
        Chain([Link(product, "x", "y")], ("x", "y"), tile)(700, {"x": x[AROUND:], "y": y}, threads=threads)
        answers.append(y)
    assert all(np.array_equal(each, answers[0]) for each in answers)


def test_onednn_goes_on_with_its_own_tiles() -> None:
    """It remembers how it has configured a thread's tiles, and would not look again."""
    product, x = Product(seeded(64, 3, 32).numpy(), None, before=1), in_bf16(seeded(300, 32))
    chain = Chain([Link(product, "x", "y")], ("x", "y"), 192)
    theirs = convolver(seeded(48, 3, 80), None, dtype=torch.bfloat16)
    given = seeded(1, 200, 80).to(torch.bfloat16)
    expected, answers = theirs(given), []
    for _ in range(3):
        answers.append(np.empty((300, 64), np.float32))
        chain(300, {"x": x[AROUND:], "y": answers[-1]}, threads=1)
        assert torch.equal(theirs(given), expected)
        np.testing.assert_array_equal(answers[-1], answers[0])


def test_other_shapes_are_not_taken() -> None:
    assert Product.takes((64, 3, 32))
    assert not Product.takes((64, 3, 16))
    assert not Product.takes((1, 7, 32))


@pytest.mark.parametrize("threads", [1, 3])
def test_moments_are_those_of_each_tile_of_the_sum(threads: int) -> None:
    """Of the last one, too, which has fewer rows; far from nought, where squares would not tell."""
    rows, channels, tile = 300, 64, 128
    kernel, bias, added = seeded(channels, 3, 32) / 10, seeded(channels, seed=1), 1000 + seeded(rows, channels, seed=2)
    x, y = seeded(rows, 32, seed=3), np.empty((rows, channels), np.float32)
    product = Product(kernel.numpy(), bias.numpy(), before=1)
    moments, given = np.empty((3, 2, channels), np.float32), ("x", "y", "add", "moments")
    chain = Chain([Link(product, "x", "y", add="add", moments="moments")], given, tile)
    buffers = {"x": in_bf16(x)[AROUND:], "y": y, "add": added.numpy(), "moments": moments}
    chain(rows, buffers, threads=threads)
    tiles = [y[start : start + tile].astype(np.float64) for start in range(0, rows, tile)]
    np.testing.assert_allclose(moments[:, 0], [each.mean(axis=0) for each in tiles], rtol=1e-6)
    np.testing.assert_allclose(moments[:, 1], [each.var(axis=0) * len(each) for each in tiles], rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 32, 128, 300])
def test_a_link_makes_its_input_of_a_signal(rows: int, threads: int) -> None:
    """Beyond both ends there is nought, and not the snake of it."""
    channels, dilation = 64, 5
    kernel, factor, shift = seeded(32, 7, channels) / 20, 3 * seeded(channels, seed=1), seeded(channels, seed=2)
    signal, y = 2 * seeded(rows, channels, seed=3), np.full((rows, 32), np.nan, np.float32)
    names = ("signal", "factor", "shift", "y")
    product = Product(kernel.numpy(), None, before=15, dilation=dilation)
    link = Link(product, "x", "y", signal="signal", factor="factor", shift="shift")
    buffers = {name: each.numpy() for name, each in (("signal", signal), ("factor", factor), ("shift", shift))}
    Chain([link], names, 128)(rows, {**buffers, "y": y}, threads=threads)
    z = signal.double() * factor + shift
    low, weights = (torch.from_numpy(floats(bfloats(each.float().numpy()))) for each in (z + z.sin().square(), kernel))
    expected = exact(functional.pad(low, (0, 0, 15, 15))[None], weights, None, dilation)[0]
    assert decibels(torch.from_numpy(y), expected) > 55  # a sine may round to the other side


def test_threads_have_about_as_many_rows_each() -> None:
    chain = Chain([Link(Product(seeded(32, 1, 32).numpy(), None, before=0), "x", "y")], ("x", "y"), 192)
    assert [chain._even(rows, 2) for rows in (10, 64, 200, 384, 385, 400)] == [32, 32, 128, 192, 128, 128]
    assert chain._even(400, 1) == 192
