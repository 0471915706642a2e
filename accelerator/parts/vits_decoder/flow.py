"""VITS's flow by chains of convolutions: see `codec.chain`. `weights` says what they are called.

Its coupling layers read one half of the channels and change the other one, in turn; the order of channels is reversed
before each. Here both halves stay where they are: whoever reads or changes a reversed one has the channels of its
weights reversed. WaveNet's gate and its two sums, one goes on and one is the answer, are done as products are finished.
All products are exact, since the flow amplifies errors. Source: VITS (Kim et al. 2021, arXiv:2106.06103).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ...codec.chain import Chain, Link, Product, around, gates, pairs

__all__ = ["Flow"]

_AROUND = 64  # rows of noughts around what a chain reads
_ROWS = 192  # of a tile: few enough for several threads, enough for the weights


class Flow:
    """Latents float32 [rows, C] -> what HiFi-GAN decodes, alike. Safe to call from several threads."""

    def __init__(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        """Raises SessionError."""
        self._layers = []
        for i, dilations in enumerate(config["flows"]):
            name, reverse = f"flows.{i}", i % 2 == 0
            chain = Chain(list(_layer(tensors, name, dilations, reverse)), ("before", "second", "after"), _ROWS)
            self._layers.append((chain, tensors.get(f"{name}.condition"), len(dilations)))

    @staticmethod
    def takes(tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether there are kernels for all of it here."""
        own = [each.shape for name, each in tensors.items() if name.startswith("flows.") and name.endswith(".kernel")]
        return all(map(Product.takes, own))

    def __call__(self, x: np.ndarray, speaker: np.ndarray | None, threads: int) -> np.ndarray:
        """speaker: [E + 1], if there are several. Raises SessionError."""
        rows, half = len(x), x.shape[1] // 2
        halves = [x[:, :half].copy(), x[:, half:].copy()]
        before = pairs(halves[1], _AROUND, _AROUND)
        for i, (chain, condition, steps) in enumerate(self._layers):
            shifts = {}
            if condition is not None and speaker is not None:
                added = (condition @ speaker).reshape(steps, -1)
                shifts = {_gated(j): gates(each) for j, each in enumerate(added)}
            after = around(rows, 2 * half, np.uint16, _AROUND)
            buffers = {"before": before[_AROUND:], "second": halves[i % 2], "after": after[_AROUND:]}
            chain(rows, buffers, shifts, threads=threads)
            before = after
        changed = np.concatenate(halves, axis=1)
        return changed[:, ::-1] if len(self._layers) % 2 else changed


def _gated(j: int) -> int:
    """The number of the link that is WaveNet's j-th gate, of those of `_layer`."""
    return 1 + 3 * j


def _layer(tensors: Mapping[str, np.ndarray], name: str, dilations: Sequence[int], reverse: bool) -> Iterator[Link]:
    """A coupling layer. reverse: its halves are to be reversed."""

    def product(own: str, dilation: int = 1, made: Any = lambda each: each) -> Product:
        kernel, bias = tensors[f"{name}.{own}.kernel"], tensors.get(f"{name}.{own}.bias")
        before = (kernel.shape[1] - 1) * dilation // 2
        return Product(made(kernel), None if bias is None else made(bias), before=before, dilation=dilation, exact=True)

    kernel = tensors[f"{name}.pre.kernel"]
    pre = Product(kernel[:, :, ::-1] if reverse else kernel, tensors.get(f"{name}.pre.bias"), before=0, exact=True)
    reaches = [(tensors[f"{name}.in.{j}.kernel"].shape[1] - 1) * d // 2 for j, d in enumerate(dilations)]
    halo = sum(reaches)
    yield Link(pre, "before", "h", "low", halo=halo, paired=True)
    for j, dilation in enumerate(dilations):
        last, own = j + 1 == len(dilations), f"out.{j}"
        halo -= reaches[j]
        yield Link(product(f"in.{j}", dilation, gates), "low", low="gated", halo=halo, paired=True, gated=True)
        channels = len(tensors[f"{name}.{own}.kernel"]) // (1 if last else 2)
        if not last:
            onward = product(own, 1, itemgetter(slice(channels)))
            yield Link(onward, "gated", "h", "low", add="h", halo=halo, paired=True)
        answer = product(own, 1, itemgetter(slice(-channels, None)))
        # Only the rows of the tile itself are wanted of the sum: it is not convolved with any others.
        yield Link(answer, "gated", "total", "summed" if last else None, add="total" if j else None, paired=last)
    post = product("post", 1, lambda each: -(each[::-1] if reverse else each))
    yield Link(post, "summed", "second", "after", add="second", paired=True)
