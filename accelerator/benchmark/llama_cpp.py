"""A causal model, or a dual one's slow model, in llama.cpp: the yardstick of a decode step, on the same weights.

Needs the packages `llama-cpp-python` and `gguf`, which nothing else here uses; `missing` says which one is not there.

GCC 12 drops the stores that set up AMX tiles: where a processor has them, llama.cpp built with it crashes in a prompt.
Building with CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'" avoids that.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import EngineError
from ..export.graph.specs import Weights
from ..hardware.pages import huge_pages
from ..inference.compiled import NativeSession, open_graphs
from ..inference.transformer import Runner, Transformer
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from .gguf_file import Kind, Spec, causal_of, kinds_of_head, write_gguf
from .reading import Reader
from .statistics import summarize

__all__ = ["Graphs", "Kind", "LlamaCpp", "compare", "missing", "write_gguf"]

_PACKAGES = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


def missing() -> str | None:
    """Why llama.cpp cannot be measured here, or None."""
    absent = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"llama.cpp is not measured: {' and '.join(absent)} not installed, try `pip install {' '.join(absent)}`"


@functools.cache
def _silent() -> Any:
    """llama.cpp's C functions, which print nothing."""
    import llama_cpp.llama_cpp as low

    silence = low.llama_log_callback(lambda level, text, data: None)
    low.llama_log_set(silence, ctypes.c_void_p(0))
    low.llama_backend_init()
    low.accelerator_silence = silence  # kept as long as the library: C holds a pointer to it
    return low


