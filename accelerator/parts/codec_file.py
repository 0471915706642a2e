"""What is stored of a codec for its rewrites: tensors by name, in one file, as `codec.layers` and `codec.sliding` want.

Weights are float32, weight norm folded, and transposed convolutions are convolutions. Snake's factors, layer scales and
ConvNeXt's gamma are in the weights around them. The modules are those that codecs after DAC have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..codec.polyphase import polyphase

__all__ = ["EPS", "CodecFile"]

EPS = 1e-6  # of the layer norms
_TINY = 1e-9  # what Snake adds to its factor before it divides


class CodecFile:
    """Raises AttributeError or ValueError for modules that are built otherwise."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def save(self, path: Path, config: Mapping[str, Any]) -> None:
        plain = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors.items()}
        save_file(plain, str(path), metadata={"config": json.dumps(config)})

    def linear(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"] = weight, bias

    def convolution(self, name: str, conv: Any, before: Any = None, scale: Tensor | None = None) -> None:
        """A convolution; `before`: the snake whose second half it takes over; scale: of its outputs."""
        self._kernel(name, conv.weight, conv.bias, before, scale)

    def upsampling(self, name: str, conv: Any, before: Any = None) -> None:
        bias = None if conv.bias is None else conv.bias.detach().numpy()
        phases, repeated = polyphase(conv.weight.detach().numpy(), bias, int(conv.stride[0]))
        shift = None if repeated is None else torch.from_numpy(repeated)
        self._kernel(name, torch.from_numpy(phases), shift, before, None)

    def _kernel(self, name: str, weight: Tensor, bias: Tensor | None, before: Any, scale: Tensor | None) -> None:
        if bias is None:
            raise ValueError(f"{name} has no bias")
        if before is not None:
            alpha = before.alpha.flatten()
            self.tensors[f"{name}.alpha"] = alpha
            weight = weight / (alpha[:, None] + _TINY)
        if scale is not None:
            weight, bias = weight * scale[:, None, None], bias * scale
        self.tensors[f"{name}.kernel"], self.tensors[f"{name}.bias"] = weight.transpose(1, 2), bias

    def decoder(self, layers: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """DAC's decoder: first, stages.<i>, last. Returns the transposed convolutions, and the units' dilations."""
        first, *stages, last_snake, last, tanh = layers
        if type(tanh).__name__ != "Tanh":
            raise ValueError(f"the decoder ends in {type(tanh).__name__}")
        self.convolution("first", first)
        ups, dilations = [], list[int]()
        for i, stage in enumerate(stages):
            before, up, *units = stage.block
            self.upsampling(f"stages.{i}", up, before)
            ups.append(up)
            dilations = self.units(f"stages.{i}.units", units)
        self.convolution("last", last, last_snake)
        return ups, dilations

    def units(self, name: str, units: Any) -> list[int]:
        """The residual units of a stage; returns their dilations."""
        for j, unit in enumerate(units):
            before, first, between, second = unit.block
            self.convolution(f"{name}.{j}.first", first, before, between.alpha.flatten())
            self.convolution(f"{name}.{j}.second", second, between)
            self.tensors[f"{name}.{j}.alpha"] = self.tensors.pop(f"{name}.{j}.first.alpha")
            del self.tensors[f"{name}.{j}.second.alpha"]  # it is in the first convolution's outputs
        return [int(unit.block[1].dilation[0]) for unit in units]

    def convnext(self, name: str, block: Any) -> None:
        """A block; its norm only if that has weights of its own, and does not get them from elsewhere."""
        if block.norm.eps != EPS or block.gamma is None:
            raise ValueError("a ConvNeXt block of another kind")
        self.convolution(f"{name}.depth", block.dwconv)
        if hasattr(block.norm, "weight"):
            self.linear(f"{name}.norm", block.norm.weight, block.norm.bias)
        self.linear(f"{name}.expand", block.pwconv1.weight, block.pwconv1.bias)
        gamma = block.gamma
        self.linear(f"{name}.contract", block.pwconv2.weight * gamma[:, None], block.pwconv2.bias * gamma)
