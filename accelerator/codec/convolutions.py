"""Convolutions of [B, rows, channels], their weights kept in the order in which oneDNN multiplies them.

`functional.conv2d` reorders the weights at every call, which for large weights and short windows takes longer than the
convolution. PyTorch's compiler avoids that with operators that take ordered weights. They are private, so `packs` and
`splits` try them once; where they are missing or wrong, `conv2d` is used.

    Plain    conv2d and linear; any PyTorch, any processor
    Packed   weights ordered once; the same arithmetic
    Minimal  a fourth to three fifths of the multiplications, for float32 filters of some lengths: see `winograd`;
             `Winograd` where there are no compiled kernels; in the form "int16", filters of two taps, and the mixing
             that follows a filter of seven, multiply in int16, exact to 65 dB
    Dense    float32 values as int16, exact to 70 dB: half of float32's time and memory, by compiled kernels
    Single   one output channel, by compiled kernels
    Split    float32 values as pairs of int8, exact to about 80 dB: with AMX a third of float32's time, half its memory

Ordered weights are copies, and the originals are read only to make them: as a `Kernel` they need not be in memory.

All take [B, rows, channels] that includes the context, and return [B, rows', out]. The order depends on the length of
the input (at most two orders were seen per layer), in a few layers also on the number of threads; with a wrong one
oneDNN would reorder at every call. So the order is looked up for each new length, and weights are packed at the first
use of each order. Safe to call from several threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from .. import kernels
from ..errors import SessionError
from ..hardware import detect
from ..hardware.forks import Lock
from ..runtime.options import BF16_FLAGS
from .dense import Dense, Single
from .winograd import TAPS, Minimal, Winograd

__all__ = [
    "MANY",
    "Convolve",
    "Form",
    "Kernel",
    "Packed",
    "Plain",
    "Split",
    "convolver",
    "has_bf16",
    "of_filters",
    "packs",
    "reduced",
    "splits",
]

FEW = 128  # rows up to which a matrix product is faster than a convolution that orders its weights at every call
MANY = 96  # channels from which saving multiplications pays for the transforms around them
_MOST = 12_000_000  # weights, at most: evaluated ones take two or three times the memory
_HEAD = 65_536  # bytes of ordered weights by which orders are told apart
_CENTRE = 32_896.0  # of 16 bits: 256 * 128 + 128, so that both bytes lie around 128
_LARGEST = 32_639.0  # 127 * 256 + 127: what two int8 hold
_ROWS = 8  # other numbers of rows may need another order, and so a copy of all weights for one window length
_TINY = 1e-20  # avoids division by zero
_AT_A_TIME = 1_000_000  # weights
_LOCK = Lock()  # one packing at a time, to need its temporary memory only once

Convolve = Callable[[Tensor], Tensor]
Form = Literal["plain", "packed", "winograd", "int16", "split"]


@dataclass(frozen=True)
class Kernel:
    """Weights float32 [out, taps, in], fetched anew whenever they are read."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, weights: Tensor | Kernel) -> Kernel:
        return weights if isinstance(weights, Kernel) else cls(tuple(weights.shape), lambda: weights)


def convolver(
    kernel: Tensor | Kernel,
    bias: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    dtype: torch.dtype = torch.float32,
    form: Form = "packed",
) -> Convolve:
    """A convolution in `form`, or in the next plainer form that this PyTorch and this processor support.

    kernel: float32 [out, taps, in]. "plain" copies no float32 weights; the other forms are faster, each more than the
    one before.
    """
    if form == "split" and splits():
        return Split(kernel, bias, stride=stride, dilation=dilation)
    kernel = Kernel.of(kernel)
    out, taps, channels = kernel.shape
    if form in ("winograd", "int16", "split") and dtype == torch.float32 and stride == 1:
        if kernels.available() and kernels.Filter.takes(kernel.shape) and math.prod(kernel.shape) <= _MOST:
            int16 = form == "int16" and taps == 2
            with contextlib.suppress(SessionError):  # which was logged
                return Minimal(kernel.shape, kernel.read, bias, dilation, int16=int16)
        if form in ("int16", "split") and kernels.available() and kernels.Dense.takes(kernel.shape):
            with contextlib.suppress(SessionError):
                return Dense(kernel.shape, kernel.read, bias, dilation)
        if taps in TAPS and min(out, channels) >= MANY:
            return Winograd(kernel.shape, kernel.read, bias, dilation)
        if (out, dilation) == (1, 1) and kernels.available():
            with contextlib.suppress(SessionError):
                return Single(kernel.read(), bias)
    if form != "plain" and packs():
        return Packed(kernel, bias, stride=stride, dilation=dilation, dtype=dtype)
    return Plain(kernel.read(), bias, stride=stride, dilation=dilation, dtype=dtype)


