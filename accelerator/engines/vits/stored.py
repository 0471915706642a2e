"""What is stored of VITS's decoder for its PyTorch rewrite: one file of weights. What reads it is in `rewrite`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...codec.polyphase import polyphase
from ...export.component import Progress, ProgressEvent

__all__ = ["FILE", "build", "save"]

FILE = "rewrite.safetensors"


def build(model: Callable[[], Any]) -> Callable[[Path, str, Progress], None]:
    """Writes the file."""

    def write(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent("decoder-rewrite", "build", 0, 1, precision))
        save(model(), directory / FILE)

    return write


def save(model: Any, path: Path) -> None:
    """Write a VitsModel's decoder, from the copy that `traceable.exportable` makes."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {"slope": model.config.leaky_relu_slope, "flows": [], "ups": []}

    def put(name: str, conv: Any) -> None:
        tensors[f"{name}.kernel"] = conv.weight.transpose(1, 2)
        if conv.bias is not None:
            tensors[f"{name}.bias"] = conv.bias

    for i, flow in enumerate(reversed(model.flow.flows)):
        name, net = f"flows.{i}", flow.wavenet
        put(f"{name}.pre", flow.conv_pre)
        put(f"{name}.post", flow.conv_post)
        for j, (inner, onward) in enumerate(zip(net.in_layers, net.res_skip_layers, strict=True)):
            put(f"{name}.in.{j}", inner)
            put(f"{name}.out.{j}", onward)
        if hasattr(net, "cond_layer"):
            tensors[f"{name}.condition"] = net.cond_layer.weight[:, :, 0]
        config["flows"].append([int(inner.dilation[0]) for inner in net.in_layers])
    voice = model.decoder
    put("first", voice.conv_pre)
    put("last", voice.conv_post)
    if hasattr(voice, "cond"):
        tensors["condition"] = voice.cond.weight[:, :, 0]
    frames, rate = 3.0, 1  # on either side: of the first convolution, and so on
    for i, up in enumerate(voice.upsampler):
        tensors[f"ups.{i}.kernel"], bias = polyphase(up.weight, up.bias, int(up.stride[0]))
        tensors[f"ups.{i}.kernel"] = tensors[f"ups.{i}.kernel"].transpose(1, 2)
        if bias is not None:
            tensors[f"ups.{i}.bias"] = bias
        config["ups"].append([int(up.stride[0]), int(up.padding[0])])
        frames += -(-int(up.kernel_size[0]) // int(up.stride[0])) / rate
        rate *= int(up.stride[0])
        blocks = voice.resblocks[i * voice.num_kernels : (i + 1) * voice.num_kernels]
        config["blocks"] = [[int(conv.dilation[0]) for conv in block.convs1] for block in blocks]
        widest = 0
        for j, block in enumerate(blocks):
            for k, (first, second) in enumerate(zip(block.convs1, block.convs2, strict=True)):
                put(f"blocks.{i}.{j}.{k}.first", first)
                put(f"blocks.{i}.{j}.{k}.second", second)
            both = (*block.convs1, *block.convs2)
            widest = max(widest, sum((int(c.kernel_size[0]) - 1) * int(c.dilation[0]) // 2 for c in both))
        frames += widest / rate
    config["context"] = int(frames + 3 / rate) + 2
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, str(path), metadata={"config": json.dumps(config)})
