"""Convolutions in a chain, each multiplying in bfloat16 what the one before has summed in float32: see `Chain`.

A long utterance's activations are far larger than a core's cache. A chain does all of its convolutions for a tile of
rows before the next tile is begun, with as many rows on both sides as they look at; what lies between them, their
rectifiers, gates and sums included, does not leave the cache. Threads take tiles, and do not wait for each other.

AMX multiplies, or without it AVX512_BF16. Where more than bfloat16 is wanted, AMX takes pairs of these, and AVX512
float32, in as much memory: `pairs` makes what is right here.

Arrays are NumPy's: what runs on chains needs no PyTorch. bfloat16 is stored as uint16.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import kernels
from ..kernels.compiler import require
from ..kernels.tiles import CHAIN_SPACE, CHUNK, LANES, SQUARE
from .passing import passing

__all__ = ["Chain", "Link", "Product", "around", "bfloats", "floats", "gates", "pairs"]

_BUFFERS = "x", "add", "more", "y", "low", "moments", "signal", "factor", "shift"  # of a link


class Product:
    """A convolution's weights in the order in which they are multiplied, rounded to bfloat16.

    exact: in float32; or by AMX each as a sum of two bfloat16, and its inputs, too: three products instead of one.
    """

    def __init__(
        self, kernel: np.ndarray, bias: np.ndarray | None, *, before: int, dilation: int = 1, exact: bool = False
    ) -> None:
        """kernel: float32 [out, taps, in], which `takes` takes. before: rows that are looked at before a row."""
        self.out, taps, channels = kernel.shape
        self.bias = np.zeros(self.out, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)
        self.exact, self.reach = exact, max(before, (taps - 1) * dilation - before)  # rows looked at on either side
        if exact and not kernels.multiplies_tiles():
            self.weights, size, both = _floats(kernel), 4, [(0, 0)]
        else:
            parts = [bfloats(kernel), *([bfloats(kernel - floats(bfloats(kernel)))] if exact else [])]
            self.weights, size = kernels.aligned(np.stack([_blocks(part) for part in parts], axis=1)), 2
            both = [(0, 0), (1, 0), (0, 1)] if exact else [(0, 0)]  # parts of inputs and of weights
        self.step, chunks = (4 if exact else 2) * channels, channels // CHUNK
        places = [
            (
                (dilation * tap - before) * self.step + size * (CHUNK * chunk + channels * x),
                size * SQUARE * (i + w * taps * chunks),
            )
            for i, (tap, chunk) in enumerate(itertools.product(range(taps), range(chunks)))
            for x, w in both
        ]
        self.places = np.array(places, np.int64)  # of inputs, from a row's first byte on, and of weights

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for weights [out, taps, in] here."""
        return kernels.multiplies_chains() and not shape[0] % CHUNK and not shape[2] % CHUNK


