"""A codec's convolutions, compiled: filters with fewer multiplications, what follows them in a residual unit, and the
layers whose weights are large."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...hardware.forks import Lock
from .. import descriptors, tiles
from ..compiler import Unit, function, require
from ..descriptors import AS_BF16, AS_INT16, FOR_MIX, SNAKED
from ..features import multiplies_bf16
from ..parallel import in_parts
from ..units.dense import DENSE
from ..units.filter import FILTER
from ..units.mix import MIX
from ..units.order import ORDER
from ..units.quantize import QUANTIZE
from ..units.single import SINGLE
from .minimal import filters

__all__ = ["Dense", "Filter", "Mix", "Single", "aligned", "scratch"]

_LINE = 64  # bytes
_LITTLE = 200_000  # multiplications that are not worth another thread
_KEPT, _LOCK = threading.local(), Lock()
_ONE = np.ones((1, 1))


class Filter:
    """y = conv(x, w) + b for float32 [rows, in]; it keeps (m + r - 1) / r of the weights' memory."""

    def __init__(
        self,
        shape: Sequence[int],
        read: Callable[[], np.ndarray],
        bias: np.ndarray | None,
        dilation: int,
        *,
        int16: bool = False,
    ) -> None:
        """shape: [out, taps, in] of what `read` gives, float32, once; see `takes`. int16: matrix products of int16,
        which are exact to 65 dB and take two thirds of the time and half of the memory; of two taps only.

        Raises SessionError.
        """
        require(FILTER, ORDER)
        self._int16 = int16
        self._shape, self._read, self._dilation = tuple(shape), read, dilation
        self._bias = _or_zeros(bias, shape[0])
        self._shift = self._bias.ctypes.data
        self._evaluated: np.ndarray | None = None
        self._scales: np.ndarray = np.zeros(0, np.float32)

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        out, taps, channels = shape
        return taps in tiles.FILTERS and not out % tiles.CHUNK and not channels % tiles.CHUNK

    def __call__(
        self,
        x: int,
        given: int,
        out: int,
        *,
        threads: int,
        snake: bool = False,
        low: bool = False,
        to: Mix | None = None,
    ) -> None:
        """x: the address of [given, in], the context among them; out: of [given - (taps - 1) dilation, out].

        snake: out = y + sin(y)^2, of y = conv(x, w) + b. low: out is bfloat16. to: out is the memory that it takes.
        """
        columns, taps, channels = self._shape
        rows = given - (taps - 1) * self._dilation
        if rows <= 0:
            return
        weights, kind, room = self._weights(threads), SNAKED * snake + AS_BF16 * low, 0
        if to is not None:
            kind, room = kind | FOR_MIX | to.kind, to.room(rows)
        plan = descriptors.Filter(
            x=x,
            given=given,
            channels=channels,
            y=out,
            columns=columns,
            kind=kind,
            weights=weights.ctypes.data,
            bias=self._shift,
            dilation=self._dilation,
            taps=taps,
            is_int16=self._int16,
            weight_scales=self._scales.ctypes.data,
            room=room,
            y_scales=out + 4 * columns * room,
        )
        whole, rest = divmod(rows, tiles.FILTERS[taps] * self._dilation)
        count = whole * self._dilation + min(rest, self._dilation)
        _share_out(FILTER, plan, count, tiles.filter_space(taps, channels), threads)

    def _weights(self, threads: int) -> np.ndarray:
        """[points, out / CHUNK, in, CHUNK]; of int16: [points, out / CHUNK, in / CHUNK, CHUNK / 2, CHUNK, 2]."""
        with _LOCK:
            if self._evaluated is None:
                taps, kind = self._shape[1], AS_INT16 * self._int16
                factors = np.ascontiguousarray(filters(tiles.FILTERS[taps], taps).weights, np.float64)
                self._evaluated, self._scales = _ordered(self._read(), self._shape, kind, threads, factors)
        return self._evaluated


