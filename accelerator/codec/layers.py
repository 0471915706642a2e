"""Causal layers for codecs in PyTorch, in the form that CPUs run fastest; windows continue where the last one ended.

Arrays are [B, rows, channels], rows being time: what oneDNN calls channels last, where its convolutions reach the
processor's peak (PyTorch's own one-dimensional layout, [B, channels, time], stays far below). A layer called with a
`State` continues where its last call ended, so that windows of any length join to exactly the whole, and memory does
not grow with the length. Layers hold only weights, and threads may share them, each with its own state.

    Convolution   strided, dilated, depthwise; float32, or multiplied in bfloat16 and summed in float32
    upsampled     a transposed convolution as a convolution: `stride` rows for each row, already in order
    Unit          DAC's residual unit: snake, convolution, snake, convolution of one tap
    ConvNeXt      its block; Transformer: attention over the last `window` rows, rotary positions from a table
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from .. import kernels
from ..errors import SessionError
from ..hardware.lease import CORES
from ..runtime.threads import torch_threads
from .buffers import scratch
from .convolutions import Convolve, Form, Kernel, Plain, convolver, mix, of_filters
from .winograd import Minimal

__all__ = [
    "ConvNeXt",
    "Convolution",
    "State",
    "Transformer",
    "Unit",
    "Weights",
    "in_tiles",
    "leasing_cores",
    "plainly",
    "snake",
    "snaked",
    "upsampled",
]

State = dict[int, Any]  # by the layer's id: its left context

TILE = 1_600_000  # values of an activation processed at a time, to stay in a core's own cache


@dataclass(frozen=True)
class Weights:
    """A module's tensors by name, as float32.

    stored: weights read on demand, which `kernel` finds and a call does not. form: of the convolutions.
    """

    tensors: Mapping[str, Tensor]
    stored: Mapping[str, Kernel] = field(default_factory=dict)
    form: Form = "packed"
    prefix: str = ""

    def __call__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name].float()

    def kernel(self, name: str) -> Kernel:
        """[out, taps, in], or [out, in]."""
        found = self.stored.get(self.prefix + name)
        return Kernel.of(self(name)) if found is None else found

    def within(self, name: str) -> Weights:
        """Those of a part: the names that begin with `name.`, without it."""
        return replace(self, prefix=f"{self.prefix}{name}.")


class Convolution:
    """y[t] = b + sum_j W[:, :, j] x[t stride - context + j dilation]; causal, zeros before the start."""

    def __init__(
        self,
        kernel: Tensor | Kernel,
        bias: Tensor | None,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        dtype: torch.dtype = torch.float32,
        form: Form = "packed",
    ) -> None:
        """kernel: [out, taps, in / groups]. dtype: of inputs, multiplication and output; sums are float32.

        form: see `convolutions`; grouped convolutions are plain.
        """
        kernel = Kernel.of(kernel)
        self.dtype, self.stride = dtype, stride
        self.channels = kernel.shape[2] * groups
        self._dilation = dilation
        self.context = (kernel.shape[1] - 1) * dilation + 1 - stride  # rows of left context
        self.out = kernel.shape[0]
        self._depth: tuple[Tensor, Tensor | None] | None = None
        self._convolve: Convolve | None = None
        if groups == self.channels and stride == 1:
            taps = kernel.read()[:, :, 0].T  # [taps, channels]
            self._depth = taps.to(dtype), None if bias is None else bias.to(dtype)
        elif groups == 1:
            self._convolve = convolver(kernel, bias, stride=stride, dilation=dilation, dtype=dtype, form=form)
        else:
            self._convolve = Plain(kernel.read(), bias, stride=stride, dilation=dilation, groups=groups, dtype=dtype)

    def room(self, batch: int, rows: int, state: State, use: str = "input") -> tuple[Tensor, Tensor]:
        """A buffer [B, context + rows, channels] that begins with the context, and its part for new rows.

        The thread's next `room` for this `use` reuses the memory: fill it, then `run`.
        """
        buffer = scratch(use, (batch, self.context + rows, self.channels), self.dtype)
        if self.context:
            before = state.get(id(self))
            buffer[:, : self.context] = 0 if before is None else before
        return buffer, buffer[:, self.context :]

    def run(self, buffer: Tensor, state: State, use: str | None = None) -> Tensor:
        """A filled buffer -> [B, rows / stride, out] in the layer's dtype.

        use: name of the scratch memory for the answer, if it may be reused memory; see `scratch`.
        """
        self._remember(buffer, state)
        if use is not None and isinstance(self._convolve, Minimal):
            shape = buffer.shape[0], buffer.shape[1] - self.context, self.out
            return self._convolve(buffer, scratch(use, shape))
        return self._depthwise(buffer, *self._depth) if self._depth else cast(Convolve, self._convolve)(buffer)

    def run_snaked(self, buffer: Tensor, state: State, out: Tensor) -> None:
        """`snake` of what `run` answers, into `out`."""
        if isinstance(self._convolve, Minimal) and out.is_contiguous():
            self._remember(buffer, state)
            self._convolve.snaked(buffer, out)
        else:
            snake(self.run(buffer, state), None, out)

    @property
    def is_minimal(self) -> bool:
        return isinstance(self._convolve, Minimal)

    def residual(self, buffer: Tensor, state: State, mix: kernels.Mix, y: Tensor) -> None:
        """y += mix(snake of what `run` answers), if `is_minimal`."""
        self._remember(buffer, state)
        cast(Minimal, self._convolve).residual(buffer, mix, y)

    def _remember(self, buffer: Tensor, state: State) -> None:
        if self.context:
            state[id(self)] = buffer[:, buffer.shape[1] - self.context :].clone()

    def _depthwise(self, buffer: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
        rows = buffer.shape[1] - self.context
        y = buffer[:, :rows] * taps[0]
        for j in range(1, len(taps)):
            y.addcmul_(buffer[:, j * self._dilation : j * self._dilation + rows], taps[j])
        return y if bias is None else y.add_(bias)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        """[B, rows, channels] -> [B, rows / stride, out] float32; rows must be a multiple of the stride."""
        buffer, new = self.room(x.shape[0], x.shape[1], state)
        new.copy_(x)
        return self.run(buffer, state).float()


def upsampled(conv: Convolution, x: Tensor, stride: int, state: State) -> Tensor:
    """[B, rows, in] -> [B, stride * rows, out], by a convolution made with `polyphase`."""
    return conv(x, state).reshape(x.shape[0], stride * x.shape[1], -1)


def snake(x: Tensor, alpha: Tensor | None, out: Tensor) -> Tensor:
    """out = z + sin(z)^2 for z = alpha x; Snake's factor 1 / alpha is folded into the weights that follow."""
    if x.is_contiguous() and out.is_contiguous() and {x.dtype, out.dtype} <= {torch.float32, torch.bfloat16}:
        channels, low = x.shape[-1], torch.bfloat16
        factors = None if alpha is None else alpha.contiguous()
        if kernels.snake(
            x.data_ptr(),
            None if factors is None else factors.data_ptr(),
            out.data_ptr(),
            x.numel() // channels,
            channels,
            low=x.dtype == low,
            low_out=out.dtype == low,
            threads=torch.get_num_threads(),
        ):
            return out
    z = scratch("scaled", x.shape, torch.float32)
    z = z.copy_(x) if alpha is None else torch.mul(x, alpha, out=z)
    squared = torch.sin(z, out=scratch("sine", x.shape, torch.float32))
    if out.dtype == z.dtype:
        return torch.addcmul(z, squared, squared, out=out)
    return out.copy_(z.addcmul_(squared, squared))


