"""Causal layers for codecs in PyTorch, in the form that CPUs run fastest; the left context goes from window to window.

Arrays are [B, rows, channels], rows being time: what oneDNN calls channels last, where its convolutions reach the
processor's peak (PyTorch's own layout for one dimension, [B, channels, time], stays far below). A layer called with a
`State` goes on where its last call ended, so that windows of any length join to what the whole would have been, and
memory does not grow with the length. Layers hold nothing but weights, and may be shared by threads, each with a state.

    Convolution   strided, dilated, depthwise; float32, or bfloat16 products that are summed in float32
    upsampled     a transposed convolution as a convolution: `stride` rows for each, already in order
    Unit          DAC's residual unit: snake, convolution, snake, convolution of one tap
    ConvNeXt      its block; Transformer: attention over the last `window` rows, rotary positions from a table
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ConvNeXt",
    "Convolution",
    "State",
    "Transformer",
    "Unit",
    "in_pieces",
    "named",
    "polyphase",
    "snake",
    "upsampled",
]

State = dict[int, Any]  # by the layer's id: what it must remember of the rows before
Weights = Callable[[str], Tensor]  # by name, float32

FEW = 128  # rows up to which a matrix product is faster than a convolution, which orders its weights at every call
PIECE = 1_600_000  # values of an activation that are worked on at a time: they should stay in a core's own cache


class Convolution:
    """y[t] = b + sum_j W[:, :, j] x[t stride - context + j dilation]; nothing but the past, zeros before the start."""

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
        """kernel: [out, taps, in / groups]. dtype: of inputs, products and the answer; sums are float32."""
        self.dtype, self.stride, self.groups = dtype, stride, groups
        self.channels = kernel.shape[2] * groups
        self._dilation = dilation
        self.context = (kernel.shape[1] - 1) * dilation + 1 - stride  # rows remembered
        self._bias = None if bias is None else bias.to(dtype)
        self._kernel = kernel.to(dtype)[:, None].permute(0, 3, 1, 2)  # [out, in, 1, taps], channels last: no copy

    def room(self, batch: int, rows: int, state: State) -> tuple[Tensor, Tensor]:
        """A buffer [B, context + rows, channels] that begins with what is remembered, and its part for the new rows."""
        buffer = torch.empty(batch, self.context + rows, self.channels, dtype=self.dtype)
        if self.context:
            before = state.get(id(self))
            buffer[:, : self.context] = 0 if before is None else before
        return buffer, buffer[:, self.context :]

    def run(self, buffer: Tensor, state: State) -> Tensor:
        """A filled buffer -> [B, rows / stride, out] in the layer's dtype."""
        batch, length, channels = buffer.shape
        if self.context:
            state[id(self)] = buffer[:, length - self.context :].clone()
        rows = (length - self.context) // self.stride
        if self.groups == channels and self.stride == 1:
            return self._depthwise(buffer, rows)
        if self.groups == 1 and rows <= FEW:
            return self._as_product(buffer, rows)
        x = buffer.view(batch, 1, length, channels).permute(0, 3, 1, 2)  # [B, C, 1, length], channels last
        stride, dilation = (1, self.stride), (1, self._dilation)
        y = functional.conv2d(x, self._kernel, self._bias, stride, 0, dilation, self.groups)
        return y.permute(0, 2, 3, 1)[:, 0]

    def _as_product(self, buffer: Tensor, rows: int) -> Tensor:
        """For few rows, laying the taps side by side costs less than letting oneDNN put the weights in its order."""
        batch, length, channels = buffer.shape
        taps = self._kernel.shape[3]
        strides = (length * channels, self.stride * channels, self._dilation * channels, 1)
        side_by_side = buffer.as_strided((batch, rows, taps, channels), strides, buffer.storage_offset())
        kernel = self._kernel.permute(0, 2, 3, 1).flatten(1)  # [out, taps * channels], without a copy
        return functional.linear(side_by_side.flatten(2), kernel, self._bias)

    def _depthwise(self, buffer: Tensor, rows: int) -> Tensor:
        taps = self._kernel[:, 0, 0].T  # [taps, channels]
        y = buffer[:, :rows] * taps[0]
        for j in range(1, len(taps)):
            y.addcmul_(buffer[:, j * self._dilation : j * self._dilation + rows], taps[j])
        return y if self._bias is None else y.add_(self._bias)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        """[B, rows, channels] -> [B, rows / stride, out] float32; rows must be a multiple of the stride."""
        buffer, new = self.room(x.shape[0], x.shape[1], state)
        new.copy_(x)
        return self.run(buffer, state).float()


