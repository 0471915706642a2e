"""One step of a model for the rows of a batch: how prompts are prefilled, frames fed back and tokens drawn.

A frame is what one step draws: a main token and, with a dual model, its codes, int64 [1 + C]. `batcher.Batcher` decides
when each of these happens; another kind of model needs another stepper.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import BadOutput, GenerationError
from ..export.graph.dual_ar import DualARSpec
from ..export.graph.specs import CausalSpec
from .codebooks import Codes, Speaking
from .prefix_cache import Prefixes
from .sequence import Lane, Row, Unconditional
from .transformer import BLOCK, Embeddings, Runner, TokenEmbeddings, Transformer, check_room

__all__ = ["CausalStepper", "DualARStepper", "Prefill", "Stepper"]

Prefill = Callable[[Any, int], None]  # (state, first row): fills that row and, if guided, the next


class Stepper(Protocol):
    """A kind of model, as the loop sees it. Only the loop's leader calls it, one call at a time."""

    invariant: bool  # whether a row's answer is the same whatever other rows run with it

    def state(self, rows: int, positions: int) -> Any:
        """A `State` with room for so many rows of so many positions."""

    def positions(self, row: Row) -> int:
        """How many positions a sequence needs in each of its rows to begin with."""

    def row_bytes(self, states: Sequence[Any], row: Row) -> int:
        """The most bytes a row takes if this sequence joins those of `states`."""

    def prefill(self, row: Row) -> Prefill:
        """A function that runs a sequence's prompts. Raises for invalid prompts before anything is run."""

    def step(self, lane: Lane[Any]) -> None:
        """Feed every row its last frame. Errors that concern one row go to `Row.fail`."""

    def draw(self, lane: Lane[Any]) -> None:
        """Draw every row's next frame from the model's outputs, and `Row.emit` it."""

    def renew(self) -> None:
        """Drop state that may be in mid-step: called in a forked child."""