def snaked(conv: Convolution, x: Tensor, alpha: Tensor | None, state: State, use: str | None = None) -> Tensor:
    """A convolution of `snake`: [B, rows, C] -> [B, rows / stride, out]; x is unchanged. use: see `Convolution.run`."""
    buffer, new = conv.room(x.shape[0], x.shape[1], state)
    snake(x, alpha, new)
    return conv.run(buffer, state, use)


class Unit:
    """x + conv1(snake(conv7(snake(x)))) for float32 [B, rows, C]; x may be overwritten."""

    def __init__(self, weights: Weights, dilation: int, dtype: torch.dtype = torch.float32) -> None:
        """weights: alpha [C] of the first snake, first.kernel, first.bias, second.kernel, second.bias: see `snake`."""
        self._alpha = weights("alpha")
        filters = of_filters(dtype) if weights.form == "winograd" else dtype
        self._first = Convolution(
            weights.kernel("first.kernel"), weights("first.bias"), dilation=dilation, dtype=filters, form=weights.form
        )
        second, bias = weights.kernel("second.kernel"), weights("second.bias")
        mixing = mix(second, bias, dtype, weights.form) if self._first.is_minimal else None
        self._second = mixing or Convolution(second, bias, dtype=dtype, form=weights.form)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        batch, rows, _ = x.shape
        buffer, new = self._first.room(batch, rows, state)
        snake(x, self._alpha, new)
        if isinstance(self._second, kernels.Mix):
            x = x.contiguous()
            self._first.residual(buffer, state, self._second, x)
            return x
        hidden, whole = self._second.room(batch, rows, state, "hidden")
        self._first.run_snaked(buffer, state, whole)
        return x.add_(self._second.run(hidden, state))


class ConvNeXt:
    """x + W2 gelu(W1 norm(depthwise(x))) for [B, rows, C]."""

    def __init__(self, weights: Weights, eps: float) -> None:
        """weights: depth.{kernel,bias}, {norm,expand,contract}.{weight,bias}; gamma is folded into the last."""
        depth = weights("depth.kernel")
        self._depth = Convolution(depth, weights("depth.bias"), groups=len(depth))
        self._norm = weights("norm.weight"), weights("norm.bias"), eps
        self._expand, self._contract = (
            _linear(weights, f"{n}.weight", weights(f"{n}.bias")) for n in ("expand", "contract")
        )

    def __call__(self, x: Tensor, state: State) -> Tensor:
        scale, shift, eps = self._norm
        hidden = functional.layer_norm(self._depth(x, state), (x.shape[2],), scale, shift, eps)
        return x + self._contract(functional.gelu(self._expand(hidden)))


