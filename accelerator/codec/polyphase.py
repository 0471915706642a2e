"""The weights of transposed convolutions as those of convolutions, for export."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["polyphase"]


def polyphase(weight: Tensor, bias: Tensor | None, stride: int) -> tuple[Tensor, Tensor | None]:
    """A transposed convolution's [in, out, taps] as a convolution's [stride * out, in, ceil(taps / stride)].

    y[s n + r] = sum_j x[n - j] W[:, :, s j + r]. Its output [B, rows, stride * out] holds, for each row, its
    `stride` output rows in order: viewed as [B, stride * rows, out] it is the transposed convolution, cut at the right.
    """
    channels_in, channels_out, kernel = weight.shape
    taps = -(-kernel // stride)
    padded = functional.pad(weight, (0, taps * stride - kernel))
    phases = padded.view(channels_in, channels_out, taps, stride).flip(2).permute(3, 1, 0, 2)
    return phases.reshape(stride * channels_out, channels_in, taps), None if bias is None else bias.repeat(stride)
