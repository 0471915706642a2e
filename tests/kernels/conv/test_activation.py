"""Activations of codecs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accelerator import kernels
from accelerator.codec import layers

pytestmark = pytest.mark.skipif(not kernels.available(), reason="compiled kernels need AVX2 and numba")


@pytest.mark.parametrize(("rows", "channels"), [(1, 7), (40, 96), (3000, 96)])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_snake_is_as_exact_as_pytorchs(rows: int, channels: int, scaled: bool, given: Any, wanted: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(1, rows, channels, generator=generator) * 30).to(given)
    alpha = torch.rand(channels, generator=generator) + 0.5 if scaled else None
    z = x.float() if alpha is None else x.float() * alpha
    exact = z.double() + torch.sin(z.double()).square()
    got = layers.snake(x, alpha, torch.full((1, rows, channels), torch.nan, dtype=wanted))
    allowed = (2**-8 if wanted == torch.bfloat16 else 2e-7) * exact.abs() + 1e-6
    assert ((got.double() - exact).abs() <= allowed).all()


def test_snake_keeps_what_is_no_number() -> None:
    x = torch.tensor([[[1.0, torch.nan, torch.inf, -2.0]]])
    for dtype in (torch.float32, torch.bfloat16):
        got = layers.snake(x, None, torch.empty(1, 1, 4, dtype=dtype))[0, 0].float()
        assert got.isnan().tolist() == [False, True, True, False]


def test_snake_goes_on_in_pytorch_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, alpha = torch.randn(1, 20, 8), torch.rand(8)
    expected = layers.snake(x, alpha, torch.empty(1, 20, 8))
    monkeypatch.setattr(kernels, "snake", lambda *_, **__: False)
    torch.testing.assert_close(layers.snake(x, alpha, torch.empty(1, 20, 8)), expected)
    apart = torch.randn(1, 20, 16)[:, :, :8]  # rows that do not lie one behind the other
    monkeypatch.setattr(kernels, "snake", lambda *_, **__: pytest.fail("not for these"))
    torch.testing.assert_close(layers.snake(apart, None, torch.empty(1, 20, 8)), apart + torch.sin(apart).square())
