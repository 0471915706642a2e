"""The decode loop of a dual autoregressive language model, shared by all sequences that are spoken at the same time.

Weights are read from memory once for all rows of a batch, which is what a step costs; so sequences that are generated
at once are advanced together, frame by frame. A sequence joins when there is a row for it and leaves as it ends
(continuous batching, Yu et al. 2022, "Orca"). There is no thread of the loop's own: whoever waits for a frame and finds
nobody at work advances everybody by one frame.

ONNX Runtime's quantized kernels round differently for one row, for two, and for the odd one out, and sampling makes
other speech of the difference. So a sequence says what it needs of its batch: see `Batching`. Compiled kernels
(`native`) do not, so with them all batches are invariant.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..errors import BadOutput, BatchFailed, GenerationError
from ..export.graph.dual_ar import DualARSpec
from ..hardware.forks import renewed_in_children
from .codebooks import Codes
from .prefix_cache import Prefixes, cuts
from .sequence import Batching, Guidance, Other, Row, width_of
from .transformer import BLOCK, Embeddings, FrameSampler, Runner, StepTimes, Transformer, check_room

__all__ = ["CACHE_BYTES", "ROWS", "DualARDecoder"]

ROWS = 8  # sequences advanced together; more would wait longer for each frame than they gain
CACHE_BYTES = 2 * 2**30  # of key-value caches beyond which no sequence joins others
_KEEP_BYTES = 512 * 2**20  # of key-value caches that stay when nothing is spoken


class _Lane:
    """Rows that are run together, in the order of their model's rows."""

    def __init__(self, slow: Transformer, invariant: bool) -> None:
        self.slow, self.rows, self._invariant = slow, list[Row | Other](), invariant

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
            self.slow.move(last, index)
            self.rows[index] = self.rows[last]
        self.rows.pop()

    def drop_finished(self) -> None:
        for index in reversed(range(len(self.rows))):
            if self.rows[index].gone or self.rows[index].finished:
                self.remove(index)


