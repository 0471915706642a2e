"""VITS's decoder in chains of convolutions; PyTorch is not even loaded. See `codec.chain`."""

from __future__ import annotations

import math

import numpy as np

from ..hifi_gan import HifiGan
from ..weight_file import Weights
from .flow import Flow
from .weights import blocks_of, context_of, windows

__all__ = ["Tiled"]


class Tiled:
    """Residual blocks multiply in bfloat16, everything else exactly: see `codec.chain`.

    Latents float32 [1, C, L] and perhaps a speaker [1, E + 1, 1] -> audio float32 [1, L * hop].

    Safe to call from several threads, each with as many of its own as it says.
    """

    def __init__(self, weights: Weights) -> None:
        """Raises SessionError."""
        tensors, config = weights
        self._flow = Flow(tensors, config)
        self._voice = HifiGan(tensors, config, blocks_of(tensors, config), exact=False)
        self._condition, self._context = tensors.get("condition"), context_of(tensors, config)
        self._hop = math.prod(rate for rate, _ in config["ups"])

    @staticmethod
    def takes(weights: Weights) -> bool:
        """Whether there are kernels for all of it here."""
        return HifiGan.takes(weights[0]) and Flow.takes(weights[0])

    def __call__(self, latents: np.ndarray, speaker: np.ndarray | None = None, *, threads: int) -> np.ndarray:
        hop, own = self._hop, None if speaker is None else speaker[0, :, 0]
        shift = None if self._condition is None or own is None else self._condition @ own
        x = self._flow(np.ascontiguousarray(latents[0].T), own, threads)
        audio = np.empty((1, len(x) * hop), np.float32)
        for first, stop, start, end in windows(len(x), self._context):
            spoken = self._voice(x[first:stop], shift, threads)
            audio[0, start * hop : end * hop] = spoken[(start - first) * hop : (end - first) * hop]
        return audio
