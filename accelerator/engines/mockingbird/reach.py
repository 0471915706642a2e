"""How far a vocoder looks: the frames to both sides of a frame that its audio depends on."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from torch import nn

__all__ = ["reach"]

_CONVS = (nn.Conv1d, nn.ConvTranspose1d)  # within which a weight norm may be a module


def reach(generator: Any) -> int | None:
    """Of HiFi-GAN or Fre-GAN, in frames; None where that is not known.

    Residual blocks of a stage lie side by side, and the farthest counts; all else follows one another. Fre-GAN's other
    paths, of spectrograms that join at later stages and of outputs that are added up, look less far than this one.
    """
    convs = [module for module in generator.modules() if isinstance(module, nn.Conv1d)]
    if not all(_is_centred(conv) for conv in convs):
        return None
    frames, rate = _half(generator.conv_pre), 1
    for i, up in enumerate(generator.ups):
        layers = [each for each in up.modules() if isinstance(each, _CONVS) or hasattr(each, "scale_factor")]
        first, last = layers[0], layers[-1]
        if isinstance(last, nn.ConvTranspose1d):
            frames += Fraction(last.kernel_size[0], last.stride[0] * rate)
            rate *= last.stride[0]
        elif hasattr(first, "scale_factor"):  # repeats, and then a convolution
            rate *= int(first.scale_factor)
            frames += _half(last) / rate
        else:
            return None
        count = generator.num_kernels
        blocks = generator.resblocks[i * count : (i + 1) * count]
        frames += max(map(_longest, blocks)) / rate
    return math.ceil(frames + _half(generator.conv_post) / rate)


def _longest(block: nn.Module) -> Fraction:
    """Of convolutions that follow one another."""
    return sum((_half(each) for each in block.modules() if isinstance(each, nn.Conv1d)), Fraction(0))


def _half(conv: Any) -> Fraction:
    return Fraction(conv.dilation[0] * (conv.kernel_size[0] - 1), 2)


def _is_centred(conv: nn.Conv1d) -> bool:
    return conv.stride[0] == 1 and conv.padding_mode == "zeros" and conv.padding[0] == _half(conv)
