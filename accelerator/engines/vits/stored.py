"""The weights of a VitsModel's decoder under the names of `parts.vits_decoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...codec.polyphase import polyphase
from ...parts.vits_decoder import Weights

__all__ = ["weights"]


def weights(made: Callable[[], Any]) -> Weights:
    """made: the copy of the model that `traceable.exportable` makes."""
    model = made()
    tensors: dict[str, np.ndarray] = {}
    config: dict[str, Any] = {"slope": model.config.leaky_relu_slope, "flows": [], "ups": []}

    def put(name: str, conv: Any) -> None:
        tensors[f"{name}.kernel"] = _array(conv.weight).swapaxes(1, 2)
        if conv.bias is not None:
            tensors[f"{name}.bias"] = _array(conv.bias)

    for i, flow in enumerate(reversed(model.flow.flows)):
        name, net = f"flows.{i}", flow.wavenet
        put(f"{name}.pre", flow.conv_pre)
        put(f"{name}.post", flow.conv_post)
        for j, (inner, onward) in enumerate(zip(net.in_layers, net.res_skip_layers, strict=True)):
            put(f"{name}.in.{j}", inner)
            put(f"{name}.out.{j}", onward)
        if hasattr(net, "cond_layer"):
            tensors[f"{name}.condition"] = _array(net.cond_layer.weight)[:, :, 0]
        config["flows"].append([int(inner.dilation[0]) for inner in net.in_layers])
    voice = model.decoder
    put("first", voice.conv_pre)
    put("last", voice.conv_post)
    if hasattr(voice, "cond"):
        tensors["condition"] = _array(voice.cond.weight)[:, :, 0]
    for i, up in enumerate(voice.upsampler):
        shift = None if up.bias is None else _array(up.bias)
        kernel, bias = polyphase(_array(up.weight), shift, int(up.stride[0]))
        tensors[f"ups.{i}.kernel"] = kernel.swapaxes(1, 2)
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


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().float().numpy())
