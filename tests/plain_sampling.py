"""Sampling as it was first written, one numpy call per step of the rule: what the fast one must draw, too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from accelerator.errors import BadOutput
from accelerator.inference.sampling import Sampler

__all__ = ["PlainSampler", "draw", "hard_logits", "nucleus", "penalise"]


def nucleus(logits: np.ndarray, *, top_p: float, top_k: int | None = None) -> np.ndarray:
    n = logits.size
    peak = logits.max() if n else np.float32(np.nan)
    if not math.isfinite(peak):
        raise BadOutput("nothing to draw")
    limit = n if top_k is None else min(top_k, n)
    bound = top_p * float(np.exp(logits - peak).sum(dtype=np.float64)) if top_p < 1.0 else math.inf
    size = limit if bound == math.inf else min(limit, 64)
    while True:
        ranked = np.sort(logits if size == n else np.partition(logits, n - size)[n - size :])[::-1]
        if bound == math.inf:
            return ranked
        mass = np.exp(ranked - peak).cumsum(dtype=np.float64)
        if size == limit or mass[-1] > bound:
            return ranked[: max(1, int(mass.searchsorted(bound, side="right")))]
        size = limit


def draw(
    logits: np.ndarray, rng: np.random.Generator, *, temperature: float, top_p: float, top_k: int | None = None
) -> int:
    if temperature == 0.0:
        best = int(logits.argmax()) if logits.size else 0
        if not logits.size or not math.isfinite(logits[best]):
            raise BadOutput("nothing to draw")
        return best
    ranked = nucleus(logits, top_p=top_p, top_k=top_k)
    kept = np.sort(np.argsort(-logits, kind="stable")[: ranked.size])
    if kept.size == 1:
        return int(kept[0])
    gaps = np.subtract(logits[kept], ranked[0], dtype=np.float64)
    sums = np.cumsum(np.exp(gaps / max(temperature, 1e-5)))
    return int(kept[np.argmax(sums > rng.random() * sums[-1])])


def penalise(logits: np.ndarray, rows: np.ndarray, penalty: float) -> np.ndarray:
    logits = logits.copy()
    scores = logits[rows]
    logits[rows] = np.where(scores < 0, scores * penalty, scores / penalty)
    return logits


class PlainSampler(Sampler):
    """A new generator for every frame."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._fresh()

    def _fresh(self) -> None:
        self._rng = np.random.Generator(np.random.Philox(key=self.seed, counter=self.frames << 128))

    def main(self, logits: np.ndarray) -> int:
        layout, rule = self.layout, self.rule
        if self._penalty != 1.0 and self.frames:
            ids = self._history[:, 0] if rule.penalised == "oldest_frame" else self._history[0]
            rows = np.where(ids == layout.end_id, layout.n_semantic, ids - layout.semantic_begin)
            rows = rows[(rows >= 0) & (rows < layout.n_semantic) | (ids == layout.end_id)]
            logits = penalise(logits, rows, self._penalty)
        row = self._draw(logits)
        again = rule.repetition != "penalty" and self._temperature > 0.0 and self.frames and row < layout.n_semantic
        if again and layout.token(row) in self._history[0]:
            row = draw(logits, self._rng, temperature=rule.ras_temperature, top_p=rule.ras_top_p, top_k=self._top_k)
        return layout.token(row)

    def code(self, k: int, logits: np.ndarray) -> int:
        logits = logits[: self.rule.code_rows]
        if self._penalty != 1.0 and self.frames and self.rule.penalised == "oldest_frame":
            window = self._history[k + 1]
            logits = penalise(logits, window[window < logits.size], self._penalty)
        return self._draw(logits)

    def push(self, frame: Any) -> None:
        self._remember(frame)
        self._fresh()

    def _draw(self, logits: np.ndarray) -> int:
        return draw(logits, self._rng, temperature=self._temperature, top_p=self._top_p, top_k=self._top_k)


def hard_logits(random: np.random.Generator, n: int) -> np.ndarray:
    """Peaked, flat, full of ties, or with values ruled out."""
    logits = (random.standard_normal(n) * random.choice([0.01, 0.5, 3.0, 12.0])).astype(np.float32)
    kind = random.integers(6)
    if kind == 0:
        logits = np.round(logits)  # ties, and zeros of both signs
    elif kind == 1:
        logits[random.integers(0, n, n // 2)] = -np.inf
    elif kind == 2:
        logits[:] = logits[0]
    elif kind == 3:
        logits *= np.float32(1e30)
    elif kind == 4:
        logits = -np.abs(logits)
    return logits
