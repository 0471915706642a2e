"""The codec's two directions as modules that can be traced: every length is dynamic, weight norm is folded.

They are made of the engine's own submodules on a replica of the codec. What decides on lengths in Python there
(padding, cropping) is replaced by arithmetic that a graph can hold; the engine's codec is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from ...errors import UnsupportedEngine
from .structure import computing, replica

__all__ = ["Decode", "Encode", "decode_context", "direction"]

_ROPE_POSITIONS = 16384  # rows kept of a codec transformer's table: 12 minutes of frames, 190 s of the encoder's


class _CausalConv(nn.Module):
    """A convolution padded on the left only: lengths are multiples of the stride, so the right needs nothing."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        conv = layer.conv
        self.weight = nn.Parameter(conv.weight.detach().float(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().float(), requires_grad=False)
        self.left = int(layer.padding)
        self.stride, self.dilation, self.groups = conv.stride, conv.dilation, conv.groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (self.left, 0)) if self.left else x
        return functional.conv1d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class _CausalTransposedConv(nn.Module):
    """A transposed convolution whose surplus is cut off on the right."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        conv = layer.conv
        self.weight = nn.Parameter(conv.weight.detach().float(), requires_grad=False)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().float(), requires_grad=False)
        self.surplus = int(layer.kernel_size) - int(layer.stride)
        self.stride, self.dilation = conv.stride, conv.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.conv_transpose1d(x, self.weight, self.bias, self.stride, 0, 0, 1, self.dilation)
        return x[..., : -self.surplus] if self.surplus else x


def _projection(layer: Any) -> nn.Conv1d:
    """A 1x1 convolution without its weight norm (the old kind, whose `weight` may be out of date)."""
    with torch.no_grad():
        conv = nn.Conv1d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None)
        conv.weight.copy_(torch._weight_norm(layer.weight_v, layer.weight_g, 0))
        if layer.bias is not None:
            conv.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return conv


def _tensor(tensor: torch.Tensor) -> torch.Tensor:
    """For `replica`: the same tensor as constant float32; no masks, which the forward passes make anew."""
    if tensor.dtype == torch.bool:
        return torch.zeros(1, dtype=torch.bool)
    value = tensor.detach()
    if value.dtype == torch.bfloat16 and value.ndim == 3:  # a table of rotations, which stays rounded to bfloat16
        value = value[:_ROPE_POSITIONS]
    value = value.float() if value.is_floating_point() else value
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _traceable(part: nn.Module) -> Any:
    replaced: list[tuple[nn.Module, nn.Module]] = []
    for module in part.modules():
        kind = type(module).__name__
        if kind == "CausalConvNet":
            replaced.append((module, _CausalConv(module)))
        elif kind == "CausalTransConvNet":
            replaced.append((module, _CausalTransposedConv(module)))
        elif isinstance(module, nn.Conv1d) and hasattr(module, "weight_g"):
            replaced.append((module, _projection(module)))
    traceable = replica(part, _tensor, replaced=replaced)
    for module in traceable.modules():
        if type(module).__name__ == "LayerScale":
            module.inplace = False
    return traceable.eval()


def decode_context(codec: Any) -> int:
    """Frames before a window that its audio depends on, from the decoder's layers; the codec may be without weights.

    `decode(codes[:, start - context : end])[context * hop :]` is then what the whole would be there, but for the table
    of rotations, which the codec rounds to bfloat16 by absolute position: a difference of up to 1e-4 was seen. Nearly
    all of the context is the quantizer's transformer, which sees `window - 1` frames back in each layer; how much of
    that matters depends on the weights (random ones: 300 frames for 1e-4). A `rewrite.Stream` needs none of it.
    """
    rows = 0  # of the current rate, before the window; from the audio back to the frames
    for layer in reversed(list(_decoding_layers(codec))):
        kind = type(layer).__name__
        if kind == "CausalTransConvNet":
            rows = -(-rows // int(layer.stride)) + -(-int(layer.kernel_size) // int(layer.stride)) - 1
        elif kind == "CausalConvNet":
            rows = rows * int(layer.stride) + int(layer.kernel_size) - int(layer.stride)
        else:
            rows += len(layer.layers) * (int(layer.window_size) - 1)
    return rows


def _decoding_layers(codec: Any) -> Iterator[Any]:
    """The layers of a decode that see more than one step, in order. Raises UnsupportedEngine if one sees all steps."""
    quantizer = codec.quantizer
    if type(quantizer.post_module).__name__ != "Identity":
        if quantizer.post_module.window_size is None:
            raise UnsupportedEngine("this codec's transformer looks back without limit: it cannot decode by windows")
        yield quantizer.post_module
    for part in (quantizer.upsample, codec.decoder):
        yield from (m for m in part.modules() if type(m).__name__ in ("CausalConvNet", "CausalTransConvNet"))


class Encode(nn.Module):
    """Audio float32 [B, frames, samples of a frame] -> codes int64 [B, C, frames]."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        quantizer = codec.quantizer
        self.encoder = _traceable(codec.encoder)
        self.downsample = _traceable(quantizer.downsample)
        self.pre_module = _traceable(quantizer.pre_module)
        both = (*quantizer.semantic_quantizer.quantizers, *quantizer.quantizer.quantizers)
        self.quantizers = nn.ModuleList(_traceable(each) for each in both)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        z = self.encoder(audio.flatten(1)[:, None])
        residual = self.pre_module(self.downsample(z))  # [B, D, frames]
        codes = []
        for quantize in self.quantizers:
            quantized, _, _, indices, _ = quantize(residual)
            residual = residual - quantized
            codes.append(indices)
        return torch.stack(codes, dim=1)


class Decode(nn.Module):
    """Codes int64 [B, C, frames] -> audio float32 [B, samples]."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        quantizer = codec.quantizer
        self.semantic = _traceable(quantizer.semantic_quantizer)
        self.residual = _traceable(quantizer.quantizer)
        self.post_module = _traceable(quantizer.post_module)
        self.upsample = _traceable(quantizer.upsample)
        self.decoder = _traceable(codec.decoder)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        semantic = codes[:, :1].clamp(max=self.semantic.codebook_size - 1)
        residual = codes[:, 1:].clamp(max=self.residual.codebook_size - 1)
        z = self.semantic.from_codes(semantic)[0] + self.residual.from_codes(residual)[0]
        return self.decoder(self.upsample(self.post_module(z)))[:, 0]


def direction(part: Literal["encoder", "decoder"], codec: Callable[[], Any]) -> Encode | Decode:
    """One direction of a codec, to be traced or stored."""
    with computing():
        return Decode(codec()) if part == "decoder" else Encode(codec())
