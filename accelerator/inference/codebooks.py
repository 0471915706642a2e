"""The codes of a frame: the fast model of a dual autoregressive language model, run once for each codebook."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ..errors import BadOutput
from ..export.graph.specs import CodebookSpec
from .sampling import Sampler
from .sequence import Row, Unconditional, width_of
from .transformer import Embeddings, Runner, Transformer

__all__ = ["Codes", "Speaking"]

Speaking = tuple[int, Row | Unconditional, np.ndarray]  # the slow model's row, a sequence, and its frame


class Codes:
    """Draws the codes of frames that have a main token. Not for sharing between threads."""

    def __init__(
        self, session: Runner, prefill_graph: Runner | None, spec: CodebookSpec, embeddings: Embeddings, limit: int
    ):
        """prefill_graph: as for `Transformer`. limit: sequences at most."""
        self._session, self._prefill_graph, self._spec = session, prefill_graph, spec
        self._embeddings, self._limit = embeddings, limit
        self._fast: Transformer | None = None

    def fill(self, speaking: Sequence[Speaking], hidden: np.ndarray, *, prefill_graph: bool) -> None:
        """Fill frame[1:]: the main token determines the first code, the others are drawn from the fast model.

        hidden: the slow model's states, float32 [rows, D]. A guided row is followed by its unconditional one. A code
        that cannot be drawn fails its own row.
        """
        spec, sequences = self._spec, [row for _, row, _ in speaking]
        for _, _, frame in speaking:
            frame[1] = spec.first_code(int(frame[0]))
        if spec.codebooks < 2:
            return
        width = width_of(sequences, self._session.invariant)
        fast = self._model(width)
        fast.lengths[:] = 0
        # Position 0 takes the hidden state and its logits are never used, so it runs together with position 1.
        x = fast.input(2, 0, width)
        for at, (index, _, frame) in enumerate(speaking):
            x[at, 0] = hidden[index]
            self._embeddings.code(int(frame[1]), x[at, 1])
        tick = time.perf_counter()
        fast.step(2, 0, width, prefill_graph=prefill_graph)
        first = time.perf_counter() - tick
        took = self._at_once(fast, speaking) if width == len(speaking) and not prefill_graph else None
        if took is None:
            took = self._by_steps(fast, speaking, width, prefill_graph)
        for row in sequences:
            row.times.fast += first + took[0]
            row.times.sampling += took[1]

    def _model(self, width: int) -> Transformer:
        """The fast model with room for `width` rows."""
        if self._fast is None or self._fast.rows < width:
            spec, rows = self._spec, 1 if width == 1 else max(width, self._limit)
            outputs = {"logits": spec.drawn}
            self._fast = Transformer(self._session, spec.stack, outputs, rows, spec.codebooks, self._prefill_graph)
        return self._fast

    def _at_once(self, fast: Transformer, speaking: Sequence[Speaking]) -> tuple[float, float] | None:
        """All codes in one call; None where compiled kernels do not run the model or a row needs more than they do.

        Returns the seconds that the model and drawing took.
        """
        samplers = [row.sampler for _, row, _ in speaking if isinstance(row, Row) and row.unconditional is None]
        plain = [sampler for sampler in samplers if type(sampler) is Sampler]  # other samplers have rules of their own
        if len(plain) < len(speaking) or not fast.is_compiled:
            return None
        tick = time.perf_counter()
        codes, share = fast.codes([sampler.draws() for sampler in plain], self._embeddings.of_codes)
        for (_, row, frame), own in zip(speaking, codes, strict=True):
            frame[2:] = own
            if own.min() < 0:
                codebook = int(own.argmin()) + 1
                row.fail(
                    BadOutput(f"no token can be drawn from the logits of codebook {codebook}: NaN, or all infinite")
                )
        took = time.perf_counter() - tick
        return took * (1 - share), took * share

    def _by_steps(
        self, fast: Transformer, speaking: Sequence[Speaking], width: int, prefill_graph: bool
    ) -> tuple[float, float]:
        """Code by code, after the first step. Returns as `_at_once`."""
        spec, logits = self._spec, fast.outputs["logits"]
        ran = drew = 0.0
        for codebook in range(1, spec.codebooks):
            tick = time.perf_counter()
            if codebook > 1:
                fast.step(1, 0, width, prefill_graph=prefill_graph)
            tock = time.perf_counter()
            x = fast.input(1, 0, width)
            for at, (_, row, frame) in enumerate(speaking):
                if row.finished:
                    continue
                if isinstance(row, Row):  # its unconditional row gets the same code
                    try:
                        if row.unconditional is not None:
                            row.unconditional.guidance.mix(logits, at, at + 1)
                        frame[1 + codebook] = row.sampler.code(codebook, logits[at])
                    except Exception as error:  # a sampler's error concerns its own row only
                        row.fail(error)
                        continue
                if codebook + 1 < spec.codebooks:
                    self._embeddings.code(int(frame[1 + codebook]), x[at, 0])
            ran += tock - tick
            drew += time.perf_counter() - tock
        return ran, drew