class Plain:
    """PyTorch's public functions; keeps a copy of the weights if they are not used in float32."""

    def __init__(
        self,
        kernel: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """kernel: [out, taps, in / groups]."""
        self._kernel, self._bias = kernel.to(dtype), None if bias is None else bias.to(dtype)
        self._stride, self._dilation, self._groups = stride, dilation, groups

    def __call__(self, x: Tensor) -> Tensor:
        rows = (x.shape[1] - (self._kernel.shape[1] - 1) * self._dilation - 1) // self._stride + 1
        if self._groups == 1 and rows <= FEW:
            return self._as_matrix_product(x, rows)
        stride, dilation = (1, self._stride), (1, self._dilation)
        return _rows(
            functional.conv2d(_image(x), _image_kernel(self._kernel), self._bias, stride, 0, dilation, self._groups)
        )

    def _as_matrix_product(self, x: Tensor, rows: int) -> Tensor:
        """For few rows, laying the taps side by side (im2col) costs less than letting oneDNN reorder the weights."""
        x = x.contiguous()
        batch, length, channels = x.shape
        taps = self._kernel.shape[1]
        strides = (length * channels, self._stride * channels, self._dilation * channels, 1)
        side_by_side = x.as_strided((batch, rows, taps, channels), strides, x.storage_offset())
        return functional.linear(side_by_side.flatten(2), self._kernel.flatten(1), self._bias)


class _Ordered:
    """Weights in the order that an input's length needs; the original is read again only for a new order."""

    def __init__(self, kernel: Tensor | Kernel, stride: int, dilation: int, dtype: torch.dtype) -> None:
        self._kernel, self._form = Kernel.of(kernel), (stride, dilation, dtype)
        self._by_length: dict[tuple[int, int, int], Any] = {}
        self._by_order: dict[bytes, Any] = {}

    def _for(self, batch: int, length: int) -> Any:
        key = batch, length, torch.get_num_threads()
        found = self._by_length.get(key)
        if found is None:
            with _LOCK:
                order = _order(self._kernel.shape, *self._form, *key)
                if order not in self._by_order:
                    self._by_order[order] = self._pack(batch, length)
                found = self._by_length[key] = self._by_order[order]
        return found

    def _pack(self, batch: int, length: int) -> Any:
        raise NotImplementedError


class Packed(_Ordered):
    """Multiplies in float32 or bfloat16, sums in float32."""

    def __init__(
        self,
        kernel: Tensor | Kernel,
        bias: Tensor | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """kernel: float32 [out, taps, in], read once for each order."""
        super().__init__(kernel, stride, dilation, dtype)
        self._bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        stride, dilation, _ = self._form
        weights, where = self._for(*x.shape[:2]), ([0, 0], [1, stride], [1, dilation], 1)
        return _rows(torch.ops.mkldnn._convolution_pointwise(_image(x), weights, self._bias, *where, "none", [], ""))

    def _pack(self, batch: int, length: int) -> Tensor:
        stride, dilation, dtype = self._form
        return _packed(self._kernel.read().to(dtype), stride, dilation, batch, length)


class Split(_Ordered):
    """y = conv(x, w) with x = e (256 h + l) and w = s (256 H + L), all of int8: e s (65536 hH + 256 (hL + lH)).

    AMX multiplies int8 some fifteen times as fast as AVX-512 float32, so three such convolutions take a third of the
    time of one in float32; the fourth, lL, is below the noise. So that channels count by what they contribute, each
    input channel is multiplied by the largest weight that it meets, and the weights are divided by it. There is one e
    for the whole input, or one for each row where there is a single tap.
    """

    def __init__(self, kernel: Tensor | Kernel, bias: Tensor | None, *, stride: int = 1, dilation: int = 1) -> None:
        """kernel: float32 [out, taps, in], read once for each order."""
        super().__init__(kernel, stride, dilation, torch.int8)
        out, taps, _ = self._kernel.shape
        self._bias = torch.zeros(out) if bias is None else bias
        self._by_row = taps == 1 and stride == 1
        self._zeros = torch.zeros(out, dtype=torch.long)
        self._factors: tuple[Tensor, ...] | None = None  # gain of inputs, scales of outputs, and the offset correction

    def __call__(self, x: Tensor) -> Tensor:
        batch, given, _ = x.shape
        if self._by_row and given % _ROWS:
            x = functional.pad(x, (0, 0, 0, -given % _ROWS))
        rows = x.shape[1]
        high, low = self._for(batch, rows)
        assert self._factors is not None
        gain, scale, scale_high, offset = self._factors
        x = x * gain
        largest = torch.linalg.vector_norm(x, torch.inf, dim=2 if self._by_row else (0, 1, 2), keepdim=True)
        unit = largest.clamp_(min=_TINY).div_(_LARGEST)
        bytes_ = _bytes(x, unit.reciprocal())
        upper, lower = bytes_[..., 1].contiguous(), bytes_[..., 0].contiguous()
        if self._by_row:  # few rows, so reading the weights counts: both parts of x at once
            high = self._for(batch, 2 * rows)[0]
            both = _rows(self._sum(torch.cat((lower, upper), 1), high, 1.0, scale, None, None))
            y = _rows(self._sum(upper, low, 1.0, scale, offset, None))
            y.add_(both[:, :rows]).add_(both[:, rows:], alpha=256)
            return torch.addcmul(self._bias, y, unit)[:, :given]
        e = float(unit)
        bias = torch.add(self._bias, offset, alpha=e)
        y = self._sum(lower, high, e, scale, None, None)
        y = self._sum(upper, low, e, scale, None, y)
        return _rows(self._sum(upper, high, e, scale_high, bias, y))

    def _sum(
        self, x: Tensor, weights: Tensor, e: float, scale: Tensor, bias: Tensor | None, before: Tensor | None
    ) -> Tensor:
        stride, dilation, _ = self._form
        factors = (_image(x), e, 0, weights, scale, self._zeros)
        where = ([1, stride], [0, 0], [1, dilation], 1, 1.0, 0, torch.float32)
        if before is None:
            return torch.ops.onednn.qconv2d_pointwise(*factors, bias, *where, "none", [], "")
        return torch.ops.onednn.qconv2d_pointwise(*factors, before, bias, *where, 1.0, 0, "sum", 1.0, "none", [], "")

    def _pack(self, batch: int, length: int) -> tuple[Tensor, ...]:
        stride, dilation, _ = self._form
        kernel, shape = self._kernel.read(), self._kernel.shape
        size = max(1, _AT_A_TIME // kernel[0].numel())
        gain = torch.stack([part.abs().amax((0, 1)) for part in kernel.split(size)]).amax(0).clamp_(min=_TINY)
        upper, lower = torch.empty(shape, dtype=torch.int8), torch.empty(shape, dtype=torch.int8)
        scale, offset = torch.empty(len(upper)), torch.empty(len(upper), dtype=torch.float64)
        for start in range(0, len(upper), size):  # in parts: the passes below need five times a part's memory
            part = slice(start, start + size)
            weights = kernel[part] / gain
            scale[part] = weights.abs().amax((1, 2)).clamp_(min=_TINY).div_(_LARGEST)
            bytes_ = _bytes(weights, scale[part, None, None].reciprocal())
            for half, byte in ((upper, 1), (lower, 0)):
                half[part] = bytes_[..., byte].bitwise_xor(128).view(torch.int8)
            # Both bytes of an input are 128 too large. The product of both lower bytes is left out.
            sums = [half[part].sum((1, 2), dtype=torch.int64) for half in (upper, lower)]
            offset[part] = -128 * 256 * (257 * sums[0] + sums[1]) * scale[part].double()
        if self._factors is None:
            self._factors = gain, scale * 256, scale * 65_536, offset.float()
        return tuple(_packed(half, stride, dilation, batch, length) for half in (upper, lower))


def _bytes(x: Tensor, factor: Tensor) -> Tensor:
    """x times factor, within `_LARGEST`, as 256 h + l: [..., 4] whose bytes 1 and 0 are h + 128 and l + 128."""
    bits = torch.addcmul(_HALF_UP, x, factor, out=x).to(torch.int32)  # least significant byte first, as AMX has it
    return bits.view(torch.uint8).view(*x.shape, 4)


_HALF_UP = torch.tensor(_CENTRE + 0.5)


def _image(x: Tensor) -> Tensor:
    """[B, rows, C] as [B, C, 1, rows], channels last."""
    return x.contiguous()[:, None].permute(0, 3, 1, 2)


def _rows(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)[:, 0]


def _image_kernel(kernel: Tensor) -> Tensor:
    """[out, taps, in] as [out, in, 1, taps], channels last: no copy."""
    return kernel[:, None].permute(0, 3, 1, 2)


def _packed(kernel: Tensor, stride: int, dilation: int, batch: int, length: int) -> Tensor:
    where, shape = ([0, 0], [1, stride], [1, dilation], 1), [batch, kernel.shape[2], 1, length]
    if kernel.dtype == torch.int8:
        padding, strides, dilations, groups = where
        ones = torch.ones(len(kernel))
        return torch.ops.onednn.qconv_prepack(
            _image_kernel(kernel), ones, 1.0, 0, strides, padding, dilations, groups, shape
        )
    return torch.ops.mkldnn._reorder_convolution_weight(_image_kernel(kernel), *where, shape)


@functools.lru_cache(maxsize=4096)
def _order(
    shape: tuple[int, ...], stride: int, dilation: int, dtype: torch.dtype, batch: int, length: int, threads: int
) -> bytes:
    """Identifies the order of such weights for such an input and `threads`, by how oneDNN lays out a pattern."""
    count = shape[0] * shape[1] * shape[2]
    pattern = torch.arange(-125, 126).to(dtype).repeat(-(-count // 251))[:count].view(shape)
    packed = _packed(pattern, stride, dilation, batch, length)
    size = int(torch.ops.mkldnn._nbytes(packed))
    return size.to_bytes(8, "little") + ctypes.string_at(torch.ops.mkldnn.data_ptr(packed), min(size, _HEAD))


@functools.cache
def packs() -> bool:
    """Whether this PyTorch takes ordered weights and computes the same with them."""
    x, kernel = _sample()
    return _agree(lambda: Packed(kernel, None)(x), Plain(kernel, None)(x))


@functools.cache
def splits() -> bool:
    """Whether int8 matrix products are as fast as `Split` needs (AMX) and exact (older instructions saturate)."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if amx is None or not amx():
        return False
    x, kernel = _sample()
    return _agree(lambda: Split(kernel.abs(), None)(x.abs()), Plain(kernel.abs(), None)(x.abs()))


def mix(
    kernel: Kernel, bias: Tensor | None, dtype: torch.dtype = torch.float32, form: Form = "winograd"
) -> kernels.Mix | None:
    """The one-tap convolution [out, 1, in] after a unit's `Minimal` filter; None without kernels for it."""
    shape = kernel.shape[0], kernel.shape[2]
    kind = "bf16" if dtype == torch.bfloat16 else "int16" if form == "int16" else "fp32"
    if not kernels.Mix.takes(shape, kind):
        return None
    given = None if bias is None else bias.numpy()
    with contextlib.suppress(SessionError):
        return kernels.Mix(shape, lambda: kernel.read().numpy(), given, kind)
    return None


def of_filters(dtype: torch.dtype) -> torch.dtype:
    """The dtype for a unit's filters where `dtype` is asked for.

    Only AMX in bfloat16 is faster than compiled kernels that save most of the multiplications in float32.
    """
    return torch.float32 if kernels.available() and not splits() else dtype


def reduced() -> Literal["bf16", "int16"] | None:
    """A lower precision that is faster than float32 here, if any; PyTorch would also emulate bfloat16, slowly."""
    if has_bf16() and not set(BF16_FLAGS).isdisjoint(detect().isa):
        return "bf16"
    return "int16" if kernels.available() else None


@functools.cache
def has_bf16() -> bool:
    """Whether this PyTorch has bfloat16 convolutions for this processor; emulated, they take minutes."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def _sample() -> tuple[Tensor, Tensor]:
    x = torch.sin(torch.arange(40.0 * 64)).view(1, 40, 64)
    return x, torch.cos(torch.arange(32.0 * 3 * 64)).view(32, 3, 64)


def _agree(run: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        got = run()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool(got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-3, atol=1e-3))
