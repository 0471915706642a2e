"""Logits to tokens for causal language models, as transformers' `generate` does: temperature, then top-k, then top-p.

The order matters: here a temperature below 1 leaves fewer tokens within top_p, while `sampling.nucleus`, whose engines
apply top_p to untempered probabilities, keeps the same ones at any temperature. Source: transformers'
`generation/logits_process.py` (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
RepetitionPenaltyLogitsProcessor).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..errors import BadOutput
from ..speech import SamplingParams
from .sampling import MIN_TEMPERATURE, Noise, penalise, unusable

__all__ = ["Chance", "TokenSampler", "candidates"]

_BLOCK = 64


def candidates(
    logits: np.ndarray, *, temperature: float, top_p: float = 1.0, top_k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What may be drawn of float32 [n]: indices, likeliest first, int64 [k], and probabilities, float64 [k], 1 <= k.

    The top_k largest logits stay (and ties with the last one), and of these the likeliest up to the one whose
    cumulative probability reaches top_p, which is kept. Raises BadOutput when the largest logit is not finite.
    """
    kept = _likeliest(logits, logits.size if top_k is None else top_k)
    kept = kept[np.argsort(-logits[kept], kind="stable")]
    values = logits[kept].astype(np.float64)
    shares = np.exp((values - values[0]) / temperature)
    shares /= shares.sum()
    if top_p < 1.0:
        shares = shares[: int(shares.cumsum().searchsorted(top_p, side="left")) + 1]
        shares /= shares.sum()
    return kept[: len(shares)], shares


def _likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of float32 [n], and of ties with the last one, ascending. Raises BadOutput.

    Of many logits, each is looked at once: for the largest of each of some blocks, which are taken at equal distances,
    as processors like it. Those with the `count` largest hold all that is wanted.
    """
    blocks = logits.size // _BLOCK
    whole = blocks <= 4 * count
    tops = logits if whole else logits[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
    rest = logits[blocks * _BLOCK :]
    if not math.isfinite(np.maximum(tops.max(initial=-math.inf), rest.max(initial=-math.inf))):  # NaN if any is
        raise unusable(logits)
    if whole:
        return _at_least(logits, count)
    places = np.arange(_BLOCK)[:, None] * blocks + _at_least(tops, count)
    places = np.concatenate([places.reshape(-1), np.arange(blocks * _BLOCK, logits.size)])
    return places[_at_least(logits[places], count)]


def _at_least(values: np.ndarray, rank: int) -> np.ndarray:
    """Where values are as large as the one of this rank, 1 the largest; ascending."""
    if rank >= values.size:
        return np.arange(values.size)
    return np.flatnonzero(values >= np.partition(values, values.size - rank)[values.size - rank])


class Chance(Protocol):
    """The random numbers of a sequence's tokens, which depend on its seed and on the token's number only."""

    def seek(self, token: int) -> None:
        """Go to a token's beginning, 0 the first."""

    def choose(self, ids: np.ndarray, shares: np.ndarray) -> int:
        """Which of some candidates is drawn, by number: vocabulary ids int64 [k], probabilities float64 [k]."""


class _Inverted:
    """Inverts the cumulative distribution, by one random number (Philox, Salmon et al. 2011)."""

    def __init__(self, seed: int) -> None:
        self._noise = Noise(seed)
        self.seek = self._noise.seek

    def choose(self, ids: np.ndarray, shares: np.ndarray) -> int:
        found = int(shares.cumsum().searchsorted(self._noise.random(), side="right"))
        return min(found, len(shares) - 1)  # the last sum may be rounded to less than 1


class TokenSampler:
    """Draws the tokens of one sequence: `main`, then `push` it. Not for sharing between threads: one per sequence.

    `params` must be resolved (temperature and top_p given). The random number of a token depends on the seed and the
    token's number only, so `resume` continues exactly as the original would have.
    """

    def __init__(
        self,
        params: SamplingParams,
        rows: np.ndarray,
        *,
        allowed: Sequence[tuple[int, int]] | None = None,
        prompt: Iterable[int] = (),
        chance: Callable[[int], Chance] = _Inverted,
    ) -> None:
        """rows: the exported head's vocabulary ids (`CausalSpec.rows`). allowed: the ranges of ids (begin, end)
        that may be drawn; None allows all. prompt: ids that a repetition penalty counts as already said. chance: a
        seed's random numbers; greedy tokens need none.
        """
        if params.temperature is None or params.top_p is None:
            raise ValueError("a sampler needs a temperature and a top_p: resolve its params with SamplingParams.over")
        self.params, self.seed = params, secrets.randbits(63) if params.seed is None else int(params.seed)
        self._rows, self._allowed = np.asarray(rows, np.int64), allowed
        self._open = None if allowed is None else np.zeros(len(self._rows), np.bool_)
        for begin, end in allowed or ():
            assert self._open is not None
            self._open |= (self._rows >= begin) & (self._rows < end)
        if self._open is not None and not self._open.any():
            raise ValueError(f"none of the exported ids lies in {allowed}")
        self._temperature, self._top_p, self._top_k = float(params.temperature), float(params.top_p), params.top_k
        self._penalty = float(params.repetition_penalty or 1.0)
        self._row_of = {int(i): row for row, i in enumerate(self._rows)} if self._penalty != 1.0 else {}
        self._prompt = tuple(prompt)
        self._said = {self._row_of[int(i)] for i in self._prompt if int(i) in self._row_of}
        self.tokens = 0  # pushed so far
        self._make = chance
        self._chance = None if self._temperature == 0.0 else chance(self.seed)

    def main(self, logits: np.ndarray) -> int:
        """A vocabulary id from the exported rows' logits, float32 [n]. Raises BadOutput for a wrong length, or where
        nothing can be drawn."""
        logits = np.asarray(logits, np.float32).reshape(-1)
        if logits.size != len(self._rows):
            raise BadOutput(
                f"the head returned {logits.size} logits instead of {len(self._rows)}; "
                "the export does not belong to this model"
            )
        if self._said:
            logits = penalise(logits, self._said, self._penalty)
        if self._open is not None:
            logits = np.where(self._open, logits, np.float32(-np.inf))
        return int(self._rows[self._draw(logits)])

    def _draw(self, logits: np.ndarray) -> int:
        temperature, top_k = max(self._temperature, MIN_TEMPERATURE), 1 if self._chance is None else self._top_k
        kept, shares = candidates(logits, temperature=temperature, top_p=self._top_p, top_k=top_k)
        return int(kept[0 if self._chance is None else self._chance.choose(self._rows[kept], shares)])

    def code(self, codebook: int, logits: np.ndarray) -> int:
        """Never called: a causal language model has no codebooks."""
        raise AssertionError("a causal language model has no codebooks")

    def push(self, frame: Sequence[int] | np.ndarray) -> None:
        """Record what was drawn: a frame of one token."""
        if (row := self._row_of.get(int(frame[0]))) is not None:
            self._said.add(row)
        self.tokens += 1
        if self._chance is not None:
            self._chance.seek(self.tokens)

    def resume(self, tokens: Iterable[int]) -> TokenSampler:
        """A new sampler positioned after `tokens`, with this one's seed and options."""
        params = replace(self.params, seed=self.seed)
        other = TokenSampler(params, self._rows, allowed=self._allowed, prompt=self._prompt, chance=self._make)
        for token in tokens:
            other.push((token,))
        return other
