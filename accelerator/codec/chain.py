"""Convolutions in a chain, each multiplying bfloat16 by AMX what the one before has summed in float32: see `Chain`.

A long utterance's activations are far larger than a core's cache. A chain does all of its convolutions for a tile of
rows before the next tile is begun, with as many rows on both sides as they look at; what lies between them, their
leaky rectifiers and sums included, does not leave the cache. Threads take tiles, and do not wait for each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..kernels.compiler import require
from ..kernels.tiles import CHAIN_SPACE, CHUNK, SQUARE
from ..kernels.units.chain import CHAIN

__all__ = ["Chain", "Link", "Paired", "Product", "pairs"]

_BLOCK = 2 * SQUARE  # bytes of weights
_ROWS = 192  # of a tile where there is one link: few enough for several threads, enough for the weights


class Product:
    """A convolution's weights in the order in which AMX multiplies them, rounded to bfloat16.

    exact: each as a sum of two of them, and its inputs, too; three products instead of one.
    """

    def __init__(
        self, kernel: Tensor, bias: Tensor | None, *, before: int, dilation: int = 1, exact: bool = False
    ) -> None:
        """kernel: float32 [out, taps, in], which `takes` takes. before: rows that are looked at before a row."""
        self.out, taps, channels = kernel.shape
        self.bias = torch.zeros(self.out) if bias is None else bias
        parts = [kernel.to(torch.bfloat16)]
        if exact:
            parts.append((kernel - parts[0].float()).to(torch.bfloat16))
        self.weights = torch.stack([_blocks(part) for part in parts], dim=1)
        self.step, chunks = 2 * channels * len(parts), channels // CHUNK
        places = [
            (
                (dilation * tap - before) * self.step + 2 * (CHUNK * chunk + channels * x),
                _BLOCK * (i + w * taps * chunks),
            )
            for i, (tap, chunk) in enumerate(itertools.product(range(taps), range(chunks)))
            for x, w in (((0, 0), (1, 0), (0, 1)) if exact else ((0, 0),))
        ]
        self.places = torch.tensor(places)  # of inputs, from a row's first byte on, and of weights

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for weights [out, taps, in] here."""
        return kernels.multiplies_tiles() and not shape[0] % CHUNK and not shape[2] % CHUNK


def pairs(x: Tensor, before: int, behind: int) -> Tensor:
    """[rows, channels] -> bfloat16 [before + rows + behind, 2 channels], as an exact product takes it: x in bfloat16
    and beside it what is missing there, with noughts around."""
    rows, channels = x.shape
    made = torch.empty(before + rows + behind, 2 * channels, dtype=torch.bfloat16)
    made[:before] = 0
    made[before + rows :] = 0
    own = made[before : before + rows]
    rest = own[:, :channels].copy_(x).float()
    own[:, channels:] = torch.sub(x, rest, out=rest)
    return made


def _blocks(kernel: Tensor) -> Tensor:
    """[out / 32, taps, in / 32, 2, 16, 16, 2]: 32 inputs, two by two, by 16 and 16 outputs."""
    out, taps, channels = kernel.shape
    return kernel.reshape(out // CHUNK, 2, 16, taps, channels // CHUNK, 16, 2).permute(0, 3, 4, 1, 5, 2, 6)


@dataclass(frozen=True)
class Link:
    """y = product(x) + add + more, and low, y behind a leaky rectifier: names of buffers of [rows, channels].

    x, low: bfloat16; the others float32. paired: low is as an exact product takes it, see `pairs`. rate, pad: of a
    transposed convolution that `polyphase` made. slopes: of y's own rectifier and of low's, 1 being none. halo: rows on
    both sides of a tile that are wanted, too.
    """

    product: Product
    x: str
    y: str | None = None
    low: str | None = None
    add: str | None = None
    more: str | None = None
    rate: int = 1
    pad: int = 0
    slopes: tuple[float, float] = (1.0, 1.0)
    halo: int = 0
    paired: bool = False


class Chain:
    """Links one after the other. What a call is not given lies in a thread's own memory, as much as a tile needs."""

    def __init__(self, links: Sequence[Link], given: Sequence[str], tile: int) -> None:
        """given: names of the buffers that a call gives. tile: rows of the last link's answer.

        Raises SessionError.
        """
        require(CHAIN)
        self._links, self._tile, self.out = links, tile, links[-1].product.out
        self._margin = CHUNK + max(link.halo + link.rate for link in links)
        self._places, self._space = dict[str | None, int]({None: 0}), 0
        for link in links:
            for name, size in ((link.y, 4), (link.low, 4 if link.paired else 2)):
                if name not in given and name not in self._places:
                    self._places[name] = -(CHAIN_SPACE + self._space)
                    self._space += (tile + 2 * self._margin) * size * (link.product.out // link.rate)
        self._numbers = [_numbers(link) for link in links]

    def __call__(self, rows: int, buffers: Mapping[str, Tensor], shift: Tensor | None = None) -> None:
        """Fill buffers. rows: of the last answer. buffers: from row 0 on; noughts lie around those that are read.

        shift: [out], to be added to the first link's bias. Raises SessionError.
        """
        places = self._places | {name: tensor.data_ptr() for name, tensor in buffers.items()}
        links = [
            numbers._replace(**{name: places[getattr(link, name)] for name in ("x", "add", "more", "y", "low")})
            for link, numbers in zip(self._links, self._numbers, strict=True)
        ]
        first = self._links[0].product.bias if shift is None else self._links[0].product.bias + shift
        links[0] = links[0]._replace(bias=first.data_ptr())
        kernels.chain(links, rows, self._tile, self._margin, self._space, torch.get_num_threads())


def _numbers(link: Link) -> kernels.Link:
    product = link.product
    slope, low_slope = torch.tensor(link.slopes).view(torch.int32).tolist()
    return kernels.Link(
        *(0, 0, 0, 0, 0),
        step=product.step,
        places=product.places.data_ptr(),
        terms=len(product.places),
        weights=product.weights.data_ptr(),
        panel=2 * product.weights[0].numel(),
        bias=product.bias.data_ptr(),
        columns=product.out,
        rate=link.rate,
        pad=link.pad,
        halo=link.halo,
        rest=2 * product.out // link.rate if link.paired else 0,
        slope=slope,
        low_slope=low_slope,
    )


class Paired:
    """y = conv(x, w) + b of stride 1 by an exact product: [B, rows, in] with the context -> [B, rows', out]."""

    def __init__(self, kernel: Tensor, bias: Tensor | None, dilation: int) -> None:
        """kernel: float32 [out, taps, in], which `Product.takes`. Raises SessionError."""
        self._lost = (kernel.shape[1] - 1) * dilation  # rows
        product = Product(kernel, bias, before=0, dilation=dilation, exact=True)
        self._chain = Chain([Link(product, "x", "y")], ("x", "y"), _ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[1] - self._lost
        y = torch.empty(x.shape[0], rows, self._chain.out)
        for one, answer in zip(x, y, strict=True):
            self._chain(rows, {"x": pairs(one, 0, CHUNK), "y": answer})
        return y
