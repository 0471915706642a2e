"""Minimal filtering gives what a convolution gives, for any length, dilation and batch, nearly as exactly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from accelerator import kernels
from accelerator.codec import convolutions, winograd
from accelerator.codec.convolutions import MANY, Kernel, Plain, Split, convolver
from accelerator.codec.layers import Convolution
from accelerator.codec.winograd import TAPS, Minimal, Winograd
from accelerator.kernels import filters


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Winograd:
    return Winograd(kernel.shape, lambda: kernel, bias, dilation)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)


@pytest.mark.parametrize(("number", "taps"), [(6, 3), (6, 7), (8, 7), (5, 2)])
def test_the_matrices_filter(number: int, taps: int) -> None:
    """A^T ((G w) * (B^T x)) is the filter's outputs, for every unit filter and unit input."""
    outputs, weights, inputs = filters(number, taps)
    assert len(outputs) == number
    given = np.random.default_rng(0).standard_normal((taps, len(inputs)))
    for tap in range(taps):
        w = np.eye(taps)[tap]
        for x in (*np.eye(len(inputs)), *given):
            expected = [x[i : i + taps] @ w for i in range(len(outputs))]
            np.testing.assert_allclose(outputs @ ((weights @ w) * (inputs @ x)), expected, atol=1e-12)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("dilation", [1, 2, 3, 9])
@pytest.mark.parametrize("batch", [1, 2])
def test_any_length_gives_what_a_convolution_gives(taps: int, dilation: int, batch: int) -> None:
    kernel, bias = seeded(24, taps, 16) / (16 * taps) ** 0.5, seeded(24, seed=1)
    ours, plain = made(kernel, bias, dilation), Plain(kernel, bias, dilation=dilation)
    for rows in (1, 2, 3, 4, 5, 8, 9, 17, 64, 101):
        x = seeded(batch, rows + (taps - 1) * dilation, 16, seed=rows)
        before = x.clone()
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-4)
        assert torch.equal(x, before)


@pytest.mark.parametrize("taps", TAPS)
def test_it_is_nearly_as_exact_as_a_sum(taps: int) -> None:
    kernel, x = seeded(64, taps, 192) / (192 * taps) ** 0.5, seeded(1, 512, 192)
    exact = torch.nn.functional.conv1d(x.double().transpose(1, 2), kernel.double().permute(0, 2, 1)).transpose(1, 2)
    ours, plain = ((convolve(x) - exact).square().mean().sqrt() for convolve in (made(kernel), Plain(kernel, None)))
    assert ours < 1e-5
    assert ours < 12 * plain


def test_long_inputs_go_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = seeded(8, 7, 8) / 8, seeded(1, 2000, 8)
    whole = made(kernel, dilation=3)(x)
    monkeypatch.setattr(winograd, "_WORKED_ON", 1)
    torch.testing.assert_close(made(kernel, dilation=3)(x), whole, rtol=1e-5, atol=1e-5)


def test_what_was_before_in_memory_does_not_matter() -> None:
    """Windows reach beyond the end; what is there is not heard, were it infinite."""
    kernel = seeded(8, 7, 8)
    for dilation in (1, 3):
        made(kernel, dilation=dilation)(torch.full((1, 400, 8), torch.inf))
        for length in (25, 26, 27, 28, 29):
            assert made(kernel, dilation=dilation)(seeded(1, length, 8)).isfinite().all()


@pytest.mark.usefixtures("no_kernels")
def test_wide_filters_of_such_lengths_are_computed_so() -> None:
    for taps in (1, 2, 3, 5, 7):
        kernel = seeded(MANY, taps, MANY)
        assert isinstance(convolver(kernel, None, form="winograd"), Winograd) == (taps in TAPS)
    kernel = seeded(MANY, 7, MANY)
    assert not isinstance(convolver(kernel, None, form="plain"), Winograd)
    assert not isinstance(convolver(kernel, None, form="packed"), Winograd)
    assert not isinstance(convolver(kernel, None, form="winograd", stride=2), Winograd)
    assert not isinstance(convolver(kernel, None, form="winograd", dtype=torch.bfloat16), Winograd)
    assert not isinstance(convolver(seeded(1, 7, MANY), None, form="winograd"), Winograd)


@pytest.mark.usefixtures("no_kernels")
def test_it_stands_in_where_nothing_can_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    for splits in (False, True):
        monkeypatch.setattr(convolutions, "splits", lambda answer=splits: answer)
        assert isinstance(convolver(seeded(MANY, 7, MANY), None, form="split"), Split if splits else Winograd)


@pytest.fixture(params=["compiled", "not compiled"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """What convolutions of form "winograd" are, with compiled kernels and without."""
    if request.param == "compiled" and not kernels.available():
        pytest.skip("compiled kernels need AVX2 and numba")
    monkeypatch.setattr(kernels, "available", lambda: request.param == "compiled")
    return Minimal if request.param == "compiled" else Winograd


def test_a_layer_goes_on_where_it_ended(either: type) -> None:
    conv, x = Convolution(seeded(MANY, 7, MANY) / 20, seeded(MANY), dilation=3, form="winograd"), seeded(1, 90, MANY)
    state: dict[int, Tensor] = {}
    joined = torch.cat([conv(part, state) for part in x.split([1, 30, 7, 52], dim=1)], dim=1)
    torch.testing.assert_close(joined, conv(x, {}), rtol=1e-4, atol=1e-3)


def test_weights_are_read_once_and_shared_by_threads(either: type) -> None:
    kernel, reads = seeded(MANY, 7, MANY) / 20, []

    def read() -> Tensor:
        reads.append(1)
        return kernel

    shared, plain = convolver(Kernel(tuple(kernel.shape), read), None, form="winograd"), Plain(kernel, None)
    assert isinstance(shared, either)
    assert not reads

    def run(length: int) -> float:
        x = seeded(1, length, MANY, seed=length)
        return float((shared(x) - plain(x)).abs().max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(run, [30, 40, 300, 31, 500, 41, 301, 501] * 2)) < 1e-3
    assert len(reads) == 1