class CausalStepper:
    """A causal language model: a frame is a token."""

    def __init__(
        self,
        spec: CausalSpec,
        graph: Runner,
        embeddings: TokenEmbeddings,
        prefixes: Prefixes,
        prefill_graph: tuple[Runner, bool] | None = None,
        prefill_graph_rows: int = 4,
    ) -> None:
        """Arguments as for `batcher.CausalDecoder`."""
        self.causal, self.graph, self.embeddings, self.prefixes = spec, graph, embeddings, prefixes
        self.prefill_graph, self._prefill_graph_rows = prefill_graph, prefill_graph_rows
        self.invariant = graph.invariant
        self._ends, self._codebooks = frozenset(spec.end_ids), 0

    def renew(self) -> None:
        """Nothing: a lane's state is all that a step changes."""

    def state(self, rows: int, positions: int) -> Transformer:
        prefill_graph = None if self.prefill_graph is None else self.prefill_graph[0]
        return Transformer(self.graph, self.causal.stack, self._outputs(), rows, positions, prefill_graph)

    def _outputs(self) -> dict[str, int]:
        return {"logits": len(self.causal.rows)}

    def positions(self, row: Row) -> int:
        longest = max(each.prompt.shape[1] for each in row.rows) + len(row.before)
        return -(-(longest + min(row.max_frames, BLOCK)) // BLOCK) * BLOCK

    def row_bytes(self, states: Sequence[Transformer], row: Row) -> int:
        cache = max((state.cache for state in states), key=lambda cache: cache.capacity)
        capacity = max(cache.capacity, row.prompt.shape[1] + len(row.before) + BLOCK)
        return cache.nbytes // cache.rows * capacity // cache.capacity

    def prefill(self, row: Row) -> Prefill:
        before = [frame[:, None] for frame in row.before]
        prompts = [np.concatenate([each.prompt, *before], axis=1) for each in row.rows]
        check_room(max(prompt.shape[1] for prompt in prompts), self.causal.stack)
        embedded = [self.embeddings.frames(prompt) for prompt in prompts]

        def run(state: Transformer, first: int) -> None:
            for index, (each, prompt, x) in enumerate(zip(row.rows, prompts, embedded, strict=True), first):
                self._prefill(state, index, prompt, x, each.cuts)

        return run

    def _prefill(self, model: Transformer, index: int, prompt: np.ndarray, x: np.ndarray, cuts: Sequence[int]) -> None:
        """Fill a row of the model's cache with a prompt [1 + C, T], embedded x [T, D], in chunks between its cuts.

        See `prefix_cache`.
        """
        known, blocks = self.prefixes.longest(prompt, cuts)
        if known:
            model.cache.write(index, blocks)
        model.lengths[index] = known
        for end in (*(end for end in cuts if end > known), prompt.shape[1]):
            begin = int(model.lengths[index])
            model.input(end - begin, index, index + 1)[0] = x[begin:end]
            model.step(end - begin, index, index + 1)
            cache = model.cache
            if end in cuts and self.prefixes.wants(cache.nbytes // cache.rows * end // cache.capacity):
                self.prefixes.keep(prompt, end, cache.read(index, end))

    def step(self, lane: Lane[Transformer]) -> None:
        model, rows = lane.state, lane.rows
        for index, row in enumerate(rows):
            try:
                check_room(int(model.lengths[index]) + 1, self.causal.stack)
            except GenerationError as error:
                row.fail(error)
        lane.drop_finished()
        if not rows:
            return
        tick = time.perf_counter()
        model.lengths[len(rows) :] = 0  # of padding rows
        x = model.input(1, 0, lane.width)
        for index, row in enumerate(rows):
            assert row.frame is not None
            self.embeddings.frame(row.frame, x[index, 0])
        tock = time.perf_counter()
        model.step(1, 0, lane.width, prefill_graph=self._takes_prefill_graph(rows))
        done = time.perf_counter()
        for row in rows:
            row.times.embed += tock - tick
            row.times.slow += done - tock

    def _takes_prefill_graph(self, rows: Sequence[Row | Unconditional]) -> bool:
        """Whether a step of these rows runs the prefill graphs: enough of them, and none that must be invariant."""
        steps = self.prefill_graph is not None and self.prefill_graph[1]
        return steps and len(rows) >= self._prefill_graph_rows and all(row.batching == "on" for row in rows)

    def draw(self, lane: Lane[Transformer]) -> None:
        speaking = self._main_tokens(lane)
        if speaking:
            self._complete(lane.state, speaking)
        for _, row, frame in speaking:
            if isinstance(row, Row) and not row.finished:
                row.sampler.push(frame)
                row.emit(frame)

    def _main_tokens(self, lane: Lane[Transformer]) -> list[Speaking]:
        """The frames that continue, with only their main tokens; frames that end a sequence are handed out."""
        logits = lane.state.outputs["logits"]
        tick = time.perf_counter()
        speaking: list[Speaking] = []  # a guided row is followed by its unconditional one
        for index, row in enumerate(lane.rows):
            if isinstance(row, Unconditional):
                continue
            try:
                if row.unconditional is not None:
                    row.unconditional.guidance.mix(logits, index, lane.rows.index(row.unconditional))
                frame = self._main_token(row, logits[index])
            except Exception as error:  # a sampler's error concerns its own row only
                row.fail(error)
                continue
            if int(frame[0]) in self._ends and (row.prefill_may_end or row.count > 0):
                row.emit(frame, ended=True)
            else:
                speaking.append((index, row, frame))
                if row.unconditional is not None:
                    speaking.append((lane.rows.index(row.unconditional), row.unconditional, frame))
        drawn = time.perf_counter() - tick
        for row in lane.rows:
            row.times.sampling += drawn
        return speaking

    def _main_token(self, row: Row, logits: np.ndarray) -> np.ndarray:
        """A frame with only its main token."""
        if not np.isfinite(logits.sum()):
            raise BadOutput("the language model answered with non-finite logits")
        frame = np.zeros(1 + self._codebooks, np.int64)
        frame[0] = row.sampler.main(logits)
        return frame

    def _complete(self, model: Transformer, speaking: Sequence[Speaking]) -> None:
        """Fill in what follows the main tokens: nothing here."""


class DualARStepper(CausalStepper):
    """A dual autoregressive model: the causal model's hidden states feed a second one, which draws a frame's codes."""

    embeddings: Embeddings

    def __init__(
        self,
        spec: DualARSpec,
        slow: Runner,
        fast: Runner,
        embeddings: Embeddings,
        prefixes: Prefixes,
        prefill_graphs: tuple[Runner, Runner | None] | None,
        prefill_graph_rows: int,
        rows: int,
    ) -> None:
        """Arguments as for `batcher.DualARDecoder`."""
        slow_prefill = None if prefill_graphs is None else (prefill_graphs[0], prefill_graphs[1] is not None)
        super().__init__(spec.causal, slow, embeddings, prefixes, slow_prefill, prefill_graph_rows)
        self.codebook, self._codebooks = spec.codebook, spec.codebooks
        self._fast, self._limit = fast, rows
        self._fast_prefill_graph = prefill_graphs and prefill_graphs[1]
        self._hidden = spec.hidden.width
        self.renew()

    def renew(self) -> None:
        self.codes = Codes(self._fast, self._fast_prefill_graph, self.codebook, self.embeddings, self._limit)

    def _outputs(self) -> dict[str, int]:
        return {**super()._outputs(), "hidden": self._hidden}

    def _complete(self, model: Transformer, speaking: Sequence[Speaking]) -> None:
        prefill_graph = self._takes_prefill_graph([row for _, row, _ in speaking])
        self.codes.fill(speaking, model.outputs["hidden"], prefill_graph=prefill_graph)
