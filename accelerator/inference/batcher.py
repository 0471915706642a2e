"""The decode loop that all sequences share which are spoken at the same time, whatever model they are of.

Weights are read from memory once for all rows of a batch, which is what a step costs; so sequences that are generated
at once are advanced together, step by step. A sequence joins when there is a row for it and leaves as it ends
(continuous batching, Yu et al. 2022, "Orca"). There is no thread of the loop's own: of the threads that wait for a
frame one is the leader, who advances all rows by one step, and the others are its followers.

`Batcher` knows queue, leader, rows and failures; what a step of a model is, a `Stepper` says. The two decoders at the
end are a batcher and a stepper each.

ONNX Runtime's quantized kernels round differently for one row, for two, and for the odd one out, and sampling makes
other speech of the difference. So a sequence says what it needs of its batch: see `Batching`. Compiled kernels
(`compiled`) do not, so with them all batches are invariant.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import BatchFailed, GenerationError
from ..export.graph.dual_ar import DualARSpec
from ..export.graph.specs import CausalSpec
from ..hardware.forks import renewed_in_children
from .prefix_cache import Prefixes, cuts
from .sequence import Batching, Guidance, Lane, Row
from .stepper import CausalStepper, DualARStepper, Stepper
from .transformer import Embeddings, FrameSampler, Runner, StepTimes, TokenEmbeddings

__all__ = ["CACHE_BYTES", "ROWS", "Batcher", "CausalDecoder", "DualARDecoder"]

ROWS = 8  # sequences advanced together; more would wait longer for each frame than they gain
CACHE_BYTES = 2 * 2**30  # of what a model keeps of its rows, beyond which no sequence joins others
_KEEP_BYTES = 512 * 2**20  # of it that stays when nothing is spoken


class Batcher:
    """Advances the rows of one model; calls of `run` from several threads share its batches."""

    def __init__(self, stepper: Stepper, *, rows: int = ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        """`rows`: rows of a batch at most, an even number: one for a sequence, two for a guided one. Others wait.

        They wait, too, while what the model keeps of all would need more than `cache_bytes`.
        """
        self.stepper, self.limit, self._cache_bytes = stepper, rows, cache_bytes
        self._begin()
        renewed_in_children(self)

    def _begin(self) -> None:
        self._state = threading.Condition()
        self._leading = False  # somebody advances the rows; all that follows is then theirs alone, but for _waiting
        self._shared: Lane | None = None
        self._alone: list[Lane] = []  # of one sequence each; kept, empty, for the next
        self._waiting: deque[Row] = deque()

    def _forked(self) -> None:
        """A child begins anew: what is spoken here belongs to the parent's threads, which may be amidst a step."""
        for row in (*self._waiting, *(row for lane in self._lanes() for row in lane.sequences)):
            row.fail(GenerationError("this speech was begun before this process was forked: begin it anew here"))
        self.stepper.renew()
        self._begin()

    def run(self, row: Row) -> Iterator[np.ndarray]:
        """Yield a sequence's frames until it has ended. Raises whatever its own work raised, or BatchFailed."""
        with self._state:
            self._waiting.append(row)
        try:
            while (frame := self._next(row)) is not None:
                yield frame
        finally:
            self._leave(row)

    @property
    def busy(self) -> int:
        """Sequences being generated or waiting."""
        with self._state:
            return sum(len(lane.sequences) for lane in self._lanes()) + len(self._waiting)

    def _lanes(self) -> list[Lane]:
        return [*self._alone, *([self._shared] if self._shared else [])]

    def _next(self, row: Row) -> np.ndarray | None:
        """The row's next frame, or None at its end."""
        while True:
            with self._state:
                while True:
                    if row.out:
                        return row.out.popleft()
                    if row.error is not None:
                        raise row.error
                    if row.finished:
                        return None
                    if not self._leading:
                        self._leading = True
                        break
                    self._state.wait()
            try:
                self._advance()
            finally:
                with self._state:
                    self._leading = False
                    self._state.notify_all()

    def _leave(self, row: Row) -> None:
        with self._state:
            row.gone = True
            if row in self._waiting:
                self._waiting.remove(row)
            if not self._leading:
                self._drop_finished()

    def _drop_finished(self) -> None:
        for lane in self._lanes():
            lane.drop_finished()
        lanes = self._lanes()
        if not any(lane.rows for lane in lanes) and sum(lane.state.nbytes for lane in lanes) > _KEEP_BYTES:
            self._shared, self._alone = None, []

    def _advance(self) -> None:
        """One more frame for every row, and for one that was waiting. What fails, fails for the rows of its run."""
        self._drop_finished()
        for lane in self._lanes():
            self._guarded(lane, self.stepper.step)
        with self._state:
            row = self._waiting.popleft() if self._waiting and self._fits(self._waiting[0]) else None
        if row is not None:
            self._admit(row)
        for lane in self._lanes():
            self._guarded(lane, self.stepper.draw)
        self._drop_finished()

    def _guarded(self, lane: Lane, work: Callable[[Lane], None]) -> None:
        if not lane.rows:
            return
        try:
            work(lane)
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            sequences = lane.sequences
            mine = BatchFailed(f"a run of {len(sequences)} sequences failed: {type(error).__name__}: {error}")
            mine.__cause__ = error
            for each in sequences:
                each.fail(error if isinstance(error, Exception) and len(sequences) == 1 else mine)
            lane.rows.clear()
            if interrupted:
                raise

    def _fits(self, row: Row) -> bool:
        """Whether there is a row for it, and memory; the first always fits."""
        lanes = self._lanes()
        speaking = sum(len(lane.rows) for lane in lanes)
        if not speaking:
            return True
        rows = speaking + row.width
        return (
            rows <= self.limit
            and self.stepper.row_bytes([lane.state for lane in lanes], row) * rows <= self._cache_bytes
        )

    def _admit(self, row: Row) -> None:
        """Give a sequence its rows, and run its prompts through the model."""
        tick = time.perf_counter()
        try:
            prefill = self.stepper.prefill(row)
            lane = self._lane(row)
            prefill(lane.state, len(lane.rows))
        except Exception as error:  # this sequence's own trouble: the others go on
            row.fail(error)
            return
        lane.rows += row.rows
        row.times.prefill += time.perf_counter() - tick

    def _lane(self, row: Row) -> Lane:
        """The lane for a sequence, with room for its rows."""
        positions = self.stepper.positions(row)
        if row.batching == "off":
            free = (lane for lane in self._alone if not lane.rows and lane.state.rows >= row.width)
            lane = next(free, None) or self._new_lane(row.width, positions)
            if lane not in self._alone:
                self._alone.append(lane)
        else:
            if self._shared is None:
                self._shared = self._new_lane(2, positions)
            lane = self._shared
            while len(lane.rows) + row.width > lane.state.rows:
                lane.state.make_rows(2 * lane.state.rows)
        lane.state.reserve(positions)
        return lane

    def _new_lane(self, rows: int, positions: int) -> Lane:
        return Lane(self.stepper.state(rows, positions), self.stepper.invariant)


