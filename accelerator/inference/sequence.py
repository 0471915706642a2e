"""Sequences that are spoken together: what each was asked for, and how far it has come."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np

from .transformer import FrameSampler, StepTimes

__all__ = ["Batching", "Guidance", "Lane", "Other", "Row", "State", "width_of"]

S = TypeVar("S", bound="State")

Batching = Literal["off", "invariant", "on"]
"""How a sequence may share its runs.

off: alone, one row a run. Always the same answer, and the fastest for one sequence.
invariant: in batches of an even number of rows, if need be beside an empty one. Always the same answer as well,
whatever else is spoken; it may differ from that of "off" in the rounding of quantized weights.
on: whatever is fastest.
"""

_IMPLAUSIBLE = -1e9  # a logit: finite, as all that a model answers has to be


@dataclass(frozen=True)
class Guidance:
    """Draw from logits that are extrapolated away from those of another prompt [1 + C, T], which gets the same frames:
    `other + scale * (own - other)` (classifier-free guidance: Ho and Salimans 2022, arXiv:2207.12598).

    plausible: only what has at least so much of the likeliest one's probability without guidance can be drawn; 0 is all
    (Li et al. 2022, "Contrastive Decoding", arXiv:2210.15097). Where both are sure of the same, the other prompt surer,
    extrapolation would turn the order round.
    """

    prompt: np.ndarray
    scale: float
    plausible: float = 0.0

    def mix(self, logits: np.ndarray, own: int, other: int) -> None:
        """Put the extrapolated logits in row `own` of logits [rows, n]."""
        told = logits[own]
        mixed = logits[other] + np.float32(self.scale) * (told - logits[other])
        if self.plausible:
            mixed[told < told.max() + math.log(self.plausible)] = _IMPLAUSIBLE
        logits[own] = mixed


class Row:
    """One sequence: what it was asked for, and what has become of it."""

    def __init__(
        self,
        prompt: np.ndarray,
        frames: Sequence[np.ndarray],
        sampler: FrameSampler,
        max_frames: int,
        batching: Batching,
        times: StepTimes,
        guidance: Guidance | None = None,
        end_may_come_first: bool = True,
    ) -> None:
        """prompt: int64 [1 + C, T], C codebooks or none. Else as for `batcher.DualARDecoder.generate`."""
        self.prompt, self.sampler, self.max_frames, self.times = prompt, sampler, max_frames, times
        self.before, self.batching = frames, batching
        self.end_may_come_first = end_may_come_first or len(frames) > 0
        self.cuts: Sequence[int] = ()  # columns behind which other prompts go on differently: see `prefix_cache`
        self.out: deque[np.ndarray] = deque()  # frames nobody has taken yet
        self.count = 0
        self.frame: np.ndarray | None = None  # the last one [1 + C], which the next step reads
        self.finished = False  # no more frames will come
        self.gone = False  # nobody wants them
        self.error: Exception | None = None
        self.other = None if guidance is None else Other(self, guidance)

    @property
    def rows(self) -> list[Row | Other]:
        """The model's rows it needs, its own first."""
        return [self] if self.other is None else [self, self.other]

    @property
    def width(self) -> int:
        """How many rows that is."""
        return len(self.rows)

    def emit(self, frame: np.ndarray, *, ended: bool = False) -> None:
        """Hand out a frame; after one that ended the sequence, or its last one, no more will come."""
        self.frame = frame
        self.count += 1
        self.times.frames += 1
        self.finished = ended or self.count == self.max_frames
        self.out.append(frame.copy())

    def fail(self, error: Exception) -> None:
        self.error, self.finished = error, True


class Other:
    """The second row of a guided sequence: the same frames behind another prompt."""

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
    """What a model keeps of its rows from one step to the next: a transformer's key-value caches, say."""

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
        """Give a row's sequence another row."""


class Lane(Generic[S]):
    """Rows that are run together, in the order of their model's rows."""

    def __init__(self, state: S, invariant: bool) -> None:
        """invariant: whether the model's answer for a row is the same whatever is beside it."""
        self.state, self.rows, self._invariant = state, list[Row | Other](), invariant

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


def width_of(rows: Sequence[Row | Other], invariant: bool) -> int:
    """Rows of a run of these: with a padding row where an odd one out would round differently."""
    count = len(rows)
    return count if invariant or all(row.batching != "invariant" for row in rows) else count + count % 2
