"""The decode loop shared by all sequences that are spoken at the same time, whatever their model.

A step costs what reading the weights from memory costs, and they are read once for all rows of a batch. So sequences
generated at the same time advance together, step by step. A sequence joins when there is a row for it and leaves when
it ends (continuous batching, Yu et al. 2022, "Orca"). The loop has no thread of its own: of the threads that wait for a
frame, one is the leader and advances all rows by one step; the others are its followers.

`Batcher` handles the queue, the leader, rows and failures; a `Stepper` defines what a step of a model is. The two
decoders at the end are a batcher with a stepper each.

ONNX Runtime's quantized kernels round a row differently depending on how many rows run with it, and sampling turns that
difference into different speech. So a sequence says what it needs of its batch: see `Batching`. Compiled kernels
(`compiled`) round every row alike, so with them all batches are invariant.
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
from .rows import ROWS
from .sequence import Batching, Guidance, Lane, Row
from .stepper import CausalStepper, DualARStepper, Stepper
from .transformer import Embeddings, FrameSampler, Runner, StepTimes, TokenEmbeddings

__all__ = ["CACHE_BYTES", "Batcher", "CausalDecoder", "DualARDecoder"]

CACHE_BYTES = 2 * 2**30  # of key-value caches, beyond which no sequence joins a batch
_KEEP_BYTES = 512 * 2**20  # of these that are kept when nothing is spoken


class Batcher:
    """Advances the rows of one model; calls of `run` from several threads share its batches."""

    def __init__(self, stepper: Stepper, *, rows: int = ROWS, cache_bytes: int = CACHE_BYTES) -> None:
        """`rows`: the most rows in a batch, an even number; a sequence takes one, a guided one two.

        Sequences beyond that wait, as do those whose key-value caches would bring the total above `cache_bytes`.
        """
        self.stepper, self.limit, self._cache_bytes = stepper, rows, cache_bytes
        self._begin()
        renewed_in_children(self)

    def _begin(self) -> None:
        self._state = threading.Condition()
        self._leading = False  # while true, everything below but _waiting belongs to the leader
        self._shared: Lane | None = None
        self._exclusive: list[Lane] = []  # one sequence each; kept when empty, for reuse
        self._waiting: deque[Row] = deque()

    def _forked(self) -> None:
        """A child process starts afresh: the sequences belong to the parent's threads, which may be in mid-step."""
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
        return [*self._exclusive, *([self._shared] if self._shared else [])]

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
            self._shared, self._exclusive = None, []

    def _advance(self) -> None:
        """Advance every row by a frame and admit one that waits. An error fails the rows of the run it happened in."""
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
        """Whether there are rows and memory for it; the first sequence always fits."""
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
        except Exception as error:  # concerns this sequence only: the others continue
            row.fail(error)
            return
        lane.rows += row.rows
        row.times.prefill += time.perf_counter() - tick

    def _lane(self, row: Row) -> Lane:
        """The lane for a sequence, with room for its rows."""
        positions = self.stepper.positions(row)
        if row.batching == "off":
            free = (lane for lane in self._exclusive if not lane.rows and lane.state.rows >= row.width)
            lane = next(free, None) or self._new_lane(row.width, positions)
            if lane not in self._exclusive:
                self._exclusive.append(lane)
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
    """Generates frames of codes from prompts with the two graphs of a dual autoregressive language model."""

    stepper: DualARStepper

    def __init__(
        self,
        spec: DualARSpec,
        slow: Runner,
        fast: Runner,
        embeddings: Embeddings,
        *,
        prefill_graphs: tuple[Runner, Runner | None] | None = None,
        prefill_graph_rows: int = 4,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`rows`, `cache_bytes`: as for `Batcher`.

        prefill_graphs: slow and fast, their weights quantized so that many rows run faster. They run prompts, and steps
        of at least `prefill_graph_rows` rows none of which must be invariant; without the fast one, prompts only.
        """
        self.spec, self.embeddings = spec, embeddings
        self.prefixes = Prefixes() if prefixes is None else prefixes
        stepper = DualARStepper(spec, slow, fast, embeddings, self.prefixes, prefill_graphs, prefill_graph_rows, rows)
        super().__init__(stepper, rows=rows, cache_bytes=cache_bytes)

    def generate(
        self,
        prompt: np.ndarray,
        sampler: FrameSampler,
        max_frames: int,
        *,
        frames: Sequence[np.ndarray] = (),
        batching: Batching = "off",
        prefill_may_end: bool = True,
        times: StepTimes | None = None,
        guidance: Guidance | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield frames int64 [1 + C] (main token, codes) until the end token is drawn or `max_frames` are out.

        The end token's frame is yielded too, its codes zero, so that the caller can tell an end from a limit.

        prompt: int [1 + C, T]. frames: what was generated already; generation continues after it. prefill_may_end:
        whether an end token drawn right after the prefill ends the sequence; some engines do not look for it there.
        times: seconds as this sequence sees them; a step shared with others counts in full.

        Raises GenerationError when the model's positions are exceeded, BadOutput for non-finite logits.
        """
        if max_frames < 1:
            return
        prompt, times = np.asarray(prompt, np.int64), times or StepTimes()
        row = Row(prompt, frames, sampler, max_frames, batching, times, guidance, prefill_may_end)
        for each in row.rows:
            each.cuts = cuts(each.prompt, self.spec.semantic_begin, self.spec.semantic_end)
        yield from self.run(row)


class CausalDecoder(Batcher):
    """Generates tokens from prompts with the graph of a causal language model."""

    stepper: CausalStepper

    def __init__(
        self,
        spec: CausalSpec,
        graph: Runner,
        embeddings: TokenEmbeddings,
        *,
        prefill_graph: tuple[Runner, bool] | None = None,
        prefill_graph_rows: int = 4,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`rows`, `cache_bytes`: as for `Batcher`.

        prefill_graph: the graph, its weights quantized so that many rows run faster, for prompts; and whether it also
        runs steps of at least `prefill_graph_rows` rows none of which must be invariant.
        """
        self.spec, self.embeddings = spec, embeddings
        self.prefixes = Prefixes() if prefixes is None else prefixes
        stepper = CausalStepper(spec, graph, embeddings, self.prefixes, prefill_graph, prefill_graph_rows)
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

        prompt: int [T]. tokens: what was generated already; generation continues after it. cuts: how many of the
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