class DualARDecoder(Batcher):
    """Turns prompts into frames of codes with the two graphs of a dual autoregressive language model."""

    stepper: DualARStepper

    def __init__(
        self,
        spec: DualARSpec,
        slow: Runner,
        fast: Runner,
        embeddings: Embeddings,
        *,
        wide: tuple[Runner, Runner | None] | None = None,
        wide_rows: int = 4,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`rows`, `cache_bytes`: as for `Batcher`. wide: slow and fast in weights that suit matrices better than
        vectors, for prompts and for runs of at least `wide_rows` rows whose rounding nobody minds; without the fast one
        for prompts only.
        """
        self.spec, self.embeddings = spec, embeddings
        self.prefixes = Prefixes() if prefixes is None else prefixes
        stepper = DualARStepper(spec, slow, fast, embeddings, self.prefixes, wide, wide_rows, rows)
        super().__init__(stepper, rows=rows, cache_bytes=cache_bytes)

    def generate(
        self,
        prompt: np.ndarray,
        sampler: FrameSampler,
        max_frames: int,
        *,
        frames: Sequence[np.ndarray] = (),
        batching: Batching = "off",
        end_may_come_first: bool = True,
        times: StepTimes | None = None,
        guidance: Guidance | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield frames int64 [1 + C] (main token, codes) until the end token is drawn or `max_frames` are out.

        prompt: int [1 + C, T]. frames: what was generated already; generation goes on behind it. end_may_come_first:
        some engines do not look for the end token in the prefill's answer. The end token's frame is yielded too, its
        codes zero, so that the caller can tell an end from a limit. times: seconds as this sequence sees them; a step
        that served others as well counts in full.
        Raises GenerationError when the model's positions are exceeded, BadOutput for non-finite logits.
        """
        if max_frames < 1:
            return
        prompt, times = np.asarray(prompt, np.int64), times or StepTimes()
        row = Row(prompt, frames, sampler, max_frames, batching, times, guidance, end_may_come_first)
        for each in row.rows:
            each.cuts = cuts(each.prompt, self.spec.semantic_begin, self.spec.semantic_end)
        yield from self.run(row)


class CausalDecoder(Batcher):
    """Turns prompts into tokens with the graph of a causal language model."""

    stepper: CausalStepper

    def __init__(
        self,
        spec: CausalSpec,
        graph: Runner,
        embeddings: TokenEmbeddings,
        *,
        wide: tuple[Runner, bool] | None = None,
        wide_rows: int = 4,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`rows`, `cache_bytes`: as for `Batcher`. wide: the graph in weights that suit matrices better than vectors,
        for prompts, and whether it is for runs of at least `wide_rows` rows, too, whose rounding nobody minds.
        """
        self.spec, self.embeddings = spec, embeddings
        self.prefixes = Prefixes() if prefixes is None else prefixes
        stepper = CausalStepper(spec, graph, embeddings, self.prefixes, wide, wide_rows)
        super().__init__(stepper, rows=rows, cache_bytes=cache_bytes)

    def generate(
        self,
        prompt: np.ndarray,
        sampler: FrameSampler,
        max_tokens: int,
        *,
        tokens: Sequence[int] = (),
        batching: Batching = "off",
        times: StepTimes | None = None,
        guidance: Guidance | None = None,
        cuts: Sequence[int] = (),
    ) -> Iterator[int]:
        """Yield vocabulary ids until one that ends the sequence is drawn, which is yielded too; `max_tokens` at most.

        prompt: int [T]. tokens: what was generated already; generation goes on behind it. cuts: how many of the
        prompt's tokens other prompts may share: their keys and values are kept (see `prefix_cache`). guidance: its
        prompt is int [1, T]. times, errors: as for `DualARDecoder.generate`.
        """
        if max_tokens < 1:
            return
        frames = [np.array([token], np.int64) for token in tokens]
        columns = np.asarray(prompt, np.int64)[None]  # [1, T]: a frame without codes is a token
        row = Row(columns, frames, sampler, max_tokens, batching, times or StepTimes(), guidance)
        row.cuts = sorted(cuts)
        for frame in self.run(row):
            yield int(frame[0])