class Mix:
    """x += v W^T + b for float32 x [rows, out], and values in the order in which a `Filter` puts them."""

    KINDS: ClassVar[Mapping[str, int]] = {"fp32": 0, "bf16": AS_BF16, "int16": AS_INT16}

    def __init__(
        self, shape: Sequence[int], read: Callable[[], np.ndarray], bias: np.ndarray | None, dtype: str
    ) -> None:
        """shape: [out, in] of what `read` gives, float32, once; dtype: of values and weights, "fp32", "bf16" or
        "int16", see `takes`.

        Raises SessionError.
        """
        require(MIX, ORDER)
        self._shape, self._read, self.kind = tuple(shape), read, self.KINDS[dtype]
        self._scales: np.ndarray = np.zeros(0, np.float32)
        self._bias = _or_zeros(bias, shape[0])
        self._shift = self._bias.ctypes.data
        self._kept: np.ndarray | None = None

    @staticmethod
    def takes(shape: Sequence[int], dtype: str) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        return not shape[0] % tiles.CHUNK and not shape[1] % tiles.CHUNK and (dtype != "bf16" or multiplies_bf16())

    @staticmethod
    def room(rows: int) -> int:
        """Rows that the values must have room for: [in / CHUNK, room, CHUNK]."""
        return tiles.whole_blocks(rows)

    def space(self, rows: int) -> int:
        """Numbers of four bytes that the values of so many rows take at most: [in / CHUNK, room, CHUNK], and scales
        [in / CHUNK, room]."""
        _, channels = self._shape
        return self.room(rows) * (channels + channels // tiles.CHUNK)

    def __call__(self, values: int, rows: int, x: int, *, threads: int) -> None:
        """values, x: addresses."""
        out, channels = self._shape
        if rows <= 0:
            return
        weights, room = self._weights(threads), self.room(rows)
        plan = descriptors.Mix(
            values=values,
            value_scales=values + 4 * channels * room,
            room=room,
            channels=channels,
            x=x,
            rows=rows,
            columns=out,
            weights=weights.ctypes.data,
            weight_scales=self._scales.ctypes.data,
            bias=self._shift,
            kind=self.kind,
        )
        _share_out(MIX, plan, rows, tiles.BLOCK_OUT, threads)

    def _weights(self, threads: int) -> np.ndarray:
        """[out / CHUNK, in, CHUNK], or of pairs of bfloat16: [out / CHUNK, in / 2, CHUNK, 2]; of int16 as in a
        `Dense`."""
        with _LOCK:
            if self._kept is None:
                out, channels = self._shape
                self._kept, self._scales = _ordered(self._read(), (out, 1, channels), self.kind, threads)
        return self._kept


class Dense:
    """y = conv(x, w) + b for float32 [rows, in], by matrix products of int16: exact to 70 dB, in half of float32's time
    and memory. It wants few rows of large weights, since it keeps all rows beside the cache."""

    def __init__(
        self, shape: Sequence[int], read: Callable[[], np.ndarray], bias: np.ndarray | None, dilation: int
    ) -> None:
        """shape: [out, taps, in] of what `read` gives, float32, once; see `takes`.

        Raises SessionError.
        """
        require(DENSE, QUANTIZE, ORDER)
        self._shape, self._read, self._dilation = tuple(shape), read, dilation
        self._bias = _or_zeros(bias, shape[0])
        self._shift = self._bias.ctypes.data
        self._kept: np.ndarray | None = None
        self._scales: np.ndarray = np.zeros(0, np.float32)

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        return not shape[0] % tiles.CHUNK and not shape[2] % tiles.CHUNK

    def __call__(self, x: int, given: int, out: int, *, threads: int) -> None:
        """x: the address of [given, in], the context among them; out: of [given - (taps - 1) dilation, out]."""
        columns, taps, channels = self._shape
        lost = (taps - 1) * self._dilation
        rows = given - lost
        if rows <= 0:
            return
        weights = self._weights(threads)
        room = tiles.whole_blocks(rows) + lost  # what the last rows are multiplied with
        scales, threads = np.zeros(room, np.float32), min(threads, columns // tiles.CHUNK)
        memory = scratch(tiles.BLOCK_OUT * threads + 4 * room * channels)
        plan = descriptors.Dense(
            values=memory + tiles.BLOCK_OUT * threads,
            value_scales=scales.ctypes.data,
            room=room,
            rows=rows,
            channels=channels,
            taps=taps,
            dilation=self._dilation,
            columns=columns,
            weights=weights.ctypes.data,
            weight_scales=self._scales.ctypes.data,
            bias=self._shift,
            y=out,
        )
        numbers = np.array(plan, np.int64)
        function(QUANTIZE)(numbers.ctypes.data, x, given)
        ends = [columns // tiles.CHUNK * i // threads for i in range(threads + 1)]
        in_parts(DENSE, plan, ends, threads, memory, tiles.BLOCK_OUT)

    def _weights(self, threads: int) -> np.ndarray:
        """int16 [out / CHUNK, taps * in / CHUNK, CHUNK / 2, CHUNK, 2]."""
        with _LOCK:
            if self._kept is None:
                columns, taps, channels = self._shape
                shape = columns, 1, taps * channels
                self._kept, self._scales = _ordered(self._read(), shape, AS_INT16, threads, run=channels)
        return self._kept


class Single:
    """y = conv(x, w) + b with a single output, for float32 [rows, in]; not dilated."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        """kernel: float32 [1, taps, in]. Raises SessionError."""
        require(SINGLE)
        _, self._taps, self._channels = kernel.shape
        self._weights = np.concatenate((kernel.reshape(-1), _or_zeros(bias, 1)), dtype=np.float32)

    def __call__(self, x: int, given: int, out: int, *, threads: int) -> None:
        """x: the address of [given, in], the context among them; out: of [given - taps + 1]."""
        rows, terms = given - self._taps + 1, self._taps * self._channels
        if rows <= 0:
            return
        plan = descriptors.Single(x, self._weights.ctypes.data, out, terms, step=self._channels)
        parts = min(threads, rows * terms // _LITTLE) or 1
        in_parts(SINGLE, plan, [rows * i // parts for i in range(parts + 1)], parts)


def _share_out(unit: Unit, plan: Sequence[int], count: int, space: int, threads: int) -> None:
    """`count` tiles or rows in a part for each thread, of whole `ROWS`, with `space` bytes each."""
    groups = -(-count // tiles.ROWS)
    parts = min(threads, groups)
    ends = [min(count, groups * i // parts * tiles.ROWS) for i in range(parts + 1)]
    in_parts(unit, plan, ends, parts, scratch(space * parts), space)


def _or_zeros(bias: np.ndarray | None, count: int) -> np.ndarray:
    return np.zeros(count, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)


def _ordered(
    kernel: np.ndarray,
    shape: Sequence[int],
    kind: int,
    threads: int,
    factors: np.ndarray = _ONE,
    run: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [columns, taps, in] -> flat, see `Order`; and the scales of int16, float32 [points, columns].

    kind: 0, `AS_BF16` or `AS_INT16`. factors: float64 [points, taps]. run: how many of `in` are multiplied before
    others are; None: all.
    """
    columns, taps, channels = shape
    points, blocks, kernel = len(factors), columns // tiles.CHUNK, np.ascontiguousarray(kernel, np.float32)
    answer = _aligned((points * columns * channels,), {AS_INT16: np.int16, AS_BF16: np.uint16}.get(kind, np.float32))
    scales = np.zeros((points, columns), np.float32)
    plan = descriptors.Order(
        kernel=kernel.ctypes.data,
        taps=taps,
        channels=channels,
        points=points,
        factors=factors.ctypes.data,
        blocks=blocks,
        y=answer.ctypes.data,
        y_scales=scales.ctypes.data,
        kind=kind,
        run=run or channels,
    )
    _, _, count = tiles.order_scratch(channels)
    in_parts(ORDER, plan, range(blocks + 1), threads, scratch(8 * count * threads), 8 * count)
    return answer, scales


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins with a line of the cache: what lies across two is read twice."""
    made = _aligned(array.shape, array.dtype)
    made[...] = array
    return made


def _aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def scratch(space: int) -> int:
    """The address of memory to work in, the calling thread's."""
    kept = getattr(_KEPT, "memory", None)
    if kept is None or kept.nbytes < space:
        kept = _KEPT.memory = _aligned((space // 4,))
    return int(kept.ctypes.data)