class LlamaCpp:
    """One sequence in llama.cpp, embedded inputs in and logits of the last position out. A context manager.

    The file is written to a temporary directory and deleted on `close`. Settings are llama.cpp's own: matrices
    repacked for the processor, a float16 key-value cache, flash attention where it chooses it.
    """

    def __init__(
        self,
        spec: Spec,
        weights: Weights,
        kind: Kind,
        *,
        threads: int,
        positions: int,
        head: Kind | None = None,
        flash: bool | None = None,
        beside: LlamaCpp | None = None,
    ) -> None:
        """positions: room of the key-value cache. head: as for `write_gguf`. flash: attention in one pass; None leaves
        it to llama.cpp. beside: one with the same weights, which are shared with it, and which is closed later.

        Raises EngineError without the packages, or if loading fails.
        """
        if reason := missing():
            raise EngineError(reason)
        self._model = self._context = None
        self._directory = tempfile.TemporaryDirectory(prefix="accelerator-gguf-")
        try:
            if beside is None:
                path = Path(self._directory.name) / "model.gguf"
                write_gguf(path, spec, weights, kind, head)
                self._load(path)
            self._open(self._model if beside is None else beside._model, threads, positions, flash)
        except BaseException:
            self.close()
            raise
        self._rows, self._dim, self._positions = len(spec.rows), causal_of(spec).stack.dim, positions
        self.length = 0  # positions in the cache

    def _load(self, path: Path) -> None:
        low = _silent()
        settings = low.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = low.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise EngineError("llama.cpp cannot load the model that was written for it")

    def _open(self, model: Any, threads: int, positions: int, flash: bool | None) -> None:
        low = self._low = _silent()
        room = low.llama_context_default_params()
        room.n_ctx = room.n_batch = room.n_ubatch = positions
        room.n_threads = room.n_threads_batch = threads
        room.n_seq_max = 1
        room.flash_attn_type = _FLASH_ATTENTION[flash]
        room.offload_kqv = room.op_offload = False
        self._context = low.llama_init_from_model(model, room)
        if not self._context:
            raise EngineError(f"llama.cpp cannot make room for {positions} positions")

    def step(self, x: np.ndarray) -> np.ndarray:
        """Append embedded inputs float32 [T, D]; the last one's logits float32 [rows], valid until the next step.

        Raises EngineError if there is no room left.
        """
        count, low = len(x), self._low
        if self.length + count > self._positions:
            raise EngineError(f"llama.cpp was given room for {self._positions} positions")
        x = np.ascontiguousarray(x, np.float32)
        batch = low.llama_batch_init(count, self._dim, 1)
        try:
            batch.n_tokens = count
            ctypes.memmove(batch.embd, x.ctypes.data, x.nbytes)
            for i in range(count):
                batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = self.length + i, 1, 0
                batch.logits[i] = i + 1 == count
            code = low.llama_decode(self._context, batch)
        finally:
            low.llama_batch_free(batch)
        if code:
            raise EngineError(f"llama.cpp failed with code {code}")
        self.length += count
        return np.ctypeslib.as_array(low.llama_get_logits(self._context), (self._rows,))

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` positions."""
        self._low.llama_memory_seq_rm(self._low.llama_get_memory(self._context), 0, length, -1)
        self.length = min(self.length, length)

    def close(self) -> None:
        """Free the model and delete its file."""
        if self._context:
            self._low.llama_free(self._context)
        if self._model:
            _silent().llama_model_free(self._model)
        self._context = self._model = None
        self._directory.cleanup()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Graphs(NamedTuple):
    """A graph of the model, the one that runs its prompts if any, and whether compiled kernels run its steps."""

    steps: Path
    prefill: Path | None = None
    compiled: bool = False


class Ours:
    """The graph behind the calls of `LlamaCpp`."""

    def __init__(self, graphs: Graphs, spec: Spec, options: RunOptions, positions: int) -> None:
        name = graphs.steps.stem
        stack, hidden = spec.graph(name)
        widths = {"logits": len(spec.rows), **({} if hidden is None else {"hidden": hidden.width})}
        matrices = None if graphs.prefill is None else Session(graphs.prefill, options)
        self._session: Runner
        if graphs.compiled:
            (self._session,) = open_graphs(graphs.steps.parent, spec, (name,), options.threads)
        else:
            self._session = Session(graphs.steps, options)
        self._model = Transformer(self._session, stack, widths, 1, positions, matrices)

    def step(self, x: np.ndarray) -> np.ndarray:
        self._model.input(len(x))[0] = x
        logits: np.ndarray = self._model.step(len(x))["logits"][0]
        return logits

    def rewind(self, length: int) -> None:
        self._model.lengths[:] = length

    def reads(self, positions: int) -> list[np.ndarray]:
        """What a step behind so many positions reads, if compiled kernels run it; nothing if it is not known."""
        if not isinstance(self._session, NativeSession):
            return []
        cache = [head[:positions] for each in self._model.cache.arrays.values() for head in each[0]]
        return [*self._session.matrices, *cache]


def compare(
    spec: Spec,
    weights: Weights,
    graphs: Mapping[str, Graphs],
    options: RunOptions,
    *,
    kinds: Sequence[Kind] = ("q4_0", "q8_0"),
    contexts: Sequence[int] = (200, 1500),
    rounds: int = 5,
    steps: int = 8,
) -> dict[str, dict[str, Any]]:
    """Seconds of the model, measure -> arm -> figures of `summarize`: arms take turns within each round.

    graphs: arm -> a graph, float32 or quantized, of the same weights. Measures are "step_<context>", the mean of
    `steps` steps behind that many positions, and "prompt_<context>", of the shortest context. Both sides have
    `options.threads` threads and memory in huge pages where the system has them. llama.cpp is there twice: what it
    chooses by default is slower at long contexts on some processors; and twice more where its own tool would write
    another head than a pure Q4_0 has: see `gguf_file.kinds_of_head`. For arms of compiled kernels, "reading <arm>" is
    how long the same threads need to read what a step reads. Raises EngineError without llama.cpp.
    """
    positions, dim = max(contexts) + 1, causal_of(spec).stack.dim
    took: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as opened:
        with huge_pages():
            arms: dict[str, LlamaCpp | Ours] = {}
            for kind, head in ((each, head) for each in kinds for head in kinds_of_head(spec, each)):
                name, first = f"llama.cpp {kind}{f', {head} head' if head != kind else ''}", None
                for flash, note in ((None, ""), (False, ", no flash attention")):
                    how: dict[str, Any] = {"threads": options.threads, "positions": positions, "flash": flash}
                    made = LlamaCpp(spec, weights, kind, head=head, beside=first, **how)
                    arms[name + note] = opened.enter_context(made)
                    first = first or made
            arms |= {name: Ours(own, spec, options, positions) for name, own in graphs.items()}
        prompt = np.random.default_rng(0).standard_normal((max(contexts), dim)).astype(np.float32) * 0.1
        for context in sorted(contexts):
            for arm in arms.values():
                arm.rewind(0)
                arm.step(prompt[:context])
                arm.step(prompt[:1])
            with ExitStack() as reading:
                readers = {
                    name: reading.enter_context(Reader(own, options.threads))
                    for name, arm in arms.items()
                    if isinstance(arm, Ours) and (own := arm.reads(context))
                }
                for _ in range(rounds):
                    for name, arm in arms.items():
                        _seconds(arm, prompt[:1], context)  # what the arm before left in the processor's caches
                        took[f"step_{context}"][name].append(_seconds(arm, prompt[:1], context, steps))
                        if name in readers:
                            took[f"step_{context}"][f"reading {name}"].append(_read(readers[name], steps))
        shortest = min(contexts)
        for _ in range(rounds):
            for name, arm in arms.items():
                took[f"prompt_{shortest}"][name].append(_seconds(arm, prompt[:shortest], 0))
    return {measure: {arm: summarize(v, "s") for arm, v in by_arm.items()} for measure, by_arm in took.items()}


def _seconds(arm: LlamaCpp | Ours, x: np.ndarray, behind: int, times: int = 1) -> float:
    """Mean time of appending x behind so many positions."""
    start = time.perf_counter()
    for _ in range(times):
        arm.rewind(behind)
        arm.step(x)
    return (time.perf_counter() - start) / times


def _read(reader: Reader, times: int) -> float:
    """Mean time of reading all that a step reads."""
    start = time.perf_counter()
    for _ in range(times):
        reader.read()
    return (time.perf_counter() - start) / times
