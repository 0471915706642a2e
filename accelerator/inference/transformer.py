"""What the decode loop runs on: transformers with their key-value caches, and embedding tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import GenerationError
from ..export.graph.dual_ar import DualARSpec
from ..export.graph.specs import TransformerSpec
from ..runtime.onnx import Binding, Session
from .compiled import NativeBinding, NativeSession
from .embeddings import Table
from .frame_loop import CodeLoop
from .kv_cache import KVCache
from .sampling import Draws

__all__ = [
    "BLOCK",
    "Embeddings",
    "FrameSampler",
    "Runner",
    "StepTimes",
    "TokenEmbeddings",
    "Transformer",
    "check_room",
]

Rows = Table | np.ndarray
Runner = Session | NativeSession
BLOCK = 256  # positions by which a key-value cache grows


class FrameSampler(Protocol):
    """Draws tokens; `sampling.Sampler` is one, a recorded sequence in a proof is another."""

    def main(self, logits: np.ndarray) -> int: ...
    def code(self, codebook: int, logits: np.ndarray) -> int: ...
    def push(self, frame: np.ndarray) -> None: ...


class StepTimes:
    """Seconds spent in each stage of the loop, and how often."""

    def __init__(self) -> None:
        self.prefill = self.slow = self.fast = self.sampling = self.embed = 0.0
        self.frames = 0


class Transformer:
    """One graph of Llama blocks with the key-value caches of several sequences: one row each, of its own length."""

    def __init__(
        self,
        session: Runner,
        spec: TransformerSpec,
        outputs: dict[str, int],
        batch: int,
        capacity: int,
        prefill_graph: Runner | None = None,
    ) -> None:
        """`outputs`: name -> width of the graph's outputs [B, width]. `batch`: rows there is room for.

        prefill_graph: the same graph over the same cache, its weights quantized so that many rows run faster. It runs
        prompts, and steps that ask for it.
        """
        self._session, self._spec, self._prefill_graph = session, spec, prefill_graph
        dtype = session.inputs["past_key.0"][0] or np.float32
        self.cache = KVCache(spec.layers, batch, spec.kv_heads, spec.head_dim, min(capacity, spec.positions), dtype)
        self._widths = outputs
        self._total = np.zeros((), np.int32)
        self._prompt = np.zeros((), np.bool_)  # many positions, or the first one: see `graph.dual_ar`
        self._allocate(batch)

    def _allocate(self, rows: int) -> None:
        self.outputs = {name: np.zeros((rows, width), np.float32) for name, width in self._widths.items()}
        self.lengths = np.zeros(rows, np.int32)  # positions in each row's cache
        self._seqlens = np.zeros(rows, np.int32)
        self._inputs = {length: np.zeros((rows, length, self._spec.dim), np.float32) for length in (1, 2)}
        self._unbind()

    def _unbind(self) -> None:
        self._bound: dict[tuple[int, int, int, bool], tuple[np.ndarray, Binding | NativeBinding]] = {}
        self._loops: dict[int, CodeLoop] = {}

    @property
    def rows(self) -> int:
        """Rows there is room for."""
        return self.cache.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the key-value caches."""
        return self.cache.nbytes

    def input(self, length: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The buffer [end - begin, length, D] that the next `step` of the same arguments reads."""
        end = self.rows if end is None else end
        own = self._inputs.get(length)
        return (
            self._binding(length, begin, end, self._takes_prefill_graph(length))[0] if own is None else own[begin:end]
        )

    def step(
        self, length: int, begin: int = 0, end: int | None = None, *, prefill_graph: bool = False
    ) -> dict[str, np.ndarray]:
        """Run rows begin .. end over what their `input` holds; returns all rows' outputs, valid until the next step.

        prefill_graph: whether to run the prefill graph, if there is one; it always runs more than two positions. Rows
        may differ in their lengths only when `length` is 1. Raises GenerationError when the model's positions are
        exceeded.
        """
        end = self.rows if end is None else end
        lengths = self.lengths[begin:end]
        total = int(lengths.max()) + length
        check_room(total, self._spec)
        if total > self.cache.capacity:
            x = self.input(length, begin, end)
            self.grow(total)
            self.input(length, begin, end)[:] = x
        prefill_graph = self._takes_prefill_graph(length, prefill_graph)
        _, binding = self._binding(length, begin, end, prefill_graph)
        np.add(lengths, length - 1, out=self._seqlens[begin:end])
        self._total.fill(total)
        self._prompt.fill(length > 2 or not lengths.any())
        binding.run()
        lengths += length
        if length > 2:
            del self._bound[length, begin, end, prefill_graph]  # a prefill's buffers are not needed again
        return self.outputs

    @property
    def is_compiled(self) -> bool:
        """Whether compiled kernels run the steps, and so `codes` can."""
        return isinstance(self._session, NativeSession)

    def codes(self, draws: Sequence[Draws], table: np.ndarray) -> tuple[np.ndarray, float]:
        """All codes of a frame for the first `len(draws)` rows, in one call that follows a step: see `CodeLoop.run`.

        table: embeddings of the codes.
        """
        rows = len(draws)
        x, binding = self._binding(1, 0, rows, False)
        assert isinstance(binding, NativeBinding)
        if rows not in self._loops:
            self._loops[rows] = CodeLoop(binding, x, self._seqlens[:rows], self.outputs["logits"][:rows], table)
        drawn = self._loops[rows].run(draws, int(self.lengths[0]))
        self.lengths[:rows] = self._seqlens[:rows] + 1
        return drawn

    def grow(self, total: int) -> None:
        """Make room for `total` positions, in whole blocks, by at least half the capacity, up to the model's limit."""
        wanted = max(total, self.cache.capacity * 3 // 2)
        self.cache.grow(min(-(-wanted // BLOCK) * BLOCK, self._spec.positions))
        self._unbind()

    def reserve(self, positions: int) -> None:
        """Make room for at least `positions` positions, as far as the model has them."""
        if min(positions, self._spec.positions) > self.cache.capacity:
            self.grow(positions)

    def make_rows(self, rows: int) -> None:
        """Make room for `rows` rows, keeping the caches' contents and the outputs of the last step."""
        lengths, outputs = self.lengths, self.outputs
        self.cache.grow(self.cache.capacity, rows)
        self._allocate(rows)
        self.lengths[: len(lengths)] = lengths
        for name, array in outputs.items():
            self.outputs[name][: len(array)] = array

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another row."""
        self.cache.move(source, target, int(self.lengths[source]))
        self.lengths[target] = self.lengths[source]

    def _takes_prefill_graph(self, length: int, asked: bool = False) -> bool:
        return self._prefill_graph is not None and (asked or length > 2)

    def _binding(
        self, length: int, begin: int, end: int, prefill_graph: bool
    ) -> tuple[np.ndarray, Binding | NativeBinding]:
        key = length, begin, end, prefill_graph
        if key not in self._bound:
            own = self._inputs.get(length)
            x = np.zeros((end - begin, length, self._spec.dim), np.float32) if own is None else own[begin:end]
            self._bound[key] = x, self._bind(length, begin, end, x, prefill_graph)
        return self._bound[key]

    def _bind(self, length: int, begin: int, end: int, x: np.ndarray, prefill_graph: bool) -> Binding | NativeBinding:
        session = self._prefill_graph if prefill_graph and self._prefill_graph is not None else self._session
        inputs = {
            "x": x,
            "seqlens_k": self._seqlens[begin:end],
            "total_sequence_length": self._total,
            "last": np.full((end - begin, 1), length - 1, np.int64),
            "prompt": self._prompt,
            **self.cache.inputs(begin, end),
        }
        wanted = {name: array for name, array in inputs.items() if name in session.inputs}
        outputs = {name: array[begin:end] for name, array in self.outputs.items()}
        return session.bind(wanted, {**outputs, **self.cache.outputs(begin, end)})


def check_room(total: int, spec: TransformerSpec) -> None:
    """Raises GenerationError if a model has fewer than `total` positions."""
    if total > spec.positions:
        raise GenerationError(
            f"the sequence needs {total} positions, the model has {spec.positions}: shorten text or reference"
        )


class TokenEmbeddings:
    """A causal model's embedding table; a frame is a token."""

    def __init__(self, tokens: Rows) -> None:
        """tokens: float32 [vocabulary, D], in memory or a table on disk."""
        self._tokens = tokens

    def frames(self, tokens: np.ndarray) -> np.ndarray:
        """[1, T] vocabulary ids -> [T, D]. Raises GenerationError for ids outside the vocabulary."""
        main = tokens[0]
        outside = (main < 0) | (main >= self._tokens.shape[0])
        if outside.any():
            raise GenerationError(f"token {main[outside][0]} is outside the vocabulary of {self._tokens.shape[0]}")
        return self._tokens[main]

    def frame(self, frame: np.ndarray, out: np.ndarray) -> None:
        """One frame [1] -> `out` [D]."""
        out[:] = self._tokens[int(frame[0])]


class Embeddings(TokenEmbeddings):
    """A dual model's embedding tables, memory-mapped from a directory written at export."""

    def __init__(self, directory: Path, spec: DualARSpec) -> None:
        names = ("embeddings", "codebook_embeddings", "fast_embeddings")
        self._prepare(spec, *(Table(directory / f"{name}.npy") for name in names))

    def _prepare(self, spec: DualARSpec, tokens: Rows, codes: Rows, fast: Rows) -> None:
        super().__init__(tokens)
        self._spec, self._codes, self._fast = spec, codes, fast
        self._offsets = np.arange(spec.codebooks) * spec.codebook_size
        self._scale = np.float32(1.0 / np.sqrt(spec.codebooks + 1)) if spec.scale_codebook_embeddings else np.float32(1)

    def frames(self, tokens: np.ndarray) -> np.ndarray:
        """[1 + C, T] main tokens and codes -> [T, D]: codes count at semantic positions only."""
        x, main = super().frames(tokens), tokens[0]
        semantic = (main >= self._spec.semantic_begin) & (main <= self._spec.semantic_end)
        if semantic.any():
            codes = tokens[1:, semantic].T + self._offsets  # [n, C]
            x[semantic] = (
                x[semantic] + self._codes[codes.reshape(-1)].reshape(*codes.shape, -1).sum(axis=1)
            ) * self._scale
        return x

    def frame(self, frame: np.ndarray, out: np.ndarray) -> None:
        """One frame [1 + C] -> `out` [D]; what `frames` computes, without its temporaries."""
        if not self._spec.semantic_begin <= frame[0] <= self._spec.semantic_end:
            super().frame(frame, out)
            return
        np.sum(self._codes[frame[1:] + self._offsets], axis=0, out=out)
        out += self._tokens[frame[0]]
        out *= self._scale

    @property
    def of_codes(self) -> np.ndarray:
        """The table that `code` reads: float32, or uint16 for its upper halves."""
        return self._fast.rows if isinstance(self._fast, Table) else self._fast

    def code(self, code: int, out: np.ndarray) -> None:
        """One code of the fast model -> `out` [fast D]."""
        out[:] = self._fast[code]
