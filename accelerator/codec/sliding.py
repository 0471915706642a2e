"""Layers of a codec's decoder over NumPy arrays [rows, channels], by compiled kernels; nothing here needs PyTorch.

They look to both sides, zeros lying beyond both ends, and take a stream window by window: a row is answered as soon as
all that it looks at is known, the last ones when the stream ends. What a layer has seen and still looks at is its part
of the `State`, so that nothing is computed twice, and windows of any length join to exactly the whole.

    Convolution   seven taps, dilated; Last: one output
    Stage         DAC's: snake, a transposed convolution, residual units
    Block         ConvNeXt's
    Linear        a product for each row

Layers hold only weights, and threads may share them, each with a state of its own. Arrays that a layer answers with may
be memory that its next call on the same thread uses again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import kernels
from ..errors import SessionError
from ..kernels.tiles import CHUNK
from ..runtime.options import Dtype

__all__ = ["Block", "Convolution", "Last", "Linear", "Push", "Stage", "State", "Tensors", "normalised"]

State = dict[int, Any]
"""By the layer's id: what it still looks at."""

_KEPT = threading.local()
_LINE = 64  # bytes: vectors that lie across two lines of the cache are read twice
_MOST = 4_000_000  # values that a thread keeps for each use; larger memory is allocated each time


@dataclass(frozen=True)
class Tensors:
    """A module's weights by name. dtype: of most multiplications: see `Stage` and `Linear`."""

    arrays: Mapping[str, np.ndarray]
    shapes: Mapping[str, Sequence[int]]
    dtype: Dtype = "fp32"
    prefix: str = ""

    def __call__(self, name: str) -> np.ndarray:
        return self.arrays[self.prefix + name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.shapes[self.prefix + name])

    def within(self, name: str) -> Tensors:
        """Those of a part: the names that begin with `name.`, without it."""
        return Tensors(self.arrays, self.shapes, self.dtype, f"{self.prefix}{name}.")


@dataclass(frozen=True)
class Push:
    """A window of a stream. final: it is the last one."""

    state: State
    final: bool
    threads: int


class _Around:
    """A layer's rows: those that it still looks at, and new ones behind."""

    def __init__(self, channels: int, before: int, behind: int, lost: int) -> None:
        """before, behind: zeros at both ends. lost: rows that the layer needs more than it answers with."""
        self._channels, self._before, self._behind, self.lost = channels, before, behind, lost

    def room(self, rows: int, push: Push) -> tuple[np.ndarray, np.ndarray]:
        """Memory [more, channels], and its part for new rows: fill it, then `remember`."""
        kept = push.state.get(id(self))
        start = self._before if kept is None else len(kept)
        end = start + rows
        buffer = _memory("rows", end + push.final * self._behind, self._channels)
        buffer[:start] = 0 if kept is None else kept
        buffer[end:] = 0
        return buffer, buffer[start:end]

    def remember(self, buffer: np.ndarray, push: Push) -> int:
        """The rows that the layer answers with."""
        push.state[id(self)] = buffer[max(0, len(buffer) - self.lost) :].copy()
        return max(0, len(buffer) - self.lost)


class Convolution:
    """y = conv(x) + b, as long as x."""

    def __init__(self, tensors: Tensors, name: str, dilation: int = 1) -> None:
        """Raises SessionError."""
        self._filter = _filter(tensors, name, dilation)
        self.out, taps, channels = tensors.shape(f"{name}.kernel")
        self._around = _centred(channels, taps, dilation)

    @staticmethod
    def takes(tensors: Tensors, name: str) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        shape = tensors.shape(f"{name}.kernel")
        return kernels.Filter.takes(shape) and shape[1] % 2 == 1

    def __call__(self, x: np.ndarray, push: Push) -> np.ndarray:
        buffer, new = self._around.room(len(x), push)
        new[:] = x
        y = _memory(f"convolved {self.out}", self._around.remember(buffer, push), self.out)
        self._filter(buffer.ctypes.data, len(buffer), y.ctypes.data, threads=push.threads)
        return y


