"""A codec's compiled convolutions against PyTorch's, on one thread and on several."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accelerator import kernels
from accelerator.codec import convolutions, layers
from accelerator.codec.convolutions import Kernel, Packed, convolver
from accelerator.codec.layers import Unit, Weights
from accelerator.codec.winograd import Minimal, Winograd
from accelerator.errors import SessionError
from accelerator.kernels import Filter, Mix, descriptors, job, parallel
from accelerator.kernels import compiler as compiled_
from accelerator.kernels.conv import layers as conv_layers
from accelerator.kernels.units.mix import MIX
from accelerator.kernels.units.snake import SNAKE
from tests.exact_convolutions import decibels, exact, seeded

compiled = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")
low_ones = pytest.mark.skipif(not Mix.takes((32, 32), "bf16"), reason="needs products of bfloat16")


def made(kernel: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Minimal:
    return Minimal(kernel.shape, lambda: kernel, bias, dilation)


@compiled
@pytest.mark.parametrize("taps", [2, 7])
@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize(("out", "channels", "batch"), [(32, 32, 1), (64, 96, 2), (224, 64, 1)])
def test_any_length_gives_what_a_convolution_gives(
    taps: int, dilation: int, out: int, channels: int, batch: int
) -> None:
    kernel, bias = seeded(out, taps, channels) / (channels * taps) ** 0.5, seeded(out, seed=1)
    ours = made(kernel, bias, dilation)
    for rows in (0, 1, 2, 5, 8, 9, 71, 72, 73, 500):
        x = seeded(batch, rows + (taps - 1) * dilation, channels, seed=rows)
        before = x.clone()
        y = ours(x)
        assert y.shape == (batch, rows, out)
        assert not rows or decibels(y, exact(x, kernel, bias, dilation)) > 85
        assert torch.equal(x, before)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_is_nearly_as_exact_as_a_sum_on_any_number_of_threads(threads: int) -> None:
    kernel, x = seeded(96, 7, 192) / (192 * 7) ** 0.5, seeded(1, 2000, 192)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert decibels(made(kernel)(x), exact(x, kernel, None, 1)) > 95
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_snake_comes_with_it(dtype: Any) -> None:
    kernel, bias, x = seeded(64, 7, 32), seeded(64), seeded(2, 300, 32)
    out = torch.full((2, 294, 64), torch.nan, dtype=dtype)
    made(kernel, bias).snaked(x, out)
    y = exact(x, kernel, bias, 1)
    assert decibels(out, y + torch.sin(y).square()) > (85 if dtype == torch.float32 else 50)


@compiled
def test_what_was_before_in_memory_does_not_matter() -> None:
    """Tiles reach beyond the end; what is there is not heard, were it infinite."""
    kernel = seeded(32, 7, 32)
    for dilation in (1, 3):
        made(kernel, dilation=dilation)(torch.full((1, 400, 32), torch.inf))
        for length in (25, 26, 27, 28, 29):
            assert made(kernel, dilation=dilation)(seeded(1, length, 32)).isfinite().all()


@compiled
def test_what_is_no_number_stays_none() -> None:
    x = seeded(1, 100, 32)
    x[0, 50] = torch.nan
    heard = made(seeded(32, 7, 32))(x)[0].isnan().any(1)
    assert heard[44:51].all()


def of_int16(kernel: Tensor, bias: Tensor | None = None) -> Minimal:
    return Minimal(kernel.shape, lambda: kernel, bias, 1, int16=True)


@compiled
@pytest.mark.parametrize(("out", "channels"), [(32, 32), (192, 192), (64, 416)])
def test_int16_is_exact_to_65_decibels(out: int, channels: int) -> None:
    kernel, bias = seeded(out, 2, channels) / (2 * channels) ** 0.5, seeded(out, seed=1)
    for rows in (1, 5, 6, 300):
        x = seeded(2, rows + 1, channels, seed=rows) * torch.logspace(-3, 3, rows + 1)[:, None]
        y, expected = of_int16(kernel, bias)(x), exact(x, kernel, bias, 1)
        for tile, other in zip(y.split(5, dim=1), expected.split(5, dim=1), strict=True):
            assert decibels(tile, other) > 50  # rows of a tile differ in size
        x = seeded(2, rows + 1, channels, seed=rows)
        assert decibels(of_int16(kernel, bias)(x), exact(x, kernel, bias, 1)) > 62


@compiled
def test_no_sum_of_int16_overflows() -> None:
    """Inputs and weights of the same size everywhere add up to the most that can be."""
    x = torch.full((1, 41, 512), 3.0)
    for kernel in (torch.full((32, 2, 512), 0.5), -torch.full((32, 2, 512), 0.5)):
        torch.testing.assert_close(of_int16(kernel)(x), exact(x, kernel, None, 1).float(), rtol=1e-3, atol=0)
    kernel = torch.full((32, 2, 512), 0.5)
    kernel[:, 1] *= -1  # the largest values at other points
    x[:, ::2] *= -1
    torch.testing.assert_close(of_int16(kernel)(x), exact(x, kernel, None, 1).float(), rtol=1e-3, atol=0)


@compiled
def test_nothing_quantized_is_nothing() -> None:
    bias = seeded(32)
    for kernel, x in ((torch.zeros(32, 2, 64), seeded(1, 20, 64)), (seeded(32, 2, 64), torch.zeros(1, 20, 64))):
        assert torch.equal(of_int16(kernel, bias)(x), bias.expand(1, 19, 32))


@compiled
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_when_quantized(value: float) -> None:
    x = seeded(1, 101, 64)
    x[0, 50, 7] = value
    heard = of_int16(seeded(32, 2, 64))(x)[0]
    assert not heard[[49, 50]].isfinite().any()
    assert heard[:40].isfinite().all()


@compiled
@pytest.mark.parametrize(("dtype", "least"), [("fp32", 85), ("int16", 70), pytest.param("bf16", 50, marks=low_ones)])
@pytest.mark.parametrize("rows", [1, 11, 12, 13, 500])
def test_a_mix_adds_a_product_of_what_a_filter_gives(dtype: str, least: float, rows: int) -> None:
    kernel, bias, x = seeded(64, 7, 32) / 15, seeded(64), seeded(1, rows + 6, 32)
    weight, shift, y = seeded(96, 64, seed=2) / 8, seeded(96, seed=3), seeded(1, rows, 96, seed=4)
    hidden = exact(x, kernel, bias, 1)
    hidden = hidden + torch.sin(hidden).square()
    expected = y + hidden @ weight.T.double() + shift
    made(kernel, bias).residual(x, Mix((96, 64), weight.numpy, shift.numpy(), dtype), y)
    assert decibels(y, expected) > least
    nothing = torch.zeros(1, 0, 96)
    made(kernel, bias).residual(x[:, :6], Mix((96, 64), weight.numpy, shift.numpy(), dtype), nothing)


@compiled
@pytest.mark.parametrize("dtype", ["fp32", "int16"])
def test_what_is_no_number_stays_none_in_a_mix(dtype: str) -> None:
    x, weight, y = seeded(1, 106, 32), seeded(32, 64, seed=2), torch.zeros(1, 100, 32)
    x[0, 50, 3] = torch.nan
    made(seeded(64, 7, 32)).residual(x, Mix((32, 64), weight.numpy, None, dtype), y)
    assert y[0, 44:51].isnan().all()
    assert y[0, :30].isfinite().all()
    assert y[0, 70:].isfinite().all()


@compiled
@pytest.mark.parametrize(
    ("dtype", "form", "least"),
    [
        (torch.float32, "winograd", 85),
        (torch.float32, "int16", 65),
        pytest.param(torch.bfloat16, "winograd", 45, marks=low_ones),
    ],
)
@pytest.mark.parametrize("dilation", [1, 9])
def test_a_unit_is_what_it_is_without_kernels(
    dtype: Any, form: Any, least: float, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "splits", lambda: False)
    tensors = {
        "alpha": seeded(96).abs() + 0.5,
        "first.kernel": seeded(96, 7, 96, seed=1) / 25,
        "first.bias": seeded(96, seed=2),
        "second.kernel": seeded(96, 1, 96, seed=3) / 10,
        "second.bias": seeded(96, seed=4),
    }
    x = seeded(1, 700, 96, seed=5)
    unit = Unit(Weights(tensors, form=form), dilation, dtype)
    assert isinstance(unit._second, Mix)
    state: layers.State = {}
    joined = torch.cat([unit(part.clone(), state) for part in x.split([1, 300, 7, 392], dim=1)], dim=1)
    expected = Unit(Weights(tensors, form="plain"), dilation)(x.clone(), {})
    assert least < decibels(joined, expected.double()) < least + 50


@compiled
def test_what_products_are_computed_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for taps in (1, 2, 3, 5, 7):
        found = convolver(seeded(96, taps, 96), None, form="winograd")
        assert isinstance(found, Minimal) == (taps in (2, 7))
    kernel = seeded(32, 7, 32)
    assert isinstance(convolver(kernel, None, form="winograd"), Minimal)
    assert not isinstance(convolver(kernel, None, form="packed"), Minimal)
    assert not isinstance(convolver(kernel, None, form="winograd", stride=2), Minimal)
    assert not isinstance(convolver(kernel, None, form="winograd", dtype=torch.bfloat16), Minimal)
    assert not isinstance(convolver(seeded(1, 7, 96), None, form="winograd"), Minimal)
    large = Kernel((6144, 2, 1536), lambda: pytest.fail("not read yet"))
    assert isinstance(convolver(large, None, form="winograd"), Packed)  # its evaluated weights would be 230 MB
    assert isinstance(convolver(seeded(64, 2, 32), None, form="int16"), Minimal)
    monkeypatch.setattr(convolutions, "splits", lambda: True)
    assert convolutions.of_filters(torch.bfloat16) == torch.bfloat16
    monkeypatch.setattr(convolutions, "splits", lambda: False)
    assert convolutions.of_filters(torch.bfloat16) == torch.float32


@compiled
def test_kernels_that_cannot_be_had_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise SessionError("no kernels")

    monkeypatch.setattr(conv_layers, "require", none)
    kernel, x = seeded(96, 7, 96) / 25, seeded(1, 100, 96)
    without = convolver(kernel, None, form="winograd")
    assert isinstance(without, Winograd)
    assert decibels(without(x), exact(x, kernel, None, 1)) > 85
    assert convolutions.mix(Kernel.of(seeded(96, 1, 96)), None, torch.float32) is None


# Parts


@pytest.fixture(params=["OpenMP", "pool"])
def threads_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pool":
        monkeypatch.setattr(parallel, "_parallel", lambda: None)
    elif parallel._parallel() is None:
        pytest.skip("PyTorch is without GNU's OpenMP here")
    return str(request.param)


@compiled
@pytest.mark.usefixtures("threads_of")
@pytest.mark.parametrize("count", [0, 1, 2, 7, 300])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_part_is_done_once(count: int, threads: int) -> None:
    """Rows are multiplied by 1 more in each run over them: a row that two parts did would be so twice."""
    y, weights = seeded(10 * count + 1, 32), torch.eye(32).numpy()
    before, values = y.clone(), torch.ones(Mix.room(len(y)) * 32)
    mixed = Mix((32, 32), lambda: weights, None, "fp32")
    mixed(values.data_ptr(), 0, y.data_ptr(), threads=1)
    bias, ordered = np.zeros(32, np.float32), mixed._weights(1)
    plan = descriptors.Mix(
        values=values.data_ptr(),
        value_scales=0,
        room=Mix.room(len(y)),
        channels=32,
        x=y.data_ptr(),
        rows=len(y),
        columns=32,
        weights=ordered.ctypes.data,
        weight_scales=0,
        bias=bias.ctypes.data,
        kind=0,
    )
    room = np.zeros(threads * 4 * 12 * 32 + 64, np.uint8)
    memory = room.ctypes.data + -room.ctypes.data % 64
    groups = -(-len(y) // 12)
    ends = [min(len(y), 12 * (groups * i // count)) for i in range(count + 1)] if count else []
    parallel.in_parts(MIX, plan, ends, threads, memory, 4 * 12 * 32)
    torch.testing.assert_close(y, before + 1 if count else before)


@compiled
def test_a_part_that_fails_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    if parallel._parallel() is None:
        pytest.skip("PyTorch is without GNU's OpenMP here")
    numbers = [ctypes.c_int64] * 3
    broken = ctypes.CFUNCTYPE(ctypes.c_int32, *numbers)(lambda *_: 1)
    made = compiled_.function(SNAKE)
    monkeypatch.setattr(made, "address", ctypes.cast(broken, ctypes.c_void_p).value)
    for _ in range(2):
        with pytest.raises(SessionError, match="a compiled kernel failed"):
            parallel.in_parts(SNAKE, [0] * 8, [0, 1, 2, 3], 2)


@compiled
def test_other_threads_need_no_interpreter() -> None:
    """The caller keeps its lock, and a part is done all the same."""
    if parallel._parallel() is None:
        pytest.skip("PyTorch is without GNU's OpenMP here")
    x, y = seeded(64, 1024), torch.empty(64, 1024)
    plan = np.array(descriptors.Snake(x.data_ptr(), 0, y.data_ptr(), 1024, x_is_bf16=0, y_is_bf16=0), np.int64)
    made = compiled_.function(SNAKE)
    work = np.array(job.job(made.address, plan.ctypes.data, 0, 0, range(65)), np.int64)
    address = ctypes.cast(parallel._parallel(), ctypes.c_void_p).value
    holding = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    holding(address)(compiled_.region(), work.ctypes.data, 3, 0)
    assert work[job.WORKERS] == 3
    torch.testing.assert_close(y, x + torch.sin(x).square())


def test_without_openmp_there_is_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel._parallel.cache_clear()
    monkeypatch.setattr(parallel, "library", lambda: None)
    try:
        assert parallel._parallel() is None
    finally:
        parallel._parallel.cache_clear()


@compiled
def test_what_there_are_kernels_for() -> None:
    assert Filter.takes((64, 7, 32))
    assert not Filter.takes((64, 5, 32))
    assert not Filter.takes((48, 7, 32))
    assert not Filter.takes((64, 7, 48))
    assert Mix.takes((64, 32), "fp32")
    assert not Mix.takes((48, 32), "fp32")
    assert Mix.room(13) == 24
