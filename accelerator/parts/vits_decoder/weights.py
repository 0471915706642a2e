"""The weights of VITS's decoder, the flow and HiFi-GAN, as all of its backends read them, and windows of frames.

Whoever has such a decoder hands over its weights under these names, convolutions as <name>.kernel [out, taps, in] and
<name>.bias [out], all float32:

    flows.<i>.{pre,post,in.<j>,out.<j>}     the coupling layers, in the order in which they are undone, with WaveNet's
    first, last                             HiFi-GAN's ends
    ups.<i>                                 its transposed convolutions, made plain by `codec.polyphase`
    blocks.<i>.<j>.<k>.{first,second}       behind the i-th: the k-th step of the j-th block; a ResBlock2 has no second
    condition, flows.<i>.condition          [out, E + 1]: what is added for a speaker, if there are several

and beside them slope (of the leaky rectifiers), flows (dilations of each), ups ([rate, padding] of each), blocks
(dilations of each). Source: HiFi-GAN (Kong et al. 2020, arXiv:2010.05646).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..hifi_gan import Steps
from ..weight_file import Weights

__all__ = ["WINDOW", "Examples", "Window", "blocks_of", "context_of", "reach", "windows"]

Examples = Callable[[], Iterator[tuple[tuple[Any, ...], np.ndarray]]]
"""Yields (inputs of the decoder, the engine's own answer): of lengths short and long."""

WINDOW = 512  # frames at once: what is longer is spoken by windows that overlap


class Window(NamedTuple):
    """Frames `first` .. `stop` are computed, and of their audio that of `start` .. `end` is wanted."""

    first: int
    stop: int
    start: int
    end: int


def windows(length: int, context: int) -> Iterator[Window]:
    """All frames, in windows of at most WINDOW; each gives what its context suffices for."""
    if length <= WINDOW:
        yield Window(0, length, 0, length)
        return
    step = WINDOW - 2 * context
    for start in range(0, length, step):
        first = max(0, start - context)
        yield Window(first, min(first + WINDOW, length), start, min(start + step, length))


def blocks_of(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> list[list[Steps]]:
    """The residual blocks behind each of the transposed convolutions."""
    return [
        [[_step(tensors, i, j, k, d) for k, d in enumerate(dilations)] for j, dilations in enumerate(config["blocks"])]
        for i in range(len(config["ups"]))
    ]


def _step(tensors: Mapping[str, Any], i: int, j: int, k: int, dilation: int) -> list[tuple[str, int]]:
    """The names and dilations of a residual step's convolutions: two, or one where the block is a ResBlock2."""
    name = f"blocks.{i}.{j}.{k}"
    both = [(f"{name}.first", dilation), (f"{name}.second", 1)]
    return [each for each in both if f"{each[0]}.kernel" in tensors]


def context_of(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Frames on either side that HiFi-GAN's answer to a frame depends on, at most."""

    def reach(name: str, dilation: int) -> int:
        return int((tensors[f"{name}.kernel"].shape[1] - 1) * dilation // 2)

    frames, rate = float(reach("first", 1)), 1
    for i, (own, _) in enumerate(config["ups"]):
        frames += tensors[f"ups.{i}.kernel"].shape[1] / rate
        rate *= own
        widest = max(
            sum(reach(*each) for k, d in enumerate(dilations) for each in _step(tensors, i, j, k, d))
            for j, dilations in enumerate(config["blocks"])
        )
        frames += widest / rate
    return int(frames + reach("last", 1) / rate) + 2


def reach(weights: Weights) -> int:
    """Frames on either side that the decoder's answer to a frame depends on, at most. Of weights only shapes count."""
    tensors, config = weights
    flow = sum(
        int((tensors[f"flows.{i}.in.{j}.kernel"].shape[1] - 1) * dilation // 2)
        for i, dilations in enumerate(config["flows"])
        for j, dilation in enumerate(dilations)
    )
    return flow + context_of(tensors, config)
