"""Logits to tokens in numpy: top-k, nucleus, temperature, repetition penalty and repetition-aware sampling.

This is the inner loop of decoding, called once per codebook and frame: it sorts as few candidates as the rule allows.
Nucleus: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration". Repetition-aware sampling (RAS):
Chen et al. 2024, "VALL-E 2". A draw inverts the cumulative distribution, which takes
one random number, where the engines' argmax(p / e), e ~ Exponential(1), takes one for each candidate.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import BadOutput
from ..speech import SamplingParams

__all__ = [
    "MIN_TEMPERATURE",
    "Draws",
    "Noise",
    "Sampler",
    "SamplingRule",
    "TokenLayout",
    "draw",
    "nucleus",
    "penalise",
    "unusable",
]

MIN_TEMPERATURE = 1e-5  # the engines clip here
FIRST_LOOK = 64  # candidates sorted before looking whether the nucleus is larger; trained models rarely need more
SMALL = 1536  # up to so many logits, a full sort takes no longer than a first look
DRAWS = 16  # random numbers made at a time, about those of a frame


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """How one engine layout keeps speech from looping, over a window of the frames after the prefill's.

    ras: redraw the main token at `ras_temperature`, `ras_top_p` when it is semantic and its `window` holds it.
    penalty: shrink the logits of recent values: the main token's by `penalised`, a codebook's by its own row of the
    window; with "main_tokens" codebooks are not penalised. prefill_counts: the prefill's frame is in the window too.
    code_rows: leading logits of a codebook that may be drawn (None: all).
    """

    repetition: Literal["ras", "penalty", "both"]
    window: int
    penalised: Literal["oldest_frame", "main_tokens"] = "oldest_frame"
    prefill_counts: bool = False
    ras_temperature: float = 1.0
    ras_top_p: float = 0.9
    code_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where speech lives in the vocabulary: semantic ids `semantic_begin` .. `semantic_end` (inclusive) and `end_id`.

    The exported output head has the semantic rows in order, then the end token's: see `rows`. A frame is
    `1 + n_codebooks` numbers: the main token, its own code, and the codes of the residual codebooks.
    """

    semantic_begin: int
    semantic_end: int
    end_id: int
    n_codebooks: int

    def __post_init__(self) -> None:
        assert 0 <= self.semantic_begin <= self.semantic_end
        assert min(self.end_id, self.n_codebooks - 1) >= 0
        assert not self.semantic_begin <= self.end_id <= self.semantic_end, "the end token is not a semantic one"

    @property
    def n_semantic(self) -> int:
        return self.semantic_end - self.semantic_begin + 1

    @property
    def rows(self) -> np.ndarray:
        """Row of the exported head -> vocabulary id, int64 [n_semantic + 1]."""
        return np.append(np.arange(self.semantic_begin, self.semantic_end + 1), self.end_id)

    def token(self, row: int) -> int:
        """The vocabulary id of a row."""
        return self.semantic_begin + row if row < self.n_semantic else self.end_id

    def rows_of(self, ids: Iterable[int]) -> list[int]:
        """Vocabulary ids -> the rows of those which are exported."""
        begin, end, last = self.semantic_begin, self.semantic_end, self.end_id
        return [self.n_semantic if i == last else i - begin for i in ids if i == last or begin <= i <= end]


def nucleus(logits: np.ndarray, *, top_p: float, top_k: int | None = None) -> np.ndarray:
    """The logits that may be drawn, descending: float32 [n] -> float32 [k], 1 <= k <= n.

    Rank r stays while r < top_k and the softmax over *all* logits, untempered, summed up to and including r is at most
    top_p; rank 0 always stays. Raises BadOutput when the largest logit is not finite (nothing to draw, inf or NaN).
    """
    limit = logits.size if top_k is None else min(top_k, logits.size)
    whole = limit == logits.size and (limit <= SMALL or top_p >= 1.0)
    ranked = _largest(logits, logits.size if whole else limit if top_p >= 1.0 else min(limit, FIRST_LOOK))
    if not ranked.size or not math.isfinite(ranked[0]):  # NaN ranks highest
        raise unusable(logits)
    if top_p >= 1.0:  # rounding must not cut it
        return ranked
    if not whole:
        masses = logits - ranked[0]
        bound = top_p * float(np.add.reduce(np.exp(masses, out=masses), dtype=np.float64))
        mass = 0.0
        for rank, share in enumerate(np.exp(ranked - ranked[0]).tolist()):  # so few that calling numpy would cost more
            mass += share
            if mass > bound:
                return ranked[: max(1, rank)]
        if ranked.size == limit:
            return ranked
        ranked = _largest(logits, limit)
    sums = _sums(ranked - ranked[0])
    if whole:
        bound = top_p * float(sums[-1])
    return ranked[: max(1, int(sums.searchsorted(bound, side="right")))]


