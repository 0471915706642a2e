"""The weights of transposed convolutions as those of convolutions, for export."""

from __future__ import annotations

import numpy as np

__all__ = ["polyphase"]


def polyphase(weight: np.ndarray, bias: np.ndarray | None, stride: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A transposed convolution's [in, out, taps] as a convolution's [stride * out, in, ceil(taps / stride)].

    y[s n + r] = sum_j x[n - j] W[:, :, s j + r]. Its output [B, rows, stride * out] holds, for each row, its
    `stride` output rows in order: viewed as [B, stride * rows, out] it is the transposed convolution, cut at the right.
    """
    channels_in, channels_out, kernel = weight.shape
    taps = -(-kernel // stride)
    padded = np.pad(weight, ((0, 0), (0, 0), (0, taps * stride - kernel)))
    phases = padded.reshape(channels_in, channels_out, taps, stride)[:, :, ::-1].transpose(3, 1, 0, 2)
    plain = np.ascontiguousarray(phases.reshape(stride * channels_out, channels_in, taps))
    return plain, None if bias is None else np.tile(bias, stride)
