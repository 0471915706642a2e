"""The decoder of the Descript Audio Codec (Kumar et al. 2023, arXiv:2306.06546) by compiled kernels, without PyTorch.

Its weights are what `codec_file.CodecFile.decoder` writes: first, stages.<i>, last. It is for those whose convolutions
look to both sides; see `codec.sliding` for how it takes a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..codec.sliding import Convolution, Last, Push, Stage, Tensors

__all__ = ["WaveDecoder"]

_TILE = 800_000  # values of an activation processed at a time: larger ones leave the cache


class WaveDecoder:
    """Hidden states float32 [rows, C] -> audio [rows * hop]. Safe to call from several threads."""

    def __init__(self, tensors: Tensors, config: Mapping[str, Any]) -> None:
        """config: ups, a (rate, size, pad) for each stage, and dilations. Raises SessionError."""
        self._first = Convolution(tensors, "first")
        self._stages = [
            Stage(tensors.within(f"stages.{i}"), rate, size, pad, config["dilations"])
            for i, (rate, size, pad) in enumerate(config["ups"])
        ]
        self._last = Last(tensors, "last")

    @staticmethod
    def takes(tensors: Tensors, config: Mapping[str, Any]) -> bool:
        """Whether there are kernels for such weights, if there are any at all."""
        own = (Stage.takes(tensors.within(f"stages.{i}"), rate, pad) for i, (rate, _, pad) in enumerate(config["ups"]))
        return Convolution.takes(tensors, "first") and all(own)

    def __call__(self, x: np.ndarray, push: Push) -> np.ndarray:
        return self._spoken(self._first(x, push), self._stages, push)

    def _spoken(self, x: np.ndarray, stages: Sequence[Stage], push: Push) -> np.ndarray:
        """A tile goes through all stages before the next one does; the first stage, whose weights are large, takes all
        rows at once."""
        if not stages:
            audio = self._last(x, push)
            return np.tanh(audio, out=audio)
        stage, parts = stages[0], [np.zeros(0, np.float32)]
        step = max(1, len(x)) if stage is self._stages[0] else max(1, _TILE // (stage.rate * stage.out))
        for begin in range(0, max(1, len(x)), step):
            own = Push(push.state, push.final and begin + step >= len(x), push.threads)
            y = stage(x[begin : begin + step], own)
            if len(y) or own.final:
                parts.append(self._spoken(y, stages[1:], own))
        return np.concatenate(parts)