class Last:
    """A convolution of `snake`, with one output."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        """Raises SessionError."""
        self._alpha = tensors(f"{name}.alpha")
        _, taps, channels = tensors.shape(f"{name}.kernel")
        self._single = kernels.Single(tensors(f"{name}.kernel"), tensors(f"{name}.bias"))
        self._around = _centred(channels, taps, 1)

    def __call__(self, x: np.ndarray, push: Push) -> np.ndarray:
        """[rows]"""
        buffer, new = self._around.room(len(x), push)
        _snake(x, self._alpha, new, push.threads)
        y = np.empty(self._around.remember(buffer, push), np.float32)
        self._single(buffer.ctypes.data, len(buffer), y.ctypes.data, threads=push.threads)
        return y


class Stage:
    """[rows, C] -> [rate * rows, C / 2]: snake, a transposed convolution, residual units.

    Its filters are float32. In "int16" mode the transposed convolution multiplies in int16, exact to 65 dB, and so does
    what mixes the channels in a unit; in "bf16" mode this does in bfloat16.
    """

    def __init__(self, tensors: Tensors, rate: int, size: int, pad: int, dilations: Sequence[int]) -> None:
        """size: taps of the transposed convolution, which cuts off `pad` rows at both ends. Raises SessionError."""
        self.rate, self._pad = rate, pad
        self._alpha = tensors("alpha")
        columns, taps, channels = tensors.shape("kernel")
        self.out = columns // rate
        self._around = _Around(channels, taps - 1, _beyond(rate, pad), taps - 1)
        low = tensors.dtype != "fp32"
        shift = tensors("bias")
        self._up = kernels.Filter((columns, 2, channels), lambda: tensors("kernel")[:, taps - 2 :], shift, 1, int16=low)
        self._third = _third(tensors, (size - 2 * rate) * self.out) if taps == 3 else None
        units = tensors.within("units")
        self._units = [_Unit(units.within(f"{j}"), dilation) for j, dilation in enumerate(dilations)]

    @staticmethod
    def takes(tensors: Tensors, rate: int, pad: int) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        columns, taps, channels = tensors.shape("kernel")
        fits = taps in (2, 3) and 0 < pad <= rate and not columns % (rate * CHUNK) and not channels % CHUNK
        return fits and kernels.Filter.takes(tensors.shape("units.0.first.kernel"))

    def __call__(self, x: np.ndarray, push: Push) -> np.ndarray:
        """Rows lie in one array from the transposed convolution on: each unit adds to those that the one before has
        finished, and knows enough of. `ends`: how far each of them has come."""
        if not len(x) and not push.final:
            return np.empty((0, self.out), np.float32)
        kept, ends = push.state.pop(id(self), (None, [0] * (len(self._units) + 1)))
        before = 0 if kept is None else len(kept)
        buffer, new = self._around.room(len(x), push)
        _snake(x, self._alpha, new, push.threads)
        rows = self._around.remember(buffer, push)
        y = _memory(f"stage {self.out}", before + self.rate * rows, self.out)
        self._upsampled(buffer, rows, y[before:], push.threads)
        if kept is None:
            y = y[self._pad :]
        else:
            y[:before] = kept
        if push.final:
            y = y[: len(y) - (self.rate * _beyond(self.rate, self._pad) - self._pad)]
        now = [len(y)]
        for unit, start, done in zip(self._units, ends, ends[1:], strict=False):
            now.append(done + unit(y[start : now[-1]], y[done:], push))
        push.state[id(self)] = y[now[-1] :].copy(), [end - now[-1] for end in now]
        return y[: now[-1]]

    def _upsampled(self, buffer: np.ndarray, rows: int, y: np.ndarray, threads: int) -> None:
        """y [rate * rows, out]."""
        more = len(buffer) - rows - 1  # rows before those that the filter takes
        self._up(buffer[more:].ctypes.data, rows + 1, y.ctypes.data, threads=threads)
        if self._third is not None:
            answer = _memory("third", rows, self._third.out)
            answer[:] = 0
            self._third.add(buffer[:rows], answer, threads)
            phases = y.reshape(rows, self.rate, self.out)
            phases[:, : self._third.out // self.out] += answer.reshape(rows, self._third.out // self.out, self.out)


class _Unit:
    """x + conv1(snake(conv7(snake(x))))."""

    def __init__(self, tensors: Tensors, dilation: int) -> None:
        self._alpha = tensors("alpha")
        self._first = _filter(tensors, "first", dilation)
        _, taps, channels = tensors.shape("first.kernel")
        self._around = _centred(channels, taps, dilation)
        self._second = _mix(tensors, "second", tensors.dtype)

    def __call__(self, x: np.ndarray, y: np.ndarray, push: Push) -> int:
        """x: what is new of the rows, whose first that is not finished is y's first. Returns how many it finishes."""
        buffer, new = self._around.room(len(x), push)
        _snake(x, self._alpha, new, push.threads)
        rows = self._around.remember(buffer, push)
        values = _memory("values", self._second.space(rows), 1).ctypes.data
        self._first(buffer.ctypes.data, len(buffer), values, threads=push.threads, snake=True, to=self._second)
        self._second(values, rows, y.ctypes.data, threads=push.threads)
        return rows


