"""Sequences that are spoken together: what each was asked for, and how far it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from .transformer import FrameSampler, StepTimes

__all__ = ["Batching", "Guidance", "Lane", "Row", "State", "Unconditional", "width_of"]

S = TypeVar("S", bound="State")

Batching = Literal["off", "invariant", "on"]
"""How a sequence may share its runs.

off: exclusive, one row a run. Always the same answer, and the fastest for one sequence.
invariant: in batches of an even number of rows, with a padding row if need be. Also always the same answer, whatever
else is spoken; it may differ from that of "off" in the rounding of quantized weights.
on: whatever is fastest.
"""

_IMPLAUSIBLE = -1e9  # a logit; finite, since non-finite logits are refused


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: draw from `unconditional + scale * (conditioned - unconditional)` of the logits of two
    rows that get the same frames (Ho and Salimans 2022, arXiv:2207.12598).

    prompt: the unconditional row's [1 + C, T]. plausible: only tokens with at least this share of the likeliest token's
    conditioned probability can be drawn; 0 allows all (Li et al. 2022, "Contrastive Decoding", arXiv:2210.15097). Where
    both rows are sure of the same token and the unconditional row is surer, extrapolation would reverse the order.
    """

    prompt: np.ndarray
    scale: float
    plausible: float = 0.0

    def mix(self, logits: np.ndarray, conditioned: int, unconditional: int) -> None:
        """Put the extrapolated logits in row `conditioned` of logits [rows, n]."""
        own, other = logits[conditioned], logits[unconditional]
        mixed = other + np.float32(self.scale) * (own - other)
        if self.plausible:
            mixed[own < own.max() + math.log(self.plausible)] = _IMPLAUSIBLE
        logits[conditioned] = mixed


class Row:
    """One sequence: what it was asked for, and its state."""

    def __init__(
        self,
        prompt: np.ndarray,
        frames: Sequence[np.ndarray],
        sampler: FrameSampler,
        max_frames: int,
        batching: Batching,
        times: StepTimes,
        guidance: Guidance | None = None,
        prefill_may_end: bool = True,
    ) -> None:
        """prompt: int64 [1 + C, T], C codebooks or none. Else as for `batcher.DualARDecoder.generate`."""
        self.prompt, self.sampler, self.max_frames, self.times = prompt, sampler, max_frames, times
        self.before, self.batching = frames, batching
        self.prefill_may_end = prefill_may_end or len(frames) > 0
        self.cuts: Sequence[int] = ()  # columns after which other prompts may differ: see `prefix_cache`
        self.out: deque[np.ndarray] = deque()  # frames not yet taken
        self.count = 0
        self.frame: np.ndarray | None = None  # the last one [1 + C], which the next step reads
        self.finished = False  # no more frames will come
        self.gone = False  # the caller has stopped iterating
        self.error: Exception | None = None
        self.unconditional = None if guidance is None else Unconditional(self, guidance)

    @property
    def rows(self) -> list[Row | Unconditional]:
        """The model's rows it needs, its own first."""
        return [self] if self.unconditional is None else [self, self.unconditional]

    @property
    def width(self) -> int:
        """How many rows that is."""
        return len(self.rows)

    def emit(self, frame: np.ndarray, *, ended: bool = False) -> None:
        """Hand out a frame. The sequence is finished if it `ended` or has reached its limit."""
        self.frame = frame
        self.count += 1
        self.times.frames += 1
        self.finished = ended or self.count == self.max_frames
        self.out.append(frame.copy())

    def fail(self, error: Exception) -> None:
        self.error, self.finished = error, True


class Unconditional:
    """The second row of a guided sequence: the same frames after the unconditional prompt."""

    def __init__(self, own: Row, guidance: Guidance) -> None:
        self.own, self.guidance, self.times = own, guidance, StepTimes()
        self.prompt = np.asarray(guidance.prompt, np.int64)
        self.cuts: Sequence[int] = ()

    @property
    def batching(self) -> Batching:
        return self.own.batching

    @property
    def frame(self) -> np.ndarray | None:
        return self.own.frame

    @property
    def finished(self) -> bool:
        return self.own.finished

    @property
    def gone(self) -> bool:
        return self.own.gone

    def fail(self, error: Exception) -> None:
        self.own.fail(error)


class State(Protocol):
    """What a model keeps of its rows from one step to the next, such as a transformer's key-value caches."""

    @property
    def rows(self) -> int:
        """Rows there is room for."""

    @property
    def nbytes(self) -> int: ...
    def make_rows(self, rows: int) -> None:
        """Make room for so many rows; what is kept stays."""

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in each row, if there is less."""

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another row."""


class Lane(Generic[S]):
    """Rows that are run together, in the order of their model's rows."""

    def __init__(self, state: S, invariant: bool) -> None:
        """invariant: whether the model's answer for a row is the same whatever is beside it."""
        self.state, self.rows, self._invariant = state, list[Row | Unconditional](), invariant

    @property
    def width(self) -> int:
        """Rows of the next run."""
        return width_of(self.rows, self._invariant)

    @property
    def sequences(self) -> list[Row]:
        return [row for row in self.rows if isinstance(row, Row)]

    def remove(self, index: int) -> None:
        """Take a row out; the last one takes its place."""
        last = len(self.rows) - 1
        if index != last:
            self.state.move(last, index)
            self.rows[index] = self.rows[last]
        self.rows.pop()

    def drop_finished(self) -> None:
        for index in reversed(range(len(self.rows))):
            if self.rows[index].gone or self.rows[index].finished:
                self.remove(index)


def width_of(rows: Sequence[Row | Unconditional], invariant: bool) -> int:
    """Rows of a run of these, including a padding row where an odd number would round differently."""
    count = len(rows)
    return count if invariant or all(row.batching != "invariant" for row in rows) else count + count % 2