def bfloats(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even; for finite numbers."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def floats(x: np.ndarray) -> np.ndarray:
    """bfloat16 as float32."""
    return (x.astype(np.uint32) << 16).view(np.float32)


def pairs(x: np.ndarray, before: int, behind: int) -> np.ndarray:
    """[rows, channels] -> uint16 [before + rows + behind, 2 channels], as an exact product takes it, with noughts
    around: x in bfloat16 and beside it what is missing there, or without AMX float32."""
    rows, channels = x.shape
    made = np.empty((before + rows + behind, 2 * channels), np.uint16)
    made[:before] = made[before + rows :] = 0
    own = made[before : before + rows]
    if not kernels.multiplies_tiles():
        own.view(np.float32)[:] = x
        return made
    own[:, :channels] = bfloats(x)
    own[:, channels:] = bfloats(x - floats(own[:, :channels]))
    return made


def around(rows: int, channels: int, kind: type[np.generic], count: int) -> np.ndarray:
    """[count + rows + count, channels], for a chain to fill; the ends are nought."""
    made = passing((rows + 2 * count, channels), kind)
    made[:count] = made[count + rows :] = 0
    return made


def gates(x: np.ndarray) -> np.ndarray:
    """What belongs to columns 0 .. n of u and n .. 2n of g, in the order of a gated link: 16 by 16."""
    return np.ascontiguousarray(x.reshape(2, -1, LANES, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape))


def _blocks(kernel: np.ndarray) -> np.ndarray:
    """[out / 32, taps, in / 32, 2, 16, 16, 2]: 32 inputs, two by two, by 16 and 16 outputs."""
    out, taps, channels = kernel.shape
    shape = out // CHUNK, 2, LANES, taps, channels // CHUNK, LANES, 2
    return np.ascontiguousarray(kernel.reshape(shape).transpose(0, 3, 4, 1, 5, 2, 6))


def _floats(kernel: np.ndarray) -> np.ndarray:
    """[out / 32, taps, in / 32, 32, 32]: 32 inputs by 32 outputs."""
    out, taps, channels = kernel.shape
    shape = out // CHUNK, CHUNK, taps, channels // CHUNK, CHUNK
    return kernels.aligned(kernel.reshape(shape).transpose(0, 2, 3, 4, 1).astype(np.float32))


@dataclass(frozen=True)
class Link:
    """y = product(x) + add + more, and low, y behind a leaky rectifier: names of buffers of [rows, channels].

    x, low: bfloat16; the others float32. paired: low is as an exact product takes it, see `pairs`. rate, pad: of a
    transposed convolution that `polyphase` made. slopes: of y's own rectifier and of low's, 1 being none. halo: rows on
    both sides of a tile that are wanted, too. gated: there is no y, and low = tanh(u) s(g), s being the logistic
    function, u and g the product's columns as `gates` orders them. moments: a buffer that a call gives, float32 [tiles,
    2, channels]: for each tile of y, every channel's mean and the sum of squares about it. signal: a float32 buffer
    that x is made of: z + sin(z)^2, z = signal factor + shift, of which a call gives both, float32 [channels].
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
    gated: bool = False
    moments: str | None = None
    signal: str | None = None
    factor: str | None = None
    shift: str | None = None

    @property
    def channels(self) -> int:
        """Of y and low."""
        return self.product.out // self.rate // (2 if self.gated else 1)


class Chain:
    """Links one after the other. What a call is not given lies in a thread's own memory, as much as a tile needs."""

    def __init__(self, links: Sequence[Link], given: Sequence[str], tile: int) -> None:
        """given: names of the buffers that a call gives. tile: rows of the last link's answer.

        Raises SessionError.
        """
        require(kernels.chain_unit())
        self._links, self._tile, self._measures = links, tile, any(link.moments for link in links)
        self._margin = CHUNK + max(link.halo + link.rate + link.product.reach for link in links)
        self._places, self._space = dict[str | None, int]({None: 0}), 0
        for link in links:
            own = (
                (link.x, link.product.step),
                (link.y, 4 * link.channels),
                (link.low, (2 + 2 * link.paired) * link.channels),
            )
            for name, size in own:
                if name not in given and name not in self._places:
                    self._places[name] = -(CHAIN_SPACE + self._space)
                    self._space += (tile + 2 * self._margin) * size
        self._numbers = [_numbers(link) for link in links]

    def __call__(
        self,
        rows: int,
        buffers: Mapping[str, np.ndarray],
        shifts: Mapping[int, np.ndarray] | None = None,
        *,
        threads: int,
    ) -> None:
        """Fill buffers. rows: of the last answer. buffers: from row 0 on; noughts lie around those that are read.

        shifts: by a link's number, [out], to be added to its bias. Raises SessionError.
        """
        places = self._places | {name: array.ctypes.data for name, array in buffers.items()}
        biases = {i: self._links[i].product.bias + shift for i, shift in (shifts or {}).items()}
        links = []
        for i, (link, numbers) in enumerate(zip(self._links, self._numbers, strict=True)):
            where = {name: places[getattr(link, name)] for name in _BUFFERS}
            if i in biases:
                where["bias"] = biases[i].ctypes.data
            links.append(numbers._replace(**where))
        kernels.chain(links, rows, self._even(rows, threads), self._margin, self._space, threads)

    def _even(self, rows: int, threads: int) -> int:
        """Rows of a tile, so that each thread has about as many; moments are of tiles as large as was said."""
        if self._measures or threads == 1:
            return self._tile
        count = -(-rows // (self._tile * threads)) * threads
        return min(self._tile, -(-rows // (count * CHUNK)) * CHUNK)


def _numbers(link: Link) -> kernels.Link:
    product = link.product
    slope, low_slope = np.array(link.slopes, np.float32).view(np.int32).tolist()
    return kernels.Link(
        *(0, 0, 0, 0, 0),
        step=product.step,
        places=product.places.ctypes.data,
        terms=len(product.places),
        weights=product.weights.ctypes.data,
        panel=product.weights[0].nbytes,
        bias=product.bias.ctypes.data,
        columns=product.out,
        rate=link.rate,
        pad=link.pad,
        halo=link.halo,
        rest=2 * link.channels if link.paired else 0,
        slope=slope,
        low_slope=low_slope,
        gated=int(link.gated),
        exact=int(product.exact),
        **dict.fromkeys(("moments", "signal", "factor", "shift"), 0),
        reach=product.reach,
    )
