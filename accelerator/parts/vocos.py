"""The backbone of Vocos (Siuzdak 2023, arXiv:2306.00814) by compiled kernels, without PyTorch: a convolution, a norm,
ConvNeXt's blocks, and a norm again.

Norms may be adaptive: their scales and shifts are then a voice's, `Norms`. Weights: embed.{kernel,bias},
blocks.<i>.{depth,expand,contract}, last.{weight,bias}, and for norms that are not adaptive norm and blocks.<i>.norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..codec.sliding import Block, Convolution, Linear, Push, Tensors, normalised

__all__ = ["Norms", "Vocos"]

Norms = Sequence[np.ndarray]
"""Scale and shift, float32 [2, C], of each norm but the last."""


class Vocos:
    """float32 [rows, C] -> [rows, C']. Safe to call from several threads."""

    def __init__(self, tensors: Tensors, blocks: int, eps: float, *, adaptive: bool) -> None:
        """adaptive: calls are given norms. Raises SessionError."""
        self._embed = Convolution(tensors, "embed")
        self._blocks = [Block(tensors.within(f"blocks.{i}")) for i in range(blocks)]
        self._scale, self._shift, self._eps = tensors("last.weight"), tensors("last.bias"), eps
        names = () if adaptive else ("norm", *(f"blocks.{i}.norm" for i in range(blocks)))
        self._norms = [np.stack((tensors(f"{name}.weight"), tensors(f"{name}.bias"))) for name in names]

    @staticmethod
    def takes(tensors: Tensors, blocks: int) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        linears = (f"blocks.{i}.{name}.weight" for i in range(blocks) for name in ("expand", "contract"))
        return Convolution.takes(tensors, "embed") and all(Linear.takes(tensors.shape(name)) for name in linears)

    def __call__(self, x: np.ndarray, push: Push, norms: Norms | None = None) -> np.ndarray:
        (scale, shift), *others = self._norms if norms is None else norms
        x = normalised(self._embed(x, push), scale, shift, self._eps)
        for block, (scale, shift) in zip(self._blocks, others, strict=True):
            x = block(x, scale, shift, self._eps, push)
        return normalised(x, self._scale, self._shift, self._eps)
