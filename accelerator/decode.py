"""The decode loop of a dual autoregressive language model: prefill, then one frame of codes per step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import BadOutput, GenerationError
from .graph.dual_ar import DualARSpec, TransformerSpec
from .session import Binding, KVCache, Session
from .tables import Table

__all__ = ["DualARDecoder", "Embeddings", "FrameSampler", "StepTimes", "Transformer"]

Rows = Table | np.ndarray
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
    """One graph of Llama blocks with its key-value cache: the state of one sequence batch."""

    def __init__(
        self, session: Session, spec: TransformerSpec, outputs: dict[str, int], batch: int, capacity: int
    ) -> None:
        """`outputs`: name -> width of the graph's outputs [B, width]."""
        self._session, self._spec, self._batch = session, spec, batch
        dtype = session.inputs["past_key.0"][0] or np.float32
        self.cache = KVCache(spec.layers, batch, spec.kv_heads, spec.head_dim, min(capacity, spec.positions), dtype)
        self.outputs = {name: np.zeros((batch, width), np.float32) for name, width in outputs.items()}
        self._seqlens = np.zeros(batch, np.int32)
        self._total = np.zeros((), np.int32)
        self._first = np.zeros((), np.bool_)  # the cache is empty
        self._bound: dict[int, tuple[np.ndarray, Binding]] = {}
        self.length = 0  # positions in the cache

    def input(self, length: int) -> np.ndarray:
        """The buffer [B, length, D] that the next `step` of that length reads."""
        return self._binding(length)[0]

    def step(self, length: int) -> dict[str, np.ndarray]:
        """Run over what `input(length)` holds; returns the outputs, valid until the next step."""
        total = self.length + length
        if total > self._spec.positions:
            raise GenerationError(
                f"the sequence needs {total} positions, the model has {self._spec.positions}: shorten text or reference"
            )
        if total > self.cache.capacity:
            self.grow(total)
        _, binding = self._binding(length)
        self._seqlens.fill(total - 1)
        self._total.fill(total)
        self._first.fill(self.length == 0)
        binding.run()
        self.length = total
        if length > 2:
            del self._bound[length]  # a prefill's buffers are not needed again
        return self.outputs

    def grow(self, total: int) -> None:
        """Make room for `total` positions, in blocks, at least half as much again, up to the model's limit."""
        wanted = max(total, self.cache.capacity * 3 // 2)
        self.cache.grow(min(-(-wanted // BLOCK) * BLOCK, self._spec.positions))
        self._bound = {n: (x, self._bind(n, x)) for n, (x, _) in self._bound.items()}

    def _binding(self, length: int) -> tuple[np.ndarray, Binding]:
        if length not in self._bound:
            x = np.zeros((self._batch, length, self._spec.dim), np.float32)
            self._bound[length] = x, self._bind(length, x)
        return self._bound[length]

    def _bind(self, length: int, x: np.ndarray) -> Binding:
        inputs = {
            "x": x,
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
            "last": np.full((self._batch, 1), length - 1, np.int64),
            "first": self._first,
            **self.cache.inputs(),
        }
        wanted = {name: array for name, array in inputs.items() if name in self._session.inputs}
        return self._session.bind(wanted, {**self.outputs, **self.cache.outputs()})


class Embeddings:
    """The model's embedding tables, memory-mapped from a directory written at export."""

    def __init__(self, directory: Path, spec: DualARSpec) -> None:
        names = ("embeddings", "codebook_embeddings", "fast_embeddings")
        self._prepare(spec, *(Table(directory / f"{name}.npy") for name in names))

    def _prepare(self, spec: DualARSpec, tokens: Rows, codes: Rows, fast: Rows) -> None:
        self._spec, self._tokens, self._codes, self._fast = spec, tokens, codes, fast
        self._offsets = np.arange(spec.codebooks) * spec.codebook_size
        self._scale = np.float32(1.0 / np.sqrt(spec.codebooks + 1)) if spec.scale_codebook_embeddings else np.float32(1)

    def frames(self, tokens: np.ndarray) -> np.ndarray:
        """[1 + C, T] main tokens and codes -> [T, D]: codes count at semantic positions only."""
        main = tokens[0]
        outside = (main < 0) | (main >= self._tokens.shape[0])
        if outside.any():
            raise GenerationError(f"token {main[outside][0]} is outside the vocabulary of {self._tokens.shape[0]}")
        x = self._tokens[main]
        semantic = (main >= self._spec.semantic_begin) & (main <= self._spec.semantic_end)
        if semantic.any():
            codes = tokens[1:, semantic].T + self._offsets  # [n, C]
            x[semantic] = (
                x[semantic] + self._codes[codes.reshape(-1)].reshape(*codes.shape, -1).sum(axis=1)
            ) * self._scale
        return x

    def frame(self, frame: np.ndarray, out: np.ndarray) -> None:
        """One semantic frame [1 + C] -> `out` [D]; what `frames` computes, without its temporaries."""
        np.sum(self._codes[frame[1:] + self._offsets], axis=0, out=out)
        out += self._tokens[frame[0]]
        out *= self._scale

    def code(self, code: int, out: np.ndarray) -> None:
        """One code of the fast model -> `out` [fast D]."""
        out[:] = self._fast[code]


class DualARDecoder:
    """Turns a prompt into frames of codes with the two exported graphs. Safe to use from several threads at once."""

    def __init__(self, spec: DualARSpec, slow: Session, fast: Session, embeddings: Embeddings) -> None:
        self.spec, self.embeddings = spec, embeddings
        self._slow, self._fast = slow, fast
        self._lock = threading.Lock()
        self._idle: list[Transformer] = []  # fast models keep their small caches between requests

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
        codes zero, so that the caller can tell an end from a limit.
        Raises GenerationError when the model's positions are exceeded, BadOutput for non-finite logits.
        """
        if max_frames < 1:
            return
        spec, times = self.spec, times or StepTimes()
        prompt = np.concatenate([prompt, *(f[:, None] for f in frames)], axis=1) if len(frames) else prompt
        first = not len(frames)
        length = prompt.shape[1]
        start = time.perf_counter()
        slow = self._new_slow(length + min(max_frames, BLOCK))
        fast = self._take_fast()
        try:
            slow.input(length)[0] = self.embeddings.frames(np.asarray(prompt, np.int64))
            out = slow.step(length)
            times.prefill += time.perf_counter() - start
            for count in range(max_frames):
                tick = time.perf_counter()
                if not np.isfinite(out["logits"].sum()):
                    raise BadOutput("the language model answered with non-finite logits")
                token = sampler.main(out["logits"][0])
                times.sampling += time.perf_counter() - tick
                frame = np.zeros(1 + spec.codebooks, np.int64)
                frame[0] = token
                ended = token == spec.end_id and (end_may_come_first or not (first and count == 0))
                if not ended:
                    self._codes(frame, out["hidden"], fast, sampler, times)
                    sampler.push(frame)
                times.frames += 1
                yield frame
                if ended or count + 1 == max_frames:
                    return
                tick = time.perf_counter()
                if token == spec.end_id:
                    slow.input(1)[0] = self.embeddings.frames(frame[:, None])
                else:
                    self.embeddings.frame(frame, slow.input(1)[0, 0])
                times.embed += time.perf_counter() - tick
                tick = time.perf_counter()
                out = slow.step(1)
                times.slow += time.perf_counter() - tick
        finally:
            with self._lock:
                self._idle.append(fast)

    def _codes(
        self, frame: np.ndarray, hidden: np.ndarray, fast: Transformer, sampler: FrameSampler, times: StepTimes
    ) -> None:
        """Fill frame[1:]: the first code is the main token's own, each next one is drawn from the fast model."""
        spec = self.spec
        code = min(max(int(frame[0]) - spec.semantic_begin, 0), spec.codebook_size - 1)
        frame[1] = code
        fast.length = 0
        # Position 0 takes the hidden state and its logits are never used, so it runs together with position 1.
        x = fast.input(2)
        x[0, 0] = hidden[0]
        self.embeddings.code(code, x[0, 1])
        for codebook in range(1, spec.codebooks):
            tick = time.perf_counter()
            logits = fast.step(2 if codebook == 1 else 1)["logits"]
            tock = time.perf_counter()
            code = sampler.code(codebook, logits[0])
            times.fast += tock - tick
            times.sampling += time.perf_counter() - tock
            frame[1 + codebook] = code
            if codebook + 1 < spec.codebooks:
                self.embeddings.code(code, fast.input(1)[0, 0])

    def _new_slow(self, capacity: int) -> Transformer:
        outputs = {"logits": len(self.spec.rows), "hidden": self.spec.fast.dim}
        return Transformer(self._slow, self.spec.slow, outputs, 1, -(-capacity // BLOCK) * BLOCK)

    def _take_fast(self) -> Transformer:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Transformer(self._fast, self.spec.fast, {"logits": self.spec.fast_codes}, 1, self.spec.codebooks)