def polyphase(weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, Tensor | None]:
    """A transposed convolution's [in, out, taps] as a convolution's [stride * out, in, ceil(taps / stride)].

    y[s n + r] = sum_j x[n - j] W[:, :, s j + r]. Its output [B, rows, stride * out] holds the `stride` rows that follow
    from one row in order: seen as [B, stride * rows, out] it is the transposed convolution, cut off at the right.
    """
    channels_in, channels_out, kernel = weight.shape
    taps = -(-kernel // stride)
    padded = functional.pad(weight, (0, taps * stride - kernel))
    phases = padded.view(channels_in, channels_out, taps, stride).flip(2).permute(3, 1, 0, 2)
    return phases.reshape(stride * channels_out, channels_in, taps), None if bias is None else bias.repeat(stride)


def upsampled(conv: Convolution, x: Tensor, stride: int, state: State) -> Tensor:
    """[B, rows, in] -> [B, stride * rows, out], by a convolution made with `polyphase`."""
    return conv(x, state).reshape(x.shape[0], stride * x.shape[1], -1)


def snake(z: Tensor, out: Tensor) -> Tensor:
    """out = z + sin(z)^2 for z = a x, overwriting z; the rest of Snake, the factor 1 / a, is in the weights behind."""
    squared = torch.sin(z)
    if out.dtype == z.dtype:
        return torch.addcmul(z, squared, squared, out=out)
    return out.copy_(z.addcmul_(squared, squared))


class Unit:
    """x + conv1(snake(conv7(snake(x)))) for float32 [B, rows, C]; x may be overwritten."""

    def __init__(self, weights: Weights, dilation: int, dtype: torch.dtype = torch.float32) -> None:
        """weights: alpha [C] of the first snake, first.kernel, first.bias, second.kernel, second.bias: see `snake`."""
        self._alpha = weights("alpha")
        self._first = Convolution(weights("first.kernel"), weights("first.bias"), dilation=dilation, dtype=dtype)
        self._second = Convolution(weights("second.kernel"), weights("second.bias"), dtype=dtype)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        buffer, new = self._first.room(x.shape[0], x.shape[1], state)
        snake(x * self._alpha, new)
        hidden = self._first.run(buffer, state)
        buffer, new = self._second.room(x.shape[0], x.shape[1], state)
        snake(hidden.float(), new)
        return x.add_(self._second.run(buffer, state))


class ConvNeXt:
    """x + W2 gelu(W1 norm(depthwise(x))) for [B, rows, C]."""

    def __init__(self, weights: Weights, eps: float) -> None:
        """weights: depth.{kernel,bias}, {norm,wide,narrow}.{weight,bias}; gamma is folded into the last."""
        depth = weights("depth.kernel")
        self._depth = Convolution(depth, weights("depth.bias"), groups=len(depth))
        self._norm = weights("norm.weight"), weights("norm.bias"), eps
        self._wide = weights("wide.weight"), weights("wide.bias")
        self._narrow = weights("narrow.weight"), weights("narrow.bias")

    def __call__(self, x: Tensor, state: State) -> Tensor:
        scale, shift, eps = self._norm
        hidden = functional.layer_norm(self._depth(x, state), (x.shape[2],), scale, shift, eps)
        hidden = functional.gelu(functional.linear(hidden, *self._wide))
        return x + functional.linear(hidden, *self._narrow)


class Transformer:
    """Causal attention over the last `window` rows (None: all), SwiGLU, RMS norms, for [B, rows, C].

    Rotations come from a table by position, so that a codec which rounds its table is followed to the letter.
    """

    def __init__(self, weights: Weights, config: Mapping[str, Any]) -> None:
        """config: layers, heads, kv_heads, head_dim, window, eps, and whether there are projections input and output.

        weights: rotations [positions, head_dim / 2, 2], norm, and of each layer attention_norm, qkv, out, ffn_norm,
        gate_up, down.
        """
        self.window = config["window"]
        self._heads, self._kv_heads, self._head_dim = config["heads"], config["kv_heads"], config["head_dim"]
        self._eps = config["eps"]
        self._rotations, self._norm = weights("rotations"), weights("norm")
        self._ends = tuple(
            (weights(f"{end}.weight"), weights(f"{end}.bias")) if config[end] else None for end in ("input", "output")
        )
        names = ("attention_norm", "qkv", "out", "ffn_norm", "gate_up", "down")
        self._layers = [{n: weights(f"{i}.{n}") for n in names} for i in range(config["layers"])]

    def __call__(self, x: Tensor, state: State) -> Tensor:
        rows = x.shape[1]
        start, caches = state.get(id(self), (0, [None] * len(self._layers)))
        rotations = self._rotations[start : start + rows]
        if len(rotations) < rows:
            raise ValueError(f"position {start + rows} is beyond the {len(self._rotations)} this codec has")
        kept = 0 if caches[0] is None else caches[0].shape[3]
        mask = self._mask(rows, kept)
        if self._ends[0] is not None:
            x = functional.linear(x, *self._ends[0])
        after = []
        for layer, cache in zip(self._layers, caches, strict=True):
            attended, cache = self._attend(layer, self._normal(x, layer["attention_norm"]), rotations, mask, cache)
            after.append(cache)
            x = x + functional.linear(attended, layer["out"])
            gate, up = functional.linear(self._normal(x, layer["ffn_norm"]), layer["gate_up"]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        state[id(self)] = start + rows, after
        x = self._normal(x, self._norm)
        return x if self._ends[1] is None else functional.linear(x, *self._ends[1])

    def _mask(self, rows: int, kept: int) -> Tensor:
        """[rows, kept + rows]: which of the remembered and the new rows each new row sees."""
        distance = torch.arange(kept, kept + rows)[:, None] - torch.arange(kept + rows)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def _attend(
        self, layer: Mapping[str, Tensor], x: Tensor, rotations: Tensor, mask: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        batch, rows, _ = x.shape
        size, kv = self._heads * self._head_dim, self._kv_heads * self._head_dim
        q, k, v = functional.linear(x, layer["qkv"]).split([size, kv, kv], dim=-1)
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


def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
    """Neighbouring values of [B, heads, rows, head_dim] as pairs, turned by [rows, head_dim / 2, 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = rotations[..., 0], rotations[..., 1]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(3)


def in_pieces(x: Tensor, rows: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` over pieces of [B, rows, C] one after the other, joined: a piece then stays in the processor's cache."""
    pieces = [run(piece) for piece in x.split(max(1, rows), dim=1)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def named(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    """The tensors whose names begin with `prefix.`, float32."""
    return lambda name: tensors[f"{prefix}.{name}"].float()
