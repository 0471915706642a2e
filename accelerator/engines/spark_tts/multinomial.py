"""PyTorch's own draws: where the arithmetic is float32, a seed gives the engine's own tokens.

`torch.multinomial` draws argmax(p / e), e ~ Exponential(1), with a number for each token of the vocabulary, likely or
not. Only candidates need their quotients, but all numbers are made, by PyTorch itself: its streams differ from build to
build. Source: ATen's `multinomial` ("fast path for one sample").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["Multinomial"]


class Multinomial:
    """The random numbers of a sequence's tokens; see `token_sampling.Chance`. One for each sequence."""

    def __init__(self, vocabulary: int, *, seed: int | None = None, state: torch.Tensor | None = None) -> None:
        """vocabulary: tokens that PyTorch draws from. seed: as `torch.manual_seed` takes it. state: else, where a
        generator is, as `torch.get_rng_state` says.
        """
        self._generator = torch.Generator()
        if state is not None:
            self._generator.set_state(state)
        elif seed is not None:
            self._generator.manual_seed(seed)
        self._start = self._generator.get_state()
        self._numbers = torch.empty(vocabulary)
        self._drawn = 0  # tokens whose numbers were made

    @property
    def drew(self) -> bool:
        """Whether anything was drawn from here."""
        return not torch.equal(self._start, self._generator.get_state())

    @property
    def state(self) -> torch.Tensor:
        """Where the generator is now: behind the last token that was drawn."""
        return self._generator.get_state()

    def seek(self, token: int) -> None:
        """Go to a token's beginning."""
        if token < self._drawn:
            self._generator.set_state(self._start)
            self._drawn = 0
        while self._drawn < token:
            self._next()

    def choose(self, ids: np.ndarray, shares: np.ndarray) -> int:
        """Which of some candidates is drawn, by number: ids int64 [k], probabilities float64 [k]."""
        return int((shares.astype(np.float32) / self._next()[ids]).argmax())

    @contextlib.contextmanager
    def in_torch(self, token: int) -> Iterator[None]:
        """Whatever is drawn by PyTorch meanwhile is drawn from here, from a token's beginning on; what PyTorch draws
        afterwards is what it would have drawn without."""
        self.seek(token)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._generator.get_state())
            try:
                yield
            finally:
                self._generator.set_state(torch.get_rng_state())

    def _next(self) -> np.ndarray:
        self._numbers.exponential_(generator=self._generator)
        self._drawn += 1
        return self._numbers.numpy()
