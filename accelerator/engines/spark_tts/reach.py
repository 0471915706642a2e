"""How far a semantic code is heard: what a window of audio needs to both sides to be what the whole would be."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from torch import nn

__all__ = ["reach"]


def reach(prenet: Any, decoder: Any) -> int | None:
    """Codes to either side that a code's audio depends on; None where that is not known.

    Each convolution adds half its kernel, in codes: after upsampling by n a sample is the n-th part of one. No two of
    them lie side by side, so that all are added.
    """
    codes, rate = Fraction(0), 1
    for module in prenet.modules():
        if isinstance(module, nn.ConvTranspose1d) or (isinstance(module, nn.Conv1d) and not _is_centred(module)):
            return None
        codes += _half(module) if isinstance(module, nn.Conv1d) else 0
    for module in decoder.modules():
        if isinstance(module, nn.ConvTranspose1d):
            codes += Fraction(module.kernel_size[0], module.stride[0] * rate)
            rate *= module.stride[0]
        elif isinstance(module, nn.Conv1d):
            if not _is_centred(module):
                return None
            codes += _half(module) / rate
    return math.ceil(codes)


def _half(conv: nn.Conv1d) -> Fraction:
    return Fraction(conv.dilation[0] * (conv.kernel_size[0] - 1), 2)


def _is_centred(conv: nn.Conv1d) -> bool:
    return conv.stride[0] == 1 and conv.padding_mode == "zeros" and conv.padding[0] == _half(conv)