class Block:
    """x + W2 gelu(W1 norm(depthwise(x)))."""

    def __init__(self, tensors: Tensors) -> None:
        """Raises SessionError."""
        self._taps = np.ascontiguousarray(tensors("depth.kernel")[:, :, 0].T)  # [taps, channels]
        self._shift = tensors("depth.bias")
        self._around = _centred(self._taps.shape[1], len(self._taps), 1)
        self._expand, self._contract = (Linear(tensors, name) for name in ("expand", "contract"))

    def __call__(self, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float, push: Push) -> np.ndarray:
        """scale, shift, eps: of the norm."""
        buffer, new = self._around.room(len(x), push)
        new[:] = x
        rows = self._around.remember(buffer, push)
        hidden = buffer[:rows] * self._taps[0]
        for j, factors in enumerate(self._taps[1:], 1):
            hidden += buffer[j : j + rows] * factors
        hidden += self._shift
        y = buffer[len(self._taps) // 2 :][:rows].copy()
        inner = _memory("inner", rows, self._expand.out)
        inner[:] = 0
        self._expand.add(normalised(hidden, scale, shift, eps), inner, push.threads)
        self._contract.add(inner, y, push.threads, gelu=True)
        return y


class Linear:
    """y = W x + b for each row; but for "fp32" it multiplies in int16, exact to 70 dB."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        """name: of `weight` [out, in] and `bias`. Raises SessionError."""
        self._mix: kernels.Mix | None = None
        self.out, channels = tensors.shape(f"{name}.weight")
        if tensors.dtype == "fp32":
            self._mix = _mix(tensors, name, "fp32", "weight")
        else:
            shape = self.out, 1, channels
            self._dense = kernels.Dense(
                shape, lambda: tensors(f"{name}.weight").reshape(shape), tensors(f"{name}.bias"), 1
            )

    @staticmethod
    def takes(shape: Sequence[int]) -> bool:
        """Whether there are kernels for weights [out, in], if there are any at all."""
        return not shape[0] % CHUNK and not shape[1] % CHUNK

    def add(self, x: np.ndarray, y: np.ndarray, threads: int, *, gelu: bool = False) -> None:
        """y += W x + b, or of gelu(x); both contiguous. x may be changed."""
        rows, channels = x.shape
        if self._mix is None:
            if gelu:
                kernels.gelu(x.ctypes.data, x.ctypes.data, rows, channels, threads=threads)
            answer = _memory("linear", rows, self.out)
            self._dense(x.ctypes.data, rows, answer.ctypes.data, threads=threads)
            y += answer
            return
        room = self._mix.room(rows)
        values = _memory("values", room, channels)
        if gelu:
            kernels.gelu(x.ctypes.data, values.ctypes.data, rows, channels, room=room, threads=threads)
        else:
            chunks = values.reshape(channels // CHUNK, room, CHUNK)
            chunks[:, :rows] = x.reshape(rows, len(chunks), CHUNK).swapaxes(0, 1)
        self._mix(values.ctypes.data, rows, y.ctypes.data, threads=threads)


def normalised(x: np.ndarray, scale: np.ndarray, shift: np.ndarray, eps: float) -> np.ndarray:
    """A layer norm over the channels."""
    x = x - x.mean(axis=1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(eps))
    x *= scale
    x += shift
    return x


def _centred(channels: int, taps: int, dilation: int) -> _Around:
    half = (taps - 1) * dilation // 2
    return _Around(channels, half, half, 2 * half)


def _beyond(rate: int, pad: int) -> int:
    """Rows of zeros behind the end that a transposed convolution looks at."""
    return math.ceil(pad / rate)


def _filter(tensors: Tensors, name: str, dilation: int) -> kernels.Filter:
    shape = tensors.shape(f"{name}.kernel")
    return kernels.Filter(shape, lambda: tensors(f"{name}.kernel"), tensors(f"{name}.bias"), dilation)


def _mix(tensors: Tensors, name: str, dtype: Dtype, weight: str = "kernel") -> kernels.Mix:
    shape = tensors.shape(f"{name}.{weight}")
    return kernels.Mix(
        (shape[0], shape[-1]), lambda: tensors(f"{name}.{weight}").reshape(shape[0], -1), tensors(f"{name}.bias"), dtype
    )


def _third(tensors: Tensors, count: int) -> Linear:
    """The first of three taps of a transposed convolution, which only its first `count` outputs have."""

    class Read(dict[str, np.ndarray]):
        def __missing__(self, name: str) -> np.ndarray:
            return tensors("kernel")[:count, 0] if name == "third.weight" else np.zeros(count, np.float32)

    return Linear(Tensors(Read(), {"third.weight": (count, tensors.shape("kernel")[2])}, tensors.dtype), "third")


def _snake(x: np.ndarray, alpha: np.ndarray, out: np.ndarray, threads: int) -> None:
    """out = z + sin(z)^2 for z = alpha x. Raises SessionError."""
    rows, channels = x.shape
    where = x.ctypes.data, alpha.ctypes.data, out.ctypes.data
    if not kernels.snake(*where, rows, channels, low=False, low_out=False, threads=threads):
        raise SessionError("there is no compiled kernel for snake")


def _memory(use: str, rows: int, channels: int) -> np.ndarray:
    """An uninitialised array, valid until the thread asks for the same use again: allocating costs more than filling"""
    size = rows * channels
    kept = getattr(_KEPT, use, None)
    if kept is None or len(kept) < size:
        kept = _aligned(size)
        if size <= _MOST:
            setattr(_KEPT, use, kept)
    return kept[:size].reshape(rows, channels)


def _aligned(size: int) -> np.ndarray:
    memory = np.empty(size + _LINE // 4, np.float32)
    start = -memory.ctypes.data % _LINE // 4
    return memory[start : start + size]