def _sums(exponents: np.ndarray) -> np.ndarray:
    """Cumulative sums of e^x in float64; overwrites `exponents`."""
    return np.exp(exponents, out=exponents).cumsum(dtype=np.float64)


def _largest(logits: np.ndarray, size: int) -> np.ndarray:
    """The `size` largest values, descending.

    Only values are sorted: numpy sorts float32 with SIMD, but has no such argsort. `draw` finds the index.
    """
    ranked, rest = logits.copy(), logits.size - size
    if rest:
        ranked.partition(rest)
        ranked = ranked[rest:]
    ranked.sort()
    return ranked[::-1]


def draw(
    logits: np.ndarray, rng: np.random.Generator | Noise, *, temperature: float, top_p: float, top_k: int | None = None
) -> int:
    """One index of `logits` (float32 [n]) from the softmax over its nucleus at `temperature`; 0 is greedy.

    Equal logits rank by index, the first one highest. Raises BadOutput like `nucleus`.
    """
    if temperature == 0.0:
        best = int(logits.argmax()) if logits.size else 0
        if not logits.size or not math.isfinite(logits[best]):
            raise unusable(logits)
        return best
    ranked = nucleus(logits, top_p=top_p, top_k=top_k)
    if ranked.size == 1:
        return int(logits.argmax())
    kept = (logits >= ranked[-1]).nonzero()[0]
    if kept.size > ranked.size:  # ties with the last one: the first of them are kept
        equal = (logits[kept] == ranked[-1]).nonzero()[0]
        kept = np.delete(kept, equal[ranked.size - kept.size :])
    exponents = np.subtract(logits[kept], ranked[0], dtype=np.float64)  # float32 may overflow here
    exponents /= max(temperature, MIN_TEMPERATURE)
    sums = _sums(exponents)
    found = int(sums.searchsorted(rng.random() * sums[-1], side="right"))
    return int(kept[found]) if found < kept.size else int(logits.argmax())  # the product was rounded up


def penalise(logits: np.ndarray, rows: Iterable[int], penalty: float) -> np.ndarray:
    """A copy of `logits` (float32 [n]) with each distinct index in `rows` made less likely, once.

    A negative logit is multiplied by `penalty`, any other divided.
    Source: Keskar et al. 2019, "CTRL", in the signed form which engines use.
    """
    logits = logits.copy()
    values: Any = logits.data  # few, so Python floats are faster; rounded, they equal float32's results
    penalty = float(np.float32(penalty))
    for row in set(rows):
        value = values[row]
        values[row] = value * penalty if value < 0 else value / penalty
    return logits


class Draws(NamedTuple):
    """What the draws of a frame's residual codebooks need besides the logits, for compiled loops.

    recent: values that are penalised, int64 [C - 1, n]. uniforms: the next random numbers, float64 [C - 1]; a draw with
    a single candidate uses none. rows: leading logits that may be drawn. Reals as for `draw` and `penalise`.
    """

    recent: np.ndarray
    uniforms: np.ndarray
    temperature: float
    top_p: float
    top_k: int | None
    penalty: float
    rows: int | None


