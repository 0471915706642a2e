"""Layers that look to both sides: equal to PyTorch's own, whole and window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from accelerator import kernels
from accelerator.codec.polyphase import polyphase
from accelerator.codec.sliding import Block, Convolution, Last, Linear, Push, Stage, State, Tensors
from tests.exact_convolutions import decibels, seeded

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")

Layer = Callable[[np.ndarray, Push], np.ndarray]


def tensors(given: dict[str, Tensor], dtype: str = "fp32") -> Tensors:
    arrays = {name: np.ascontiguousarray(each.numpy(), np.float32) for name, each in given.items()}
    return Tensors(arrays, {name: each.shape for name, each in arrays.items()}, dtype)  # type: ignore[arg-type]


def pushed(layer: Layer, x: np.ndarray, sizes: Sequence[int], threads: int = 1) -> np.ndarray:
    """The answers to windows of these sizes, the last one of what is left, joined."""
    state, answers, ends = State(), [], np.cumsum([*sizes, len(x) - sum(sizes)])
    for start, end in zip([0, *ends], ends, strict=False):
        answers.append(layer(x[start:end], Push(state, bool(end == len(x)), threads)).copy())
    return np.concatenate(answers)


def kernel_of(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_a_convolution_is_pytorchs(dilation: int) -> None:
    weight, bias, x = seeded(64, 32, 7) / 15, seeded(64, seed=1), seeded(50, 32, seed=2)
    expected = functional.conv1d(x.T[None], weight, bias, padding=3 * dilation, dilation=dilation)[0].T.numpy()
    layer = Convolution(tensors({"c.kernel": kernel_of(weight), "c.bias": bias}), "c", dilation)
    for sizes in ([], [1, 1, 1], [30, 5], [49]):
        np.testing.assert_allclose(pushed(layer, x.numpy(), sizes), expected, atol=2e-4)


def test_few_rows_are_enough() -> None:
    weight, bias = seeded(32, 32, 7) / 15, seeded(32, seed=1)
    layer = Convolution(tensors({"c.kernel": kernel_of(weight), "c.bias": bias}), "c", 9)
    for rows in (1, 2, 26, 28):
        x = seeded(rows, 32, seed=rows)
        expected = functional.conv1d(x.T[None], weight, bias, padding=27, dilation=9)[0].T.numpy()
        np.testing.assert_allclose(pushed(layer, x.numpy(), [1] * (rows - 1)), expected, atol=2e-4)


def snaked(x: Tensor, alpha: Tensor) -> Tensor:
    """[C, n]"""
    return x + torch.sin(alpha[:, None] * x).square() / alpha[:, None]


def stage(rate: int, size: int, pad: int) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """Weights of 64 to 32 channels with two units, and what they do to [n, 64]."""
    alpha, weight, bias = seeded(64).abs() + 0.5, seeded(64, 32, size, seed=1) / (8 * size**0.5), seeded(32, seed=2)
    phases, shifts = (torch.from_numpy(each) for each in polyphase(weight.numpy(), bias.numpy(), rate))  # type: ignore[arg-type]
    made = {"alpha": alpha, "kernel": kernel_of(phases / alpha[:, None]), "bias": shifts}
    units = []
    for j, dilation in enumerate((1, 9)):
        before, between = seeded(2, 32, seed=10 + j).abs() + 0.5
        first, second = seeded(32, 32, 7, seed=20 + j) / 20, seeded(32, 32, 1, seed=30 + j) / 8
        shift = 0.1 * seeded(2, 32, seed=40 + j)
        made |= {
            f"units.{j}.alpha": before,
            f"units.{j}.first.kernel": kernel_of(first / before[:, None] * between[:, None, None]),
            f"units.{j}.first.bias": shift[0] * between,
            f"units.{j}.second.kernel": kernel_of(second / between[:, None]),
            f"units.{j}.second.bias": shift[1],
        }
        units.append((dilation, before, first, between, second, shift))

    def plain(x: Tensor) -> Tensor:
        y = functional.conv_transpose1d(snaked(x.T, alpha)[None], weight, bias, stride=rate, padding=pad)
        for dilation, before, first, between, second, shift in units:
            inner = functional.conv1d(
                snaked(y[0], before)[None], first, shift[0], padding=3 * dilation, dilation=dilation
            )
            y = y + functional.conv1d(snaked(inner[0], between)[None], second, shift[1])
        return y[0].T

    return made, plain


@pytest.mark.parametrize(("rate", "size", "pad"), [(8, 16, 4), (5, 11, 3), (4, 8, 2), (2, 4, 1), (3, 5, 1)])
def test_a_stage_is_pytorchs(rate: int, size: int, pad: int) -> None:
    made, plain = stage(rate, size, pad)
    x = seeded(40, 64, seed=5)
    expected = plain(x)
    assert expected.shape == (40 * rate, 32)
    layer = Stage(tensors(made), rate, size, pad, (1, 9))
    for sizes in ([], [1, 1, 2], [20, 7, 0, 3], [39]):
        answer = torch.from_numpy(pushed(layer, x.numpy(), sizes))
        assert answer.shape == expected.shape
        assert decibels(answer, expected) > 85
    with_two = torch.from_numpy(pushed(layer, x.numpy(), [20], threads=2))
    torch.testing.assert_close(with_two, torch.from_numpy(pushed(layer, x.numpy(), [20])), rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype",
    [
        "int16",
        pytest.param(
            "bf16", marks=pytest.mark.skipif(not kernels.multiplies_bf16(), reason="needs AVX512 with bfloat16")
        ),
    ],
)
def test_a_stage_in_less_than_float32(dtype: str) -> None:
    made, plain = stage(5, 11, 3)
    x = seeded(40, 64, seed=5)
    layer = Stage(tensors(made, dtype), 5, 11, 3, (1, 9))
    assert 40 < decibels(torch.from_numpy(pushed(layer, x.numpy(), [10])), plain(x)) < 85


def test_a_stage_says_what_it_takes() -> None:
    made, _ = stage(5, 11, 3)
    assert Stage.takes(tensors(made), 5, 3)
    assert not Stage.takes(tensors(made), 5, 0)
    assert not Stage.takes(tensors({**made, "kernel": made["kernel"][:, :, :24]}), 5, 3)
    assert not Stage.takes(tensors({**made, "kernel": seeded(160, 4, 64)}), 5, 3)


def test_the_last_convolution_has_one_output() -> None:
    alpha, weight, bias = seeded(32).abs() + 0.5, seeded(1, 32, 7, seed=1) / 15, seeded(1, seed=2)
    x = seeded(60, 32, seed=3)
    expected = functional.conv1d(snaked(x.T, alpha)[None], weight, bias, padding=3)[0, 0].numpy()
    layer = Last(tensors({"l.alpha": alpha, "l.kernel": kernel_of(weight / alpha[:, None]), "l.bias": bias}), "l")
    for sizes in ([], [2, 50]):
        np.testing.assert_allclose(pushed(layer, x.numpy(), sizes), expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-5), ("int16", 3e-3)])
def test_a_convnext_block(dtype: str, atol: float) -> None:
    depth, norm = nn.Conv1d(32, 32, 7, groups=32, padding=3), nn.LayerNorm(32, eps=1e-6)
    expand, contract = nn.Linear(32, 96), nn.Linear(96, 32)
    x = seeded(30, 32)
    with torch.no_grad():
        norm.weight.copy_(seeded(32, seed=1)), norm.bias.copy_(seeded(32, seed=2))
        hidden = norm(depth(x.T[None])[0].T)
        expected = (x + contract(functional.gelu(expand(hidden)))).numpy()
        given = {"depth.kernel": kernel_of(depth.weight), "depth.bias": depth.bias}
        for name, layer in (("expand", expand), ("contract", contract)):
            given |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        made = tensors({name: each.detach() for name, each in given.items()}, dtype)
    block, scale, shift = Block(made), norm.weight.detach().numpy(), norm.bias.detach().numpy()
    for sizes in ([], [1, 10, 3]):
        answer = pushed(lambda x, push: block(x, scale, shift, 1e-6, push), x.numpy(), sizes)
        np.testing.assert_allclose(answer, expected, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [("fp32", 1e-5), ("int16", 2e-3)])
def test_a_linear_layer_adds(dtype: str, atol: float) -> None:
    weight, bias, x, y = seeded(64, 96) / 10, seeded(64, seed=1), seeded(17, 96, seed=2), seeded(17, 64, seed=3)
    layer = Linear(tensors({"l.weight": weight, "l.bias": bias}, dtype), "l")
    for gelu in (False, True):
        answer = y.numpy().copy()
        layer.add(x.numpy().copy(), answer, 2, gelu=gelu)
        given = functional.gelu(x) if gelu else x
        np.testing.assert_allclose(answer, (y + functional.linear(given, weight, bias)).numpy(), atol=atol)
    assert Linear.takes(weight.shape)
    assert not Linear.takes((64, 90))
