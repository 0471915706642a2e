"""HiFi-GAN by chains of convolutions: see `codec.chain`.

`vits_decoder.weights` says what weights and blocks are. Where several blocks' mean goes on, their sum does, and the
weights behind it are divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import kernels
from ..codec.chain import Chain, Link, Product, around, pairs

__all__ = ["DEFAULT_SLOPE", "HifiGan", "Steps"]

DEFAULT_SLOPE = 0.01  # of the last leaky rectifier
_AROUND = 64  # rows of noughts around what a chain reads
_MEMORY = 1_000_000  # bytes of a tile's activations, which are to stay in a core's own cache
_FIRST = 256  # rows of the first convolution's tiles

Steps = Sequence[Sequence[tuple[str, int]]]  # of a residual block: names and dilations of each one's convolutions
_Made = Callable[[str, int], Product]


class HifiGan:
    """What the flow gives, float32 [rows, C] -> audio [rows * hop]. Safe to call from several threads."""

    def __init__(
        self,
        tensors: Mapping[str, np.ndarray],
        config: Mapping[str, Any],
        blocks: Sequence[Sequence[Steps]],
        *,
        exact: bool,
    ) -> None:
        """blocks: of each stage. exact: also their products are those of pairs of bfloat16, see `codec.chain.pairs`.

        Raises SessionError.
        """
        mean, slopes = 1 / len(blocks[0]), (1.0, config["slope"])

        def made(name: str, before: int, dilation: int, factor: float, exact: bool) -> Product:
            kernel = tensors[f"{name}.kernel"] * np.float32(factor)
            return Product(kernel, tensors.get(f"{name}.bias"), before=before, dilation=dilation, exact=exact)

        def product(name: str, dilation: int) -> Product:
            return made(name, _reach(tensors, [[(name, dilation)]]), dilation, 1.0, exact)

        first = made("first", tensors["first.kernel"].shape[1] // 2, 1, 1.0, exact=True)
        self._first = Chain(
            [Link(first, "before", low="after", slopes=slopes, paired=True)], ("before", "after"), _FIRST
        )
        self._channels, self._stages = first.out, []
        for i, ((rate, pad), own) in enumerate(zip(config["ups"], blocks, strict=True)):
            name, last = f"ups.{i}", i + 1 == len(blocks)
            up = made(name, tensors[f"{name}.kernel"].shape[1] - 1, 1, mean if i else 1.0, exact=True)
            halo = max(_reach(tensors, steps) for steps in own)
            links = [Link(up, "before", "x", "low", rate=rate, pad=pad, slopes=slopes, halo=halo, paired=exact)]
            for j, steps in enumerate(own):
                links += _block(tensors, product, steps, slopes, j, len(own), last=last, paired=exact)
            channels = up.out // rate
            tile = max(_MEMORY // (channels * (12 + (12 if exact else 6))), 4 * halo) // 32 * 32
            self._stages.append((Chain(links, ("before", "after"), tile), rate, channels))
        kernel = tensors["last.kernel"] * np.float32(mean)
        self._pad, self._last = kernel.shape[1] // 2, kernels.Single(kernel, tensors.get("last.bias"))

    @staticmethod
    def takes(tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether there are kernels for all of it here."""
        return all(
            Product.takes(kernel.shape)
            for name, kernel in tensors.items()
            if name.endswith(".kernel") and name.startswith(("first.", "ups.", "blocks."))
        )

    def __call__(self, x: np.ndarray, shift: np.ndarray | None, threads: int) -> np.ndarray:
        """shift: [C'], what the first convolution adds for a speaker. Raises SessionError."""
        before, rows = pairs(x, _AROUND, _AROUND), len(x)
        after = around(rows, 2 * self._channels, np.uint16, _AROUND)
        shifts = {} if shift is None else {0: shift}
        self._first(rows, {"before": before[_AROUND:], "after": after[_AROUND:]}, shifts, threads=threads)
        for i, (chain, rate, channels) in enumerate(self._stages):
            before, rows, last = after, rows * rate, i + 1 == len(self._stages)
            kind, ends = (np.float32, self._pad) if last else (np.uint16, _AROUND)
            after = around(rows, channels if last else 2 * channels, kind, ends)
            chain(rows, {"before": before[_AROUND:], "after": after[ends:]}, threads=threads)
        audio = np.empty(rows, np.float32)
        self._last(after.ctypes.data, len(after), audio.ctypes.data, threads=threads)
        return np.tanh(audio, out=audio)


def _reach(tensors: Mapping[str, np.ndarray], steps: Steps) -> int:
    return sum((tensors[f"{name}.kernel"].shape[1] - 1) * d // 2 for step in steps for name, d in step)


def _block(
    tensors: Mapping[str, np.ndarray],
    product: _Made,
    steps: Steps,
    slopes: tuple[float, float],
    j: int,
    count: int,
    *,
    last: bool,
    paired: bool,
) -> Iterator[Link]:
    """The j-th of `count` residual blocks, which are added up; last: of the last stage."""
    y, low, halo = "x", "low", _reach(tensors, steps)
    for k, step in enumerate(steps):
        for c, (name, dilation) in enumerate(step):
            halo -= _reach(tensors, [[(name, dilation)]])
            own, free = product(name, dilation), "even" if low == "odd" else "odd"
            if c + 1 < len(step):
                yield Link(own, low, low=free, slopes=slopes, halo=halo, paired=paired)
            elif k + 1 < len(steps):
                yield Link(own, low, "y", free, add=y, slopes=slopes, halo=halo, paired=paired)
                y = "y"
            else:
                more = "total" if j else None
                if j + 1 < count:
                    yield Link(own, low, "total", add=y, more=more)
                elif last:
                    yield Link(own, low, "after", add=y, more=more, slopes=(DEFAULT_SLOPE, 1.0))
                else:
                    yield Link(own, low, None, "after", add=y, more=more, slopes=slopes, paired=True)
            low = free