class DualARDecoder:
    """Turns prompts into frames of codes with the two exported graphs; calls from several threads share its batches."""

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
        """`rows`: rows of a batch at most, an even number: one for a sequence, two for a guided one. Others wait.

        They wait, too, while the key-value caches of all would need more than `cache_bytes`. wide: slow and fast in
        weights that suit matrices better than vectors, for prompts and for runs of at least `wide_rows` rows whose
        rounding nobody minds; without the fast one for prompts only.
        """
        self.spec, self.embeddings, self.limit = spec, embeddings, rows
        self._cache_bytes = cache_bytes
        self.prefixes = Prefixes() if prefixes is None else prefixes
        self._slow_session, self._wide, self._wide_rows = slow, wide, wide_rows
        self._fast_session = fast
        self._begin()
        renewed_in_children(self)

    def _begin(self) -> None:
        wide = None if self._wide is None else self._wide[1]
        self._codes = Codes(self._fast_session, wide, self.spec, self.embeddings, self.limit)
        self._state = threading.Condition()
        self._leading = False  # somebody advances the rows; all that follows is then theirs alone, but for _waiting
        self._shared: _Lane | None = None
        self._alone: list[_Lane] = []  # of one row each; kept, empty, for the next
        self._waiting: deque[Row] = deque()

    def _forked(self) -> None:
        """A child begins anew: what is spoken here belongs to the parent's threads, which may be amidst a step."""
        for row in (*self._waiting, *(row for lane in self._lanes() for row in lane.sequences)):
            row.fail(GenerationError("this speech was begun before this process was forked: begin it anew here"))
        self._begin()

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
        times = times or StepTimes()
        prompt = np.asarray(prompt, np.int64)
        row = Row(prompt, frames, sampler, max_frames, batching, end_may_come_first, times, guidance)
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

    def _lanes(self) -> list[_Lane]:
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
        if not any(lane.rows for lane in lanes) and sum(lane.slow.cache.nbytes for lane in lanes) > _KEEP_BYTES:
            self._shared, self._alone = None, []

    def _advance(self) -> None:
        """One more frame for every row, and for one that was waiting. What fails, fails for the rows of its run."""
        self._drop_finished()
        for lane in self._lanes():
            self._guarded(lane, self._step)
        with self._state:
            row = self._waiting.popleft() if self._waiting and self._fits(self._waiting[0]) else None
        if row is not None:
            self._admit(row)
        for lane in self._lanes():
            self._guarded(lane, self._draw)
        self._drop_finished()

    def _guarded(self, lane: _Lane, work: Callable[[_Lane], None]) -> None:
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
        cache = max((lane.slow.cache for lane in lanes), key=lambda cache: cache.capacity)
        capacity = max(cache.capacity, row.prompt.shape[1] + len(row.before) + BLOCK)
        row_bytes = cache.nbytes // cache.rows * capacity // cache.capacity
        rows = speaking + row.width
        return rows <= self.limit and row_bytes * rows <= self._cache_bytes

    def _admit(self, row: Row) -> None:
        """Give a sequence its rows, and run its prompts through the model."""
        tick = time.perf_counter()
        rows: list[Row | Other] = [row] if row.other is None else [row, row.other]
        before = [frame[:, None] for frame in row.before]
        prompts = [np.concatenate([each.prompt, *before], axis=1) for each in rows]
        length = max(prompt.shape[1] for prompt in prompts)
        try:
            check_room(length, self.spec.slow)
            embedded = [self.embeddings.frames(prompt) for prompt in prompts]
            lane = self._lane(row, length + min(row.max_frames, BLOCK))
            for index, (each, prompt, x) in enumerate(zip(rows, prompts, embedded, strict=True), len(lane.rows)):
                self._prefill(lane.slow, index, prompt, x, each.prompt)
        except Exception as error:  # this sequence's own trouble: the others go on
            row.fail(error)
            return
        lane.rows += rows
        row.times.prefill += time.perf_counter() - tick

    def _prefill(self, slow: Transformer, index: int, prompt: np.ndarray, x: np.ndarray, own: np.ndarray) -> None:
        """Fill a row of the model's cache with a prompt [1 + C, T], embedded x [T, D], piece by piece: see `prefixes`.

        own: the prompt without the frames that are generated already, which no other prompt begins with.
        """
        ends = cuts(own, self.spec.semantic_begin, self.spec.semantic_end)
        known, blocks = self.prefixes.longest(prompt, ends)
        if known:
            slow.cache.write(index, blocks)
        slow.lengths[index] = known
        for end in (*(end for end in ends if end > known), prompt.shape[1]):
            begin = int(slow.lengths[index])
            slow.input(end - begin, index, index + 1)[0] = x[begin:end]
            slow.step(end - begin, index, index + 1)
            cache = slow.cache
            if end in ends and self.prefixes.wants(cache.nbytes // cache.rows * end // cache.capacity):
                self.prefixes.keep(prompt, end, cache.read(index, end))

    def _lane(self, row: Row, capacity: int) -> _Lane:
        """The lane for a sequence, with room for its rows of so many positions."""
        capacity = -(-capacity // BLOCK) * BLOCK
        if row.batching == "off":
            free = (lane for lane in self._alone if not lane.rows and lane.slow.rows >= row.width)
            lane = next(free, None) or self._new_lane(row.width, capacity)
            if lane not in self._alone:
                self._alone.append(lane)
        else:
            if self._shared is None:
                self._shared = self._new_lane(2, capacity)
            lane = self._shared
            while len(lane.rows) + row.width > lane.slow.rows:
                lane.slow.make_rows(2 * lane.slow.rows)
        if min(capacity, self.spec.slow.positions) > lane.slow.cache.capacity:
            lane.slow.grow(capacity)
        return lane

    def _new_lane(self, rows: int, capacity: int) -> _Lane:
        outputs = {"logits": len(self.spec.rows), "hidden": self.spec.fast.dim}
        wide = None if self._wide is None else self._wide[0]
        made = Transformer(self._slow_session, self.spec.slow, outputs, rows, capacity, wide)
        return _Lane(made, self._slow_session.invariant)

    def _step(self, lane: _Lane) -> None:
        """Feed every row its last frame."""
        slow, rows = lane.slow, lane.rows
        for index, row in enumerate(rows):
            try:
                check_room(int(slow.lengths[index]) + 1, self.spec.slow)
            except GenerationError as error:
                row.fail(error)
        lane.drop_finished()
        if not rows:
            return
        tick = time.perf_counter()
        slow.lengths[len(rows) :] = 0  # of rows that only fill a run up
        x = slow.input(1, 0, lane.width)
        for index, row in enumerate(rows):
            assert row.frame is not None
            if row.frame[0] == self.spec.end_id:
                x[index] = self.embeddings.frames(row.frame[:, None])
            else:
                self.embeddings.frame(row.frame, x[index, 0])
        tock = time.perf_counter()
        slow.step(1, 0, lane.width, wide=self._is_wide(rows))
        done = time.perf_counter()
        for row in rows:
            row.times.embed += tock - tick
            row.times.slow += done - tock

    def _is_wide(self, rows: Sequence[Row | Other]) -> bool:
        """Whether a run of these rows is one for the wide graphs: enough of them, and none that must be invariant."""
        both = self._wide is not None and self._wide[1] is not None
        return both and len(rows) >= self._wide_rows and all(row.batching == "on" for row in rows)

    def _draw(self, lane: _Lane) -> None:
        """Draw the next frame of every row from what the slow model answered."""
        spec, outputs = self.spec, lane.slow.outputs
        tick = time.perf_counter()
        speaking: list[tuple[int, Row | Other, np.ndarray]] = []  # a guided row's other one follows it
        for index, row in enumerate(lane.rows):
            if isinstance(row, Other):
                continue
            try:
                if row.other is not None:
                    row.other.guidance.mix(outputs["logits"], index, lane.rows.index(row.other))
                frame = self._main(row, outputs["logits"][index])
            except Exception as error:  # a sampler's refusal concerns its own row
                row.fail(error)
                continue
            if frame[0] == spec.end_id and (row.end_may_come_first or row.count > 0):
                self._emit(row, frame, ended=True)
            else:
                speaking.append((index, row, frame))
                if row.other is not None:
                    speaking.append((lane.rows.index(row.other), row.other, frame))
        drawn = time.perf_counter() - tick
        for row in lane.rows:
            row.times.sampling += drawn
        if speaking:
            self._codes.fill(speaking, outputs["hidden"], wide=self._is_wide([row for _, row, _ in speaking]))
        for _, row, frame in speaking:
            if isinstance(row, Row) and not row.finished:
                row.sampler.push(frame)
                self._emit(row, frame)

    def _main(self, row: Row, logits: np.ndarray) -> np.ndarray:
        """A frame that has its main token only."""
        if not np.isfinite(logits.sum()):
            raise BadOutput("the language model answered with non-finite logits")
        frame = np.zeros(1 + self.spec.codebooks, np.int64)
        frame[0] = row.sampler.main(logits)
        return frame

    def _emit(self, row: Row, frame: np.ndarray, *, ended: bool = False) -> None:
        row.frame = frame
        row.count += 1
        row.times.frames += 1
        row.finished = ended or row.count == row.max_frames
        row.out.append(frame.copy())