class _Layer(NamedTuple):
    attention_norm: Tensor
    ffn_norm: Tensor
    qkv: Convolve
    out: Convolve
    gate_up: Convolve
    down: Convolve


class Transformer:
    """Causal attention over the last `window` rows (None: all), SwiGLU, RMS norms, for [B, rows, C].

    Rotary positions come from a table, so that a codec which rounds its table is followed exactly.
    """

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        """config: layers, heads, kv_heads, head_dim, window, eps; input, output: whether there are these projections.

        weights: rotations [positions, head_dim / 2, 2], norm, and of each layer attention_norm, qkv, out, ffn_norm,
        gate_up, down.
        """
        self.window = config["window"]
        self._heads, self._kv_heads, self._head_dim = config["heads"], config["kv_heads"], config["head_dim"]
        self._eps = config["eps"]
        self._rotations, self._norm = weights("rotations"), weights("norm")
        self._ends = tuple(
            _linear(weights, f"{end}.weight", weights(f"{end}.bias")) if config[end] else None
            for end in ("input", "output")
        )
        self._layers = [
            _Layer(
                weights(f"{i}.attention_norm"),
                weights(f"{i}.ffn_norm"),
                *(_linear(weights, f"{i}.{n}", None) for n in ("qkv", "out", "gate_up", "down")),
            )
            for i in range(config["layers"])
        ]

    def __call__(self, x: Tensor, state: State) -> Tensor:
        rows = x.shape[1]
        start, caches = state.get(id(self), (0, [None] * len(self._layers)))
        rotations = self._rotations[start : start + rows]
        if len(rotations) < rows:
            raise ValueError(f"position {start + rows} is beyond the {len(self._rotations)} this codec has")
        kept = 0 if caches[0] is None else caches[0].shape[3]
        mask = self._mask(rows, kept)
        if self._ends[0] is not None:
            x = self._ends[0](x)
        after = []
        for layer, cache in zip(self._layers, caches, strict=True):
            attended, cache = self._attend(layer, self._normal(x, layer.attention_norm), rotations, mask, cache)
            after.append(cache)
            x = x + layer.out(attended)
            gate, up = layer.gate_up(self._normal(x, layer.ffn_norm)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        state[id(self)] = start + rows, after
        x = self._normal(x, self._norm)
        return x if self._ends[1] is None else self._ends[1](x)

    def _mask(self, rows: int, kept: int) -> Tensor:
        """[rows, kept + rows]: which of the kept and the new rows each new row attends to."""
        distance = torch.arange(kept, kept + rows)[:, None] - torch.arange(kept + rows)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def _attend(
        self, layer: _Layer, x: Tensor, rotations: Tensor, mask: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch, rows, _ = x.shape
        size, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        q, k, v = layer.qkv(x).split([size, kv, kv], dim=-1)
        q, k, v = (each.view(batch, rows, -1, self._head_dim).transpose(1, 2) for each in (q, k, v))
        both = torch.stack((_rotated(k, rotations), v))  # [2, B, heads, rows, head_dim]
        both = both if cache is None else torch.cat((cache, both), dim=3)
        k, v = (each.repeat_interleave(self._heads // self._kv_heads, dim=1) for each in both)
        y = functional.scaled_dot_product_attention(_rotated(q, rotations), k, v, attn_mask=mask)
        keep = both.shape[3] if self.window is None else min(both.shape[3], self.window - 1)
        kept = both[:, :, :, both.shape[3] - keep :].clone()
        return y.transpose(1, 2).reshape(batch, rows, size), kept

    def _normal(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self._eps) * weight


def _linear(weights: Weights, name: str, bias: Tensor | None) -> Convolve:
    """[B, rows, in] -> [B, rows, out]: a convolution of one tap."""
    weight = weights.kernel(name)
    out, into = weight.shape
    return convolver(Kernel((out, 1, into), lambda: weight.read()[:, None]), bias, form=weights.form)


def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """Neighbouring values of [B, heads, rows, head_dim] as pairs, rotated by [rows, head_dim / 2, 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = rotations[..., 0], rotations[..., 1]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(3)


@contextlib.contextmanager
def plainly(name: str) -> Iterator[None]:
    """In float32 and without gradients, whatever the caller's modes; raises PyTorch's errors as SessionError."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    except (RuntimeError, ValueError, KeyError, IndexError, OSError, SafetensorError) as error:
        raise SessionError(f"the {name}'s PyTorch rewrite failed: {error}") from error


def leasing_cores(work: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`work` that runs under a core lease."""

    def run(x: Tensor) -> Tensor:
        with CORES.lease("codec", torch_threads()):
            return work(x)

    return run


def in_tiles(x: Tensor, rows: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` over tiles of [B, rows, C] one after the other, joined: a tile stays in the processor's cache."""
    tiles = [run(tile) for tile in x.split(max(1, rows), dim=1)]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
