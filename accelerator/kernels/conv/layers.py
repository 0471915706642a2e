"""A codec's convolutions, compiled: filters with fewer multiplications, what follows them in a residual unit, and the
layers whose weights are large."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...hardware.forks import Lock
from .. import tiles as at
from ..compiler import Unit, function, require
from ..features import multiplies_bf16
from ..parallel import in_parts
from ..units.dense import DENSE
from ..units.filter import FILTER
from ..units.levels import LEVELS
from ..units.mix import MIX
from ..units.order import ORDER
from ..units.single import SINGLE
from .minimal import filters

__all__ = ["Dense", "Filter", "Mix", "Single"]

_LINE = 64  # bytes
_LITTLE = 200_000  # products that are not worth another thread
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
        leveled: bool = False,
    ) -> None:
        """shape: [out, taps, in] of what `read` gives, float32, once; see `takes`. leveled: products of int16, which
        are exact to 65 dB and take two thirds of the time and half of the memory; of two taps only.

        Raises SessionError.
        """
        require(FILTER, ORDER)
        self._leveled = leveled
        self._shape, self._read, self._dilation = tuple(shape), read, dilation
        self._bias = _or_zeros(bias, shape[0])
        self._shift = self._bias.ctypes.data
        self._evaluated: np.ndarray | None = None
        self._units: np.ndarray = np.zeros(0, np.float32)

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        out, taps, channels = shape
        return taps in at.FILTERS and not out % at.CHUNK and not channels % at.CHUNK

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
        weights, kind, room = self._weights(threads), at.SNAKED * snake + at.LOW * low, 0
        if to is not None:
            kind, room = kind | at.MIXED | to.kind, to.room(rows)
        plan = [0] * at.FILTER_SIZE
        plan[at.FILTER_X], plan[at.FILTER_GIVEN], plan[at.FILTER_IN], plan[at.FILTER_Y] = x, given, channels, out
        plan[at.FILTER_OUT], plan[at.FILTER_KIND], plan[at.FILTER_WEIGHTS] = columns, kind, weights.ctypes.data
        plan[at.FILTER_BIAS], plan[at.FILTER_DILATION], plan[at.FILTER_ROOM] = self._shift, self._dilation, room
        plan[at.FILTER_UNITS], plan[at.FILTER_TAPS] = self._units.ctypes.data, taps
        plan[at.FILTER_LEVELED], plan[at.FILTER_OWN] = self._leveled, out + 4 * columns * room
        whole, rest = divmod(rows, at.FILTERS[taps] * self._dilation)
        tiles = whole * self._dilation + min(rest, self._dilation)
        _share_out(FILTER, plan, tiles, at.filter_space(taps, channels), threads)

    def _weights(self, threads: int) -> np.ndarray:
        """[points, out / CHUNK, in, CHUNK]; of int16: [points, out / CHUNK, in / CHUNK, CHUNK / 2, CHUNK, 2]."""
        with _LOCK:
            if self._evaluated is None:
                taps, kind = self._shape[1], at.LEVELED * self._leveled
                factors = np.ascontiguousarray(filters(at.FILTERS[taps], taps).weights, np.float64)
                self._evaluated, self._units = _ordered(self._read(), self._shape, kind, threads, factors)
        return self._evaluated


class Mix:
    """x += v W^T + b for float32 x [rows, out], and values in the order in which a `Filter` puts them."""

    KINDS: ClassVar[Mapping[str, int]] = {"fp32": 0, "bf16": at.LOW, "int16": at.LEVELED}

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
        return not shape[0] % at.CHUNK and not shape[1] % at.CHUNK and (dtype != "bf16" or multiplies_bf16())

    @staticmethod
    def room(rows: int) -> int:
        """Rows that the values must have room for: [in / CHUNK, room, CHUNK]."""
        return -(-rows // at.ROWS) * at.ROWS

    def space(self, rows: int) -> int:
        """Numbers of four bytes that the values of so many rows take at most: [in / CHUNK, room, CHUNK], and units
        [in / CHUNK, room]."""
        _, channels = self._shape
        return self.room(rows) * (channels + channels // at.CHUNK)

    def __call__(self, values: int, rows: int, x: int, *, threads: int) -> None:
        """values, x: addresses."""
        out, channels = self._shape
        if rows <= 0:
            return
        plan = [0] * at.MIX_SIZE
        plan[at.MIX_VALUES], plan[at.MIX_ROOM], plan[at.MIX_IN], plan[at.MIX_X] = values, self.room(rows), channels, x
        plan[at.MIX_ROWS], plan[at.MIX_OUT], plan[at.MIX_BIAS] = rows, out, self._shift
        plan[at.MIX_UNITS] = values + 4 * channels * self.room(rows)
        plan[at.MIX_WEIGHTS], plan[at.MIX_KIND] = self._weights(threads).ctypes.data, self.kind
        plan[at.MIX_SCALES] = self._scales.ctypes.data
        _share_out(MIX, plan, rows, 4 * at.ROWS * at.CHUNK, threads)

    def _weights(self, threads: int) -> np.ndarray:
        """[out / CHUNK, in, CHUNK], or of pairs of bfloat16: [out / CHUNK, in / 2, CHUNK, 2]; of int16 as in a
        `Dense`."""
        with _LOCK:
            if self._kept is None:
                out, channels = self._shape
                self._kept, self._scales = _ordered(self._read(), (out, 1, channels), self.kind, threads)
        return self._kept


class Dense:
    """y = conv(x, w) + b for float32 [rows, in], by products of int16: exact to 70 dB, in half of float32's time and
    memory. It wants few rows of large weights, since it keeps all rows beside the cache."""

    def __init__(
        self, shape: Sequence[int], read: Callable[[], np.ndarray], bias: np.ndarray | None, dilation: int
    ) -> None:
        """shape: [out, taps, in] of what `read` gives, float32, once; see `takes`.

        Raises SessionError.
        """
        require(DENSE, LEVELS, ORDER)
        self._shape, self._read, self._dilation = tuple(shape), read, dilation
        self._bias = _or_zeros(bias, shape[0])
        self._shift = self._bias.ctypes.data
        self._levels: np.ndarray | None = None
        self._units: np.ndarray = np.zeros(0, np.float32)

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        return not shape[0] % at.CHUNK and not shape[2] % at.CHUNK

    def __call__(self, x: int, given: int, out: int, *, threads: int) -> None:
        """x: the address of [given, in], the context among them; out: of [given - (taps - 1) dilation, out]."""
        columns, taps, channels = self._shape
        lost = (taps - 1) * self._dilation
        rows = given - lost
        if rows <= 0:
            return
        weights = self._weights(threads)
        room = -(-rows // at.ROWS) * at.ROWS + lost  # what the last rows are multiplied with
        plan, units = [0] * at.DENSE_SIZE, np.zeros(room, np.float32)
        threads = min(threads, columns // at.CHUNK)
        apart = 4 * at.ROWS * at.CHUNK
        memory = _scratch(4 * room * channels + apart * threads)
        values = memory + apart * threads
        plan[at.DENSE_VALUES], plan[at.DENSE_UNITS] = values, units.ctypes.data
        plan[at.DENSE_ROOM], plan[at.DENSE_ROWS], plan[at.DENSE_IN], plan[at.DENSE_OUT] = room, rows, channels, columns
        plan[at.DENSE_TAPS], plan[at.DENSE_DILATION], plan[at.DENSE_BIAS] = taps, self._dilation, self._shift
        plan[at.DENSE_WEIGHTS], plan[at.DENSE_SCALES] = weights.ctypes.data, self._units.ctypes.data
        plan[at.DENSE_Y] = out
        numbers = np.array(plan, np.int64)
        function(LEVELS)(numbers.ctypes.data, x, given)
        ends = [columns // at.CHUNK * i // threads for i in range(threads + 1)]
        in_parts(DENSE, plan, ends, threads, memory, apart)

    def _weights(self, threads: int) -> np.ndarray:
        """int16 [out / CHUNK, taps * in / CHUNK, CHUNK / 2, CHUNK, 2]."""
        with _LOCK:
            if self._levels is None:
                columns, taps, channels = self._shape
                shape = columns, 1, taps * channels
                self._levels, self._units = _ordered(self._read(), shape, at.LEVELED, threads, run=channels)
        return self._levels


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
        plan = [0] * at.SINGLE_SIZE
        plan[at.SINGLE_X], plan[at.SINGLE_WEIGHTS], plan[at.SINGLE_Y] = x, self._weights.ctypes.data, out
        plan[at.SINGLE_TERMS], plan[at.SINGLE_STEP] = terms, self._channels
        parts = min(threads, rows * terms // _LITTLE) or 1
        in_parts(SINGLE, plan, [rows * i // parts for i in range(parts + 1)], parts)


def _share_out(unit: Unit, plan: Sequence[int], count: int, space: int, threads: int) -> None:
    """`count` tiles or rows in a part for each thread, of whole `at.ROWS`, with `space` bytes each."""
    groups = -(-count // at.ROWS)
    parts = min(threads, groups)
    ends = [min(count, groups * i // parts * at.ROWS) for i in range(parts + 1)]
    in_parts(unit, plan, ends, parts, _scratch(space * parts), space)


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
    """float32 [columns, taps, in] -> flat, see `ordering`; and what levels stand for, float32 [points, columns].

    kind: 0, `at.LOW` or `at.LEVELED`. factors: float64 [points, taps]. run: how many of `in` are multiplied before
    others are; None: all.
    """
    columns, taps, channels = shape
    points, blocks, kernel = len(factors), columns // at.CHUNK, np.ascontiguousarray(kernel, np.float32)
    answer = _aligned((points * columns * channels,), {at.LEVELED: np.int16, at.LOW: np.uint16}.get(kind, np.float32))
    units = np.zeros((points, columns), np.float32)
    plan = [0] * at.ORDER_SIZE
    plan[at.ORDER_KERNEL], plan[at.ORDER_TAPS], plan[at.ORDER_IN] = kernel.ctypes.data, taps, channels
    plan[at.ORDER_POINTS], plan[at.ORDER_FACTORS], plan[at.ORDER_BLOCKS] = points, factors.ctypes.data, blocks
    plan[at.ORDER_Y], plan[at.ORDER_UNITS], plan[at.ORDER_KIND] = answer.ctypes.data, units.ctypes.data, kind
    plan[at.ORDER_RUN] = run or channels
    space = at.order_space(channels)
    in_parts(ORDER, plan, range(blocks + 1), threads, _scratch(space * threads), space)
    return answer, units


def _aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _scratch(space: int) -> int:
    """The address of memory to work in, the calling thread's."""
    kept = getattr(_KEPT, "memory", None)
    if kept is None or kept.nbytes < space:
        kept = _KEPT.memory = _aligned((space // 4,))
    return int(kept.ctypes.data)
