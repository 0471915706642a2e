"""What is stored of the codec for its PyTorch rewrite: one file of weights for each direction.

Weights are float32, weight norm folded, and transposed convolutions are convolutions. What reads it is in `rewrite`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...codec.polyphase import polyphase
from ...export.component import Progress, ProgressEvent
from .codec import Decode, Encode
from .structure import computing

__all__ = ["FILE", "build", "save_decoder", "save_encoder"]

FILE = "rewrite.safetensors"
_EPS = 1e-6  # of the layer norms
_TINY = 1e-9  # what Snake adds to its factor before it divides


def build(part: Literal["encoder", "decoder"], codec: Callable[[], Any]) -> Callable[[Path, str, Progress], None]:
    """Writes one direction's file."""

    def write(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(f"{part}-rewrite", "build", 0, 1, precision))
        with computing():
            (save_decoder if part == "decoder" else save_encoder)(codec(), directory / FILE)

    return write


def save_decoder(codec: Any, path: Path) -> None:
    """Write a codec's decoder. Raises AttributeError or ValueError for a codec that is built otherwise."""
    parts, file = Decode(codec), _File()
    books = (*parts.semantic.quantizers, *parts.residual.quantizers)
    file.tensors["books"] = torch.cat([book.codebook.weight for book in books])
    file.tensors["projection.weight"] = torch.cat([book.out_proj.weight[:, :, 0] for book in books], dim=1)
    file.tensors["projection.bias"] = torch.stack([book.out_proj.bias for book in books]).sum(0)
    config: dict[str, Any] = {"sizes": [len(book.codebook.weight) for book in books], "eps": _EPS, "rates": []}
    config["post"] = file.transformer("post", parts.post_module)
    for i, (conv, block) in enumerate(parts.upsample):
        file.upsampling(f"up.{i}.conv", conv)
        file.convnext(f"up.{i}", block)
    config["up"] = [int(conv.stride[0]) for conv, _ in parts.upsample]
    first, *stages, last_snake, last, tanh = parts.decoder.model
    if type(tanh).__name__ != "Tanh":
        raise ValueError(f"the decoder ends in {type(tanh).__name__}")
    file.convolution("first", first)
    for i, stage in enumerate(stages):
        before, up, *units = stage.block
        file.upsampling(f"stages.{i}", up, before)
        config["rates"].append(int(up.stride[0]))
        config["dilations"] = file.units(f"stages.{i}.units", units)
    file.convolution("last", last, last_snake)
    file.save(path, config)


def save_encoder(codec: Any, path: Path) -> None:
    """Write a codec's encoder. Raises AttributeError or ValueError for a codec that is built otherwise."""
    parts, file = Encode(codec), _File()
    config: dict[str, Any] = {"hop": int(codec.frame_length), "eps": _EPS, "rates": [], "transformers": []}
    first, *stages, last_snake, last = parts.encoder.block
    file.convolution("first", first)
    for i, stage in enumerate(stages):
        *units, before, down, transformer = stage.block
        config["dilations"] = file.units(f"stages.{i}.units", units)
        file.convolution(f"stages.{i}", down, before)
        config["rates"].append(int(down.stride[0]))
        config["transformers"].append(file.transformer(f"stages.{i}.transformer", transformer))
    file.convolution("last", last, last_snake)
    for i, (conv, block) in enumerate(parts.downsample):
        file.convolution(f"down.{i}.conv", conv)
        file.convnext(f"down.{i}", block)
    config["down"] = [int(conv.stride[0]) for conv, _ in parts.downsample]
    config["pre"] = file.transformer("pre", parts.pre_module)
    for i, book in enumerate(cast(Any, parts.quantizers)):
        for name, conv in (("inward", book.in_proj), ("outward", book.out_proj)):
            file.linear(f"books.{i}.{name}", conv.weight[:, :, 0], conv.bias)
        file.tensors[f"books.{i}.codebook"] = book.codebook.weight
    config["books"] = len(parts.quantizers)
    file.save(path, config)


class _File:
    """Tensors by name, in the forms that `codec.layers` takes."""

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
        if block.norm.eps != _EPS or block.gamma is None:
            raise ValueError("a ConvNeXt block of another kind")
        self.convolution(f"{name}.depth", block.dwconv)
        self.linear(f"{name}.norm", block.norm.weight, block.norm.bias)
        self.linear(f"{name}.expand", block.pwconv1.weight, block.pwconv1.bias)
        gamma = block.gamma
        self.linear(f"{name}.contract", block.pwconv2.weight * gamma[:, None], block.pwconv2.bias * gamma)

    def transformer(self, name: str, module: Any) -> dict[str, Any] | None:
        """A transformer limited to a window, its layer scales folded; None for no transformer at all."""
        kind = type(module).__name__
        if kind == "Identity":
            return None
        look_ahead, config = type(module.look_ahead_conv).__name__, module.config
        if kind != "WindowLimitedTransformer" or not module.causal or look_ahead != "Identity":
            raise ValueError(f"a transformer of another kind: {kind}, look-ahead {look_ahead}")
        if config.pos_embed_type != "rope" or not module.channels_first:
            raise ValueError(f"a transformer with {config.pos_embed_type} positions")
        ends = {"input": module.input_proj, "output": module.output_proj}
        for end, layer in ends.items():
            if hasattr(layer, "weight"):
                self.linear(f"{name}.{end}", layer.weight, layer.bias)
        for i, layer in enumerate(module.layers):
            scales = layer.attention_layer_scale.gamma, layer.ffn_layer_scale.gamma
            ffn = layer.feed_forward
            self.tensors[f"{name}.{i}.attention_norm"] = layer.attention_norm.weight
            self.tensors[f"{name}.{i}.qkv"] = layer.attention.wqkv.weight
            self.tensors[f"{name}.{i}.out"] = layer.attention.wo.weight * scales[0][:, None]
            self.tensors[f"{name}.{i}.ffn_norm"] = layer.ffn_norm.weight
            self.tensors[f"{name}.{i}.gate_up"] = torch.cat((ffn.w1.weight, ffn.w3.weight))
            self.tensors[f"{name}.{i}.down"] = ffn.w2.weight * scales[1][:, None]
        self.tensors[f"{name}.norm"], self.tensors[f"{name}.rotations"] = module.norm.weight, module.freqs_cis
        shape = {"layers": len(module.layers), "heads": config.n_head, "kv_heads": config.n_local_heads}
        more = {"head_dim": config.head_dim, "eps": config.norm_eps, "window": module.window_size}
        return {**shape, **more, **{end: hasattr(layer, "weight") for end, layer in ends.items()}}
