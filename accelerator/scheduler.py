"""The decode loop of a dual autoregressive language model, shared by all sequences that are spoken at the same time.

Weights are read from memory once for all rows of a batch, which is what a step costs; so sequences that are generated
at once are advanced together, frame by frame. A sequence joins when there is a row for it and leaves as it ends
(continuous batching, Yu et al. 2022, "Orca"). There is no thread of the loop's own: whoever waits for a frame and finds
nobody at work advances everybody by one frame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from .decode import BLOCK, Embeddings, FrameSampler, StepTimes, Transformer, check_room
from .errors import BadOutput, GenerationError
from .graph.dual_ar import DualARSpec
from .prefixes import Prefixes, cuts
from .session import Session

__all__ = ["CACHE_BYTES", "ROWS", "DualARDecoder"]

ROWS = 8  # sequences advanced together; more would wait longer for each frame than they gain
CACHE_BYTES = 2 * 2**30  # of key-value caches beyond which no sequence joins others
_KEEP_BYTES = 512 * 2**20  # of key-value caches that stay when nothing is spoken


class _Row:
    """One sequence: what it was asked for, and what has become of it."""

    def __init__(
        self,
        prompt: np.ndarray,
        frames: Sequence[np.ndarray],
        sampler: FrameSampler,
        max_frames: int,
        end_may_come_first: bool,
        times: StepTimes,
    ) -> None:
        self.prompt, self.sampler, self.max_frames, self.times = prompt, sampler, max_frames, times
        self.before = frames
        self.end_may_come_first = end_may_come_first or len(frames) > 0
        self.out: deque[np.ndarray] = deque()  # frames nobody has taken yet
        self.count = 0
        self.frame: np.ndarray | None = None  # the last one, which the next step reads
        self.finished = False  # no more frames will come
        self.gone = False  # nobody wants them
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error, self.finished = error, True


class DualARDecoder:
    """Turns prompts into frames of codes with the two exported graphs; calls from several threads share its batches."""

    def __init__(
        self,
        spec: DualARSpec,
        slow: Session,
        fast: Session,
        embeddings: Embeddings,
        *,
        rows: int = ROWS,
        cache_bytes: int = CACHE_BYTES,
        prefixes: Prefixes | None = None,
    ) -> None:
        """`rows`: sequences advanced together at most; others wait their turn.

        They wait, too, while the key-value caches of all would need more than `cache_bytes`.
        """
        self.spec, self.embeddings, self.limit = spec, embeddings, rows
        self._cache_bytes = cache_bytes
        self.prefixes = Prefixes() if prefixes is None else prefixes
        self._slow_session, self._fast_session = slow, fast
        self._slow: Transformer | None = None
        self._fast: Transformer | None = None
        self._state = threading.Condition()
        self._leading = False  # somebody advances the rows; all that follows is then theirs alone, but for _waiting
        self._rows: list[_Row] = []  # in the order of the slow model's rows
        self._waiting: deque[_Row] = deque()

    def generate(
        self,
        prompt: np.ndarray,
        sampler: FrameSampler,
        max_frames: int,
        *,
        frames: Sequence[np.ndarray] = (),
        end_may_come_first: bool = True,
        times: StepTimes | None = None,
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
        row = _Row(np.asarray(prompt, np.int64), frames, sampler, max_frames, end_may_come_first, times or StepTimes())
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
            return len(self._rows) + len(self._waiting)

    def _next(self, row: _Row) -> np.ndarray | None:
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
            except BaseException as error:
                mine = error if isinstance(error, Exception) else GenerationError(f"interrupted: {error!r}")
                for each in self._rows:
                    each.fail(mine)
                self._rows.clear()
                if mine is not error:
                    raise
            finally:
                with self._state:
                    self._leading = False
                    self._state.notify_all()

    def _leave(self, row: _Row) -> None:
        with self._state:
            row.gone = True
            if row in self._waiting:
                self._waiting.remove(row)
            if not self._leading:
                self._drop_gone()

    def _drop_gone(self) -> None:
        for index in reversed(range(len(self._rows))):
            if self._rows[index].gone or self._rows[index].finished:
                self._remove(index)
        if not self._rows and self._slow is not None and self._slow.cache.nbytes > _KEEP_BYTES:
            self._slow = None

    def _remove(self, index: int) -> None:
        """Take a row out of the batch; the last one takes its place."""
        assert self._slow is not None
        last = len(self._rows) - 1
        if index != last:
            self._slow.move(last, index)
            self._rows[index] = self._rows[last]
        self._rows.pop()

    def _advance(self) -> None:
        """One more frame for every row, and for one that was waiting."""
        self._drop_gone()
        if self._rows:
            self._step()
        with self._state:
            row = self._waiting.popleft() if self._waiting and self._fits(self._waiting[0]) else None
        if row is not None:
            self._admit(row)
        if self._rows:
            self._draw()
            self._drop_gone()

    def _fits(self, row: _Row) -> bool:
        """Whether there is a row for it, and memory; the first always fits."""
        if not self._rows or self._slow is None:
            return True
        cache = self._slow.cache
        capacity = max(cache.capacity, row.prompt.shape[1] + len(row.before) + BLOCK)
        row_bytes = cache.nbytes // cache.rows * capacity // cache.capacity
        return len(self._rows) < self.limit and row_bytes * (len(self._rows) + 1) <= self._cache_bytes

    def _admit(self, row: _Row) -> None:
        """Give a sequence a row, and run its prompt through the model."""
        tick = time.perf_counter()
        index, before = len(self._rows), np.stack(row.before, axis=1) if len(row.before) else None
        prompt = row.prompt if before is None else np.concatenate([row.prompt, before], axis=1)
        length = prompt.shape[1]
        try:
            check_room(length, self.spec.slow)
            x = self.embeddings.frames(prompt)
            slow = self._room(index + 1, length + min(row.max_frames, BLOCK))
            slow.lengths[index] = 0
            ends = cuts(row.prompt, self.spec.semantic_begin, self.spec.semantic_end)
            known, blocks = self.prefixes.longest(prompt, ends)
            if known:
                slow.cache.write(index, blocks)
                slow.lengths[index] = known
            for end in (*(end for end in ends if end > known), length):
                begin = int(slow.lengths[index])
                slow.input(end - begin, index, index + 1)[0] = x[begin:end]
                slow.step(end - begin, index, index + 1)
                if end < length and self.prefixes.wants(slow.cache.nbytes // slow.rows * end // slow.cache.capacity):
                    self.prefixes.keep(prompt, end, slow.cache.read(index, end))
        except Exception as error:  # this sequence's own trouble: the others go on
            row.fail(error)
            return
        self._rows.append(row)
        row.times.prefill += time.perf_counter() - tick

    def _room(self, rows: int, capacity: int) -> Transformer:
        """The slow model with room for so many rows of so many positions."""
        capacity = -(-capacity // BLOCK) * BLOCK
        if self._slow is None:
            outputs = {"logits": len(self.spec.rows), "hidden": self.spec.fast.dim}
            self._slow = Transformer(self._slow_session, self.spec.slow, outputs, rows, capacity)
        if rows > self._slow.rows:
            self._slow.make_rows(min(2 * self._slow.rows, self.limit))
        if min(capacity, self.spec.slow.positions) > self._slow.cache.capacity:
            self._slow.grow(capacity)
        return self._slow

    def _step(self) -> None:
        """Feed every row its last frame."""
        slow = self._slow
        assert slow is not None
        for index in reversed(range(len(self._rows))):
            try:
                check_room(int(slow.lengths[index]) + 1, self.spec.slow)
            except GenerationError as error:
                self._rows[index].fail(error)
                self._remove(index)
        rows = self._rows
        if not rows:
            return
        tick = time.perf_counter()
        x = slow.input(1, 0, len(rows))
        for index, row in enumerate(rows):
            assert row.frame is not None
            if row.frame[0] == self.spec.end_id:
                x[index] = self.embeddings.frames(row.frame[:, None])
            else:
                self.embeddings.frame(row.frame, x[index, 0])
        tock = time.perf_counter()
        slow.step(1, 0, len(rows))
        done = time.perf_counter()
        for row in rows:
            row.times.embed += tock - tick
            row.times.slow += done - tock

    def _draw(self) -> None:
        """Draw the next frame of every row from what the slow model answered."""
        spec, slow = self.spec, self._slow
        assert slow is not None
        tick = time.perf_counter()
        speaking: list[tuple[int, _Row, np.ndarray]] = []
        for index, row in enumerate(self._rows):
            try:
                frame = self._main(row, slow.outputs["logits"][index])
            except Exception as error:  # a sampler's refusal concerns its own row
                row.fail(error)
                continue
            if frame[0] == spec.end_id and (row.end_may_come_first or row.count > 0):
                self._emit(row, frame, ended=True)
            else:
                speaking.append((index, row, frame))
        drawn = time.perf_counter() - tick
        for row in self._rows:
            row.times.sampling += drawn
        if speaking:
            self._codes(speaking, slow.outputs["hidden"])
        for _, row, frame in speaking:
            if not row.finished:
                row.sampler.push(frame)
                self._emit(row, frame)

    def _main(self, row: _Row, logits: np.ndarray) -> np.ndarray:
        """A frame that has its main token only."""
        if not np.isfinite(logits.sum()):
            raise BadOutput("the language model answered with non-finite logits")
        frame = np.zeros(1 + self.spec.codebooks, np.int64)
        frame[0] = row.sampler.main(logits)
        return frame

    def _emit(self, row: _Row, frame: np.ndarray, *, ended: bool = False) -> None:
        row.frame = frame
        row.count += 1
        row.times.frames += 1
        row.finished = ended or row.count == row.max_frames
        row.out.append(frame.copy())

    def _codes(self, speaking: list[tuple[int, _Row, np.ndarray]], hidden: np.ndarray) -> None:
        """Fill frame[1:]: the first code is the main token's own, each next one is drawn from the fast model."""
        spec, count = self.spec, len(speaking)
        if self._fast is None or self._fast.rows < count:
            rows = 1 if count == 1 else self.limit
            outputs = {"logits": spec.fast_codes}
            self._fast = Transformer(self._fast_session, spec.fast, outputs, rows, spec.codebooks)
        fast = self._fast
        fast.lengths[:] = 0
        # Position 0 takes the hidden state and its logits are never used, so it runs together with position 1.
        x = fast.input(2, 0, count)
        for at, (index, _, frame) in enumerate(speaking):
            frame[1] = min(max(int(frame[0]) - spec.semantic_begin, 0), spec.codebook_size - 1)
            x[at, 0] = hidden[index]
            self.embeddings.code(int(frame[1]), x[at, 1])
        ran = drew = 0.0
        for codebook in range(1, spec.codebooks):
            tick = time.perf_counter()
            logits = fast.step(2 if codebook == 1 else 1, 0, count)["logits"]
            tock = time.perf_counter()
            x = fast.input(1, 0, count)
            for at, (_, row, frame) in enumerate(speaking):
                if row.finished:
                    continue
                try:
                    frame[1 + codebook] = row.sampler.code(codebook, logits[at])
                except Exception as error:  # as in `_draw`
                    row.fail(error)
                    continue
                if codebook + 1 < spec.codebooks:
                    self.embeddings.code(int(frame[1 + codebook]), x[at, 0])
            ran += tock - tick
            drew += time.perf_counter() - tock
        for _, row, _ in speaking:
            row.times.fast += ran
            row.times.sampling += drew
