"""Dropout masks, which MockingBird's prenets need when they speak, too: drawn as PyTorch's `dropout` draws them.

A seed gives the masks, and so the mel spectrogram, that it gives in the engine: those of the text first, then two for
each step of the loop. They are arguments of the parts, which draw nothing themselves.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["Masks"]


class Masks:
    """One sentence's. rate: the probability that a unit is dropped; what is kept is scaled by 1 / (1 - rate).

    seed: None for PyTorch's own random state, which goes on.
    """

    def __init__(self, seed: int | None, widths: tuple[tuple[int, int], tuple[int, int]], rates: tuple[float, float]):
        """widths, rates: of the text's prenet, and of the loop's."""
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._widths, self._rates = widths, rates
        self._steps: list[tuple[np.ndarray, np.ndarray]] = []

    def text(self, length: int, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Those of a text, float32 [rows, length, width] each: to be asked for once, before those of steps."""
        first, second = (self._draw((rows, length, width), self._rates[0]) for width in self._widths[0])
        return first, second

    def step(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of a step of the loop, float32 [1, width] each; of one that was asked for before, the same again."""
        while len(self._steps) <= number:
            first, second = (self._draw((1, width), self._rates[1]) for width in self._widths[1])
            self._steps.append((first, second))
        return self._steps[number]

    def _draw(self, shape: tuple[int, ...], rate: float) -> np.ndarray:
        if not rate:
            return np.ones(shape, np.float32)
        kept = torch.empty(shape).bernoulli_(1 - rate, generator=self._generator)
        return np.asarray(kept.div_(1 - rate).numpy())
