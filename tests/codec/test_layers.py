"""Causal layers on channels-last arrays: equal to PyTorch's own layers, whole or window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from accelerator.codec import convolutions
from accelerator.codec.convolutions import has_bf16
from accelerator.codec.layers import (
    ConvNeXt,
    Convolution,
    State,
    Transformer,
    Unit,
    Weights,
    in_tiles,
    upsampled,
)
from accelerator.codec.polyphase import polyphase


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).contiguous()


def windows(run: Callable[[Tensor, State], Tensor], x: Tensor, rows: int) -> Tensor:
    state: State = {}
    return torch.cat([run(part, state) for part in x.split(rows, dim=1)], dim=1)


@pytest.mark.parametrize("few", [0, 10_000], ids=["convolution", "product"])
@pytest.mark.parametrize(("taps", "stride", "dilation"), [(7, 1, 1), (7, 1, 9), (1, 1, 1), (4, 2, 1), (2, 2, 1)])
def test_a_convolution_is_pytorchs_padded_on_the_left(
    few: int, taps: int, stride: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "FEW", few)
    weight, bias, x = seeded(6, 5, taps), seeded(6), seeded(2, 24, 5)
    left = (taps - 1) * dilation + 1 - stride
    padded = functional.pad(x.transpose(1, 2), (left, 0))
    expected = functional.conv1d(padded, weight, bias, stride, 0, dilation).transpose(1, 2)
    conv = Convolution(kernel_of(weight), bias, stride=stride, dilation=dilation)
    assert conv.context == left
    torch.testing.assert_close(conv(x, {}), expected, rtol=1e-4, atol=1e-4)
    for rows in (2, 4, 14):
        torch.testing.assert_close(windows(conv, x, rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("taps", "stride"), [(4, 2), (16, 8), (2, 2), (7, 3)])
def test_a_transposed_convolution_is_a_convolution(taps: int, stride: int) -> None:
    weight, bias, x = seeded(5, 3, taps), seeded(3), seeded(2, 11, 5)
    expected = functional.conv_transpose1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)[:, : 11 * stride]
    phases, biases = (torch.from_numpy(each) for each in polyphase(weight.numpy(), bias.numpy(), stride))
    conv = Convolution(kernel_of(phases), biases)
    torch.testing.assert_close(upsampled(conv, x, stride, {}), expected, rtol=1e-4, atol=1e-4)
    joined = windows(lambda part, state: upsampled(conv, part, stride, state), x, 3)
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not has_bf16(), reason="PyTorch has no products of bfloat16 for this processor")
def test_bfloat16_rounds_and_sums_in_float32() -> None:
    weight, x = seeded(8, 512, 3) / 40, seeded(1, 40, 512)
    exact = Convolution(kernel_of(weight), None)(x, {})
    low = Convolution(kernel_of(weight), None, dtype=torch.bfloat16)(x, {})
    assert low.dtype == torch.float32
    relative = float((low - exact).norm() / exact.norm())
    assert 1e-4 < relative < 5e-3  # a sum of 1,536 products kept in bfloat16 would be off by far more


def unit_weights(channels: int) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    before, between = seeded(channels, seed=1).abs() + 0.5, seeded(channels, seed=2).abs() + 0.5
    first, second = seeded(channels, channels, 7, seed=3) / 20, seeded(channels, channels, 1, seed=4) / 5
    biases = seeded(2, channels, seed=5)

    def plain(x: Tensor) -> Tensor:  # [B, C, n], as DAC writes it
        def snake(x: Tensor, a: Tensor) -> Tensor:
            return x + (1 / a[:, None]) * torch.sin(a[:, None] * x).pow(2)

        y = functional.conv1d(functional.pad(snake(x, before), (18, 0)), first, biases[0], dilation=3)
        return x + functional.conv1d(snake(y, between), second, biases[1])

    folded = {
        "alpha": before,
        "first.kernel": kernel_of(first / before[:, None] * between[:, None, None]),
        "first.bias": biases[0] * between,
        "second.kernel": kernel_of(second / between[:, None]),
        "second.bias": biases[1],
    }
    return folded, plain


def test_a_residual_unit_folds_its_snakes() -> None:
    weights, plain = unit_weights(6)
    x = seeded(2, 50, 6)
    expected = plain(x.transpose(1, 2)).transpose(1, 2)
    unit = Unit(Weights(weights), 3)
    torch.testing.assert_close(unit(x.clone(), {}), expected, rtol=1e-4, atol=1e-4)
    for rows in (1, 7, 20):
        joined = windows(unit, x.clone(), rows)
        torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)


def test_a_convnext_block() -> None:
    depth, norm = nn.Conv1d(6, 6, 7, groups=6), nn.LayerNorm(6, eps=1e-6)
    expand, contract, gamma = nn.Linear(6, 24), nn.Linear(24, 6), seeded(6)
    x = seeded(2, 20, 6)
    with torch.no_grad():
        hidden = depth(functional.pad(x.transpose(1, 2), (6, 0))).transpose(1, 2)
        expected = x + gamma * contract(functional.gelu(expand(norm(hidden))))
        weights = {"depth.kernel": kernel_of(depth.weight), "depth.bias": depth.bias}
        for name, layer in (("norm", norm), ("expand", expand)):
            weights |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        weights |= {"contract.weight": contract.weight * gamma[:, None], "contract.bias": contract.bias * gamma}
        block = ConvNeXt(Weights(weights), 1e-6)
        torch.testing.assert_close(block(x, {}), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(windows(block, x, 3), expected, rtol=1e-4, atol=1e-4)


def transformer(window: int | None, positions: int = 64) -> tuple[Transformer, Callable[[Tensor], Tensor]]:
    dim, heads, kv, size, layers = 8, 4, 2, 4, 2
    angles = torch.outer(torch.arange(positions).float(), torch.tensor([1.0, 0.1]))
    weights = {"rotations": torch.stack((angles.cos(), angles.sin()), -1), "norm": seeded(dim, seed=9)}
    for i in range(layers):
        shapes = {"attention_norm": (dim,), "qkv": ((heads + 2 * kv) * size, dim), "out": (dim, heads * size)}
        shapes |= {"ffn_norm": (dim,), "gate_up": (24, dim), "down": (dim, 12)}
        weights |= {f"{i}.{n}": seeded(*s, seed=10 * i + j) / 2 for j, (n, s) in enumerate(shapes.items())}
    config: dict[str, Any] = {"layers": layers, "heads": heads, "kv_heads": kv, "head_dim": size, "window": window}
    made = Transformer(Weights(weights), {**config, "eps": 1e-5, "input": False, "output": False})

    def plain(x: Tensor) -> Tensor:
        def normal(x: Tensor, w: Tensor) -> Tensor:
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w

        def turned(x: Tensor) -> Tensor:  # [n, heads, size], as complex numbers
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 2, 2).contiguous())
            table = torch.view_as_complex(weights["rotations"][: len(x)].contiguous())
            return torch.view_as_real(pairs * table[:, None]).flatten(2)

        rows = []
        for one in x:
            n = len(one)
            distance = torch.arange(n)[:, None] - torch.arange(n)
            hidden = (distance < 0) | (distance >= (window or n))
            for i in range(layers):
                qkv = normal(one, weights[f"{i}.attention_norm"]) @ weights[f"{i}.qkv"].T
                q, k, v = (part.reshape(n, -1, size) for part in qkv.split([heads * size, kv * size, kv * size], 1))
                q, k = turned(q), turned(k).repeat_interleave(2, 1)
                scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
                share = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                y = torch.einsum("hqk,khd->qhd", share, v.repeat_interleave(2, 1)).reshape(n, -1)
                one = one + y @ weights[f"{i}.out"].T
                gate, up = (normal(one, weights[f"{i}.ffn_norm"]) @ weights[f"{i}.gate_up"].T).chunk(2, -1)
                one = one + (functional.silu(gate) * up) @ weights[f"{i}.down"].T
            rows.append(normal(one, weights["norm"]))
        return torch.stack(rows)

    return made, plain


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_a_transformer_remembers_its_window(window: int | None) -> None:
    made, plain = transformer(window)
    x = seeded(2, 30, 8)
    expected = plain(x)
    torch.testing.assert_close(made(x, {}), expected, rtol=1e-4, atol=1e-4)
    for rows in (1, 4, 17):
        torch.testing.assert_close(windows(made, x, rows), expected, rtol=1e-4, atol=1e-4)


def test_a_transformer_keeps_no_more_than_its_window() -> None:
    made, _ = transformer(5)
    state: State = {}
    for _ in range(6):
        made(seeded(1, 7, 8), state)
    position, caches = state[id(made)]
    assert position == 42
    assert [tuple(cache.shape) for cache in caches] == [(2, 1, 2, 4, 4)] * 2


def test_positions_end_where_the_table_ends() -> None:
    made, _ = transformer(5, positions=10)
    state: State = {}
    made(seeded(1, 8, 8), state)
    with pytest.raises(ValueError, match="position 12 is beyond the 10"):
        made(seeded(1, 4, 8), state)


def test_tiles_join() -> None:
    x, seen = seeded(2, 10, 3), []

    def run(piece: Tensor) -> Tensor:
        seen.append(piece.shape[1])
        return piece * 2

    torch.testing.assert_close(in_tiles(x, 4, run), x * 2)
    assert seen == [4, 4, 2]
    assert in_tiles(x, 0, run).shape == x.shape