class Sampler:
    """Draws the tokens of one sequence: `main`, then `code(k)` for k = 1 .. n_codebooks - 1, then `push` the frame.

    `params` must be resolved (temperature and top_p given). The random numbers of a frame depend on the seed and the
    frame's number only (Philox, Salmon et al. 2011), so `resume` continues exactly as the original would have.
    Not for sharing between threads: one per sequence. Memory does not grow.
    """

    def __init__(self, rule: SamplingRule, params: SamplingParams, layout: TokenLayout) -> None:
        if params.temperature is None or params.top_p is None:
            raise ValueError("a sampler needs a temperature and a top_p: resolve its params with SamplingParams.over")
        self.rule, self.params, self.layout = rule, params, layout
        self.seed = secrets.randbits(63) if params.seed is None else int(params.seed)
        self.frames = 0  # pushed so far, the prefill's included
        self._history = np.zeros((1 + layout.n_codebooks, rule.window), np.int64)  # without the prefill's frame
        self._temperature, self._top_p, self._top_k = float(params.temperature), float(params.top_p), params.top_k
        self._penalty = float(params.repetition_penalty or 1.0) if rule.repetition != "ras" else 1.0
        self._noise = Noise(self.seed)

    def main(self, logits: np.ndarray) -> int:
        """The main token as a vocabulary id, from the exported rows' logits, float32 [n_semantic + 1].

        Raises BadOutput for a wrong length, and like `nucleus`.
        """
        logits = _flat(logits)
        if logits.size != self.layout.n_semantic + 1:
            raise BadOutput(
                f"the main head returned {logits.size} logits instead of {self.layout.n_semantic + 1}; "
                "the export does not belong to this model"
            )
        if self._penalty != 1.0 and self.frames:
            # fish-speech takes the window's oldest *frame* here, codes and all, where it means the recent main tokens.
            recent = self._history[:, 0] if self.rule.penalised == "oldest_frame" else self._history[0]
            logits = penalise(logits, self.layout.rows_of(recent.tolist()), self._penalty)
        row = self._draw(logits)
        token = self.layout.token(row)
        # The engine always draws the second sample; drawn only when needed, it has the same distribution.
        if (
            self.rule.repetition != "penalty"
            and self._temperature > 0.0  # greedy stays greedy
            and self.frames
            and row < self.layout.n_semantic
            and token in self._history[0]
        ):
            rule = self.rule
            row = draw(logits, self._noise, temperature=rule.ras_temperature, top_p=rule.ras_top_p, top_k=self._top_k)
            token = self.layout.token(row)
        return token

    def code(self, k: int, logits: np.ndarray) -> int:
        """The code of residual codebook k, 1 .. n_codebooks - 1, from logits [n], float32; raises like `nucleus`."""
        assert 1 <= k < self.layout.n_codebooks
        logits = _flat(logits)[: self.rule.code_rows]
        if self._penalty != 1.0 and self.frames and self.rule.penalised == "oldest_frame":
            size = logits.size
            logits = penalise(logits, (v for v in self._history[k + 1].tolist() if v < size), self._penalty)
        return self._draw(logits)

    def draws(self) -> Draws:
        """For all that `code` would draw in this frame."""
        penalised = self._penalty != 1.0 and self.frames > 0 and self.rule.penalised == "oldest_frame"
        recent = self._history[2:] if penalised else self._history[2:, :0]
        uniforms = np.array([self._noise.random() for _ in range(self.layout.n_codebooks - 1)])
        return Draws(
            np.ascontiguousarray(recent),
            uniforms,
            max(self._temperature, MIN_TEMPERATURE) if self._temperature else 0.0,
            self._top_p,
            self._top_k,
            self._penalty,
            self.rule.code_rows,
        )

    def push(self, frame: Sequence[int] | np.ndarray) -> None:
        """Record a frame: main token, its code, residual codes [1 + n_codebooks]. The first is the prefill's."""
        self._remember(frame)
        self._noise.seek(self.frames)

    def resume(self, frames: Iterable[Sequence[int] | np.ndarray]) -> Sampler:
        """A new sampler positioned after `frames`, all since the prefill's, with this one's seed and options."""
        other = Sampler(self.rule, self.params, self.layout)
        other.seed = self.seed
        for frame in frames:
            other._remember(frame)
        other._noise = Noise(self.seed, other.frames)
        return other

    def _draw(self, logits: np.ndarray) -> int:
        return draw(logits, self._noise, temperature=self._temperature, top_p=self._top_p, top_k=self._top_k)

    def _remember(self, frame: Sequence[int] | np.ndarray) -> None:
        # Filled from the left, then rolled, so that column 0 is always the oldest frame.
        slot = self.frames - (0 if self.rule.prefill_counts else 1)
        if slot >= self.rule.window:
            self._history[:, :-1] = self._history[:, 1:]
            slot = self.rule.window - 1
        if slot >= 0:
            self._history[:, slot] = frame
        self.frames += 1


class Noise:
    """Uniform numbers that depend on the seed, the frame's number and how many were drawn for that frame before.

    They are generated in blocks, by one generator for all frames, since the calls cost more than the numbers.
    """

    def __init__(self, seed: int, frame: int = 0) -> None:
        self._philox = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._philox)
        self._start = self._philox.state
        self.seek(frame)

    def seek(self, frame: int) -> None:
        """Go to a frame's beginning."""
        self._frame, self._begun = frame, False
        self._left: Iterator[float] = iter(())

    def random(self) -> float:
        """The next number from [0, 1): the same sequence as one call for all of a frame's numbers would give."""
        for number in self._left:
            return number
        if not self._begun:
            self._start["state"]["counter"][2] = self._frame  # as Philox(key=seed, counter=frame << 128)
            self._philox.state, self._begun = self._start, True
        self._left = iter(self._generator.random(DRAWS).tolist())
        return next(self._left)


def _flat(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, np.float32).reshape(-1)


def unusable(logits: np.ndarray) -> BadOutput:
    """The error for logits from which nothing can be drawn."""
    nan, inf = int(np.isnan(logits).sum()), int(np.isposinf(logits).sum())
    return BadOutput(f"no token can be drawn from {logits.size} logits: {nan} are NaN, {inf} are +inf, or all are -inf")
