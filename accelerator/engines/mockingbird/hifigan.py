"""HiFi-GAN by compiled chains of convolutions and by oneDNN: its weights as `parts.vits_decoder`, without a flow.

What it is, its layers say: one whose `forward` does anything else with them does not pass the proof.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from ...codec.polyphase import polyphase
from ...parts import vits_decoder
from ...parts.part import Backend, Call
from ...parts.vits_decoder import WINDOW, Weights
from ...runtime.options import RunOptions
from . import examples
from .reach import reach
from .traceable import Vocoder, answer

__all__ = ["backends", "is_plain", "padded", "weights"]

_SLOPE = 0.1  # of all leaky rectifiers but the last one
_CHANNELS = 32  # are multiplied at once: a spectrogram gets noughts up to a multiple


def is_plain(generator: Any) -> bool:
    """Whether there is nothing but HiFi-GAN's layers. Fre-GAN has more, and the 24 kHz one repeats frames."""
    return (
        {name for name, _ in generator.named_children()} == {"conv_pre", "ups", "resblocks", "conv_post"}
        and reach(generator) is not None
        and all(isinstance(up, nn.ConvTranspose1d) and _is_whole(up) for up in generator.ups)
        and all(getattr(module, "groups", 1) == 1 for module in generator.modules())
        and _dilations(generator) is not None
    )


def backends(generator: Any, identity: Callable[[], str], config: Mapping[str, Any]) -> tuple[Backend, ...]:
    """Mel spectrogram float32 [1, 80, F] -> audio [1, F * hop]; none for what is not plain HiFi-GAN.

    identity, config: as for `parts.traced`.
    """
    if not is_plain(generator):
        return ()
    made = vits_decoder.backends(
        functools.partial(weights, generator),
        identity,
        config,
        functools.partial(_examples, generator),
    )
    return tuple(replace(each, load=functools.partial(_load, each.load)) for each in made)


def weights(generator: Any) -> Weights:
    """Of a plain HiFi-GAN, which stays as it is; weight norm may have been removed from it or not."""
    tensors: dict[str, np.ndarray] = {}
    config: dict[str, Any] = {"slope": _SLOPE, "flows": [], "ups": [], "blocks": _dilations(generator)}

    def put(name: str, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        tensors[f"{name}.kernel"] = kernel.swapaxes(1, 2)
        if bias is not None:
            tensors[f"{name}.bias"] = bias

    kernel, bias = _of(generator.conv_pre)
    put("first", padded(kernel), bias)
    put("last", *_of(generator.conv_post))
    for i, up in enumerate(generator.ups):
        rate = int(up.stride[0])
        put(f"ups.{i}", *polyphase(*_of(up), rate))
        config["ups"].append([rate, int(up.padding[0])])
        for j, block in enumerate(_stage(generator, i)):
            for k, step in enumerate(_steps(block)):
                for name, conv in zip(("first", "second"), step, strict=False):
                    put(f"blocks.{i}.{j}.{k}.{name}", *_of(conv))
    return tensors, config


def padded(mel: np.ndarray) -> np.ndarray:
    """float32 [n, mels, F], with noughts behind the second axis."""
    return np.pad(mel, ((0, 0), (0, -mel.shape[1] % _CHANNELS), (0, 0)))


def _load(load: Any, paths: Mapping[str, Path], options: RunOptions) -> Call:
    call = load(paths, options)
    return lambda mel: call(padded(mel))


def _examples(generator: Any) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Short ones, and one that is spoken by windows."""
    module, mels = Vocoder(generator), int(generator.conv_pre.in_channels)
    for length in (37, 9, WINDOW + 40):
        mel = examples.mel(length, mels)[None]
        yield (padded(mel),), answer(module, mel)[0]


def _is_whole(up: Any) -> bool:
    """Whether a transposed convolution's answer is as many times as long as it strides."""
    (size,), (stride,), (pad,), (more,) = up.kernel_size, up.stride, up.padding, up.output_padding
    return bool(up.dilation[0] == 1 and size - stride - 2 * pad + more == 0)


def _stage(generator: Any, i: int) -> Any:
    """The residual blocks behind the i-th transposed convolution."""
    count = len(generator.resblocks) // len(generator.ups)
    return generator.resblocks[i * count : (i + 1) * count]


def _steps(block: Any) -> list[tuple[Any, ...]]:
    """A residual block's convolutions, step by step: two of a ResBlock1, one of a ResBlock2."""
    if hasattr(block, "convs1"):
        return list(zip(block.convs1, block.convs2, strict=True))
    return [(conv,) for conv in block.convs]


def _dilations(generator: Any) -> list[list[int]] | None:
    """Of each block's steps, which is the same in all stages; None where it is not."""
    try:
        found = [
            [[int(step[0].dilation[0]) for step in _steps(block)] for block in _stage(generator, i)]
            for i in range(len(generator.ups))
        ]
    except AttributeError:  # other blocks
        return None
    second = [conv.dilation[0] for block in generator.resblocks for step in _steps(block) for conv in step[1:]]
    return found[0] if all(each == found[0] for each in found) and set(second) <= {1} else None


def _of(conv: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Its weight, and its bias if it has one."""
    weight = conv.weight
    for hook in conv._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):  # what `weight` holds is of the last call
            weight = hook.compute_weight(conv)
    return _array(weight), None if conv.bias is None else _array(conv.bias)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().float().numpy())
