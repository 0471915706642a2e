"""The weights of a VitsModel's decoder under the names of `parts.vits_decoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...codec.polyphase import polyphase
from ...parts.vits_decoder import Weights

__all__ = ["weights"]


def weights(made: Callable[[], Any]) -> Weights:
    """made: the copy of the model that `traceable.exportable` makes."""
    model = made()
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
    for i, up in enumerate(voice.upsampler):
        tensors[f"ups.{i}.kernel"], bias = polyphase(up.weight, up.bias, int(up.stride[0]))
        tensors[f"ups.{i}.kernel"] = tensors[f"ups.{i}.kernel"].transpose(1, 2)
        if bias is not None:
            tensors[f"ups.{i}.bias"] = bias
        config["ups"].append([int(up.stride[0]), int(up.padding[0])])
        blocks = voice.resblocks[i * voice.num_kernels : (i + 1) * voice.num_kernels]
        config["blocks"] = [[int(conv.dilation[0]) for conv in block.convs1] for block in blocks]
        for j, block in enumerate(blocks):
            for k, (first, second) in enumerate(zip(block.convs1, block.convs2, strict=True)):
                put(f"blocks.{i}.{j}.{k}.first", first)
                put(f"blocks.{i}.{j}.{k}.second", second)
    return tensors, config
