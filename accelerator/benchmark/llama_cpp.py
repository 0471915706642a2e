"""The slow model's backbone in llama.cpp: the yardstick of a decode step, on the same weights and inputs.

Needs the packages `llama-cpp-python` and `gguf`, which nothing else here uses; `missing` says which one is not there.
llama.cpp rotates halves where these models rotate neighbours, so rows of queries and keys are reordered when the file
is written; the logits are then the same. It computes exact cosines where an engine may round them to bfloat16.

GCC 12 drops the stores that set up AMX tiles: where a processor has them, llama.cpp built with it crashes in a prompt.
Building with CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'" avoids that.
"""

from __future__ import annotations

import ctypes
import importlib.util
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import EngineError
from ..export.graph.dual_ar import DualARSpec, TransformerSpec, Weights
from ..hardware.pages import huge_pages
from ..inference.compiled import open_graphs
from ..inference.transformer import Runner, Transformer
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from .statistics import summarize

__all__ = ["Graphs", "Kind", "LlamaCpp", "compare", "missing", "write_gguf"]

Kind = Literal["f32", "f16", "q8_0", "q4_0"]
_TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_PACKAGES = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


def missing() -> str | None:
    """Why llama.cpp cannot be measured here, or None."""
    absent = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"llama.cpp is not measured: {' and '.join(absent)} not installed, try `pip install {' '.join(absent)}`"


def write_gguf(path: Path, spec: DualARSpec, weights: Weights, kind: Kind) -> None:
    """Write the slow model with the head of `build_slow`, its matrices of type `kind`, to `path`.

    Architecture "qwen3" with norms over queries and keys, "llama" without. Raises EngineError for what neither has.
    """
    import gguf

    stack = spec.slow
    if stack.out_bias or (stack.qk_norm and stack.qkv_bias):
        raise EngineError("llama.cpp has no architecture with these biases")
    writer = gguf.GGUFWriter(str(path), "qwen3" if stack.qk_norm else "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(len(spec.rows))
    writer.add_block_count(stack.layers)
    writer.add_context_length(stack.positions)
    writer.add_embedding_length(stack.dim)
    writer.add_feed_forward_length(stack.ffn)
    writer.add_head_count(stack.heads)
    writer.add_head_count_kv(stack.kv_heads)
    writer.add_key_length(stack.head_dim)
    writer.add_value_length(stack.head_dim)
    writer.add_rope_dimension_count(stack.head_dim)
    writer.add_rope_freq_base(stack.rope_base)
    writer.add_layer_norm_rms_eps(stack.eps)

    def add(name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array, np.float32)
        kept = gguf.GGMLQuantizationType[_TYPES[kind] if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, kept), raw_dtype=kept)

    add("token_embd.weight", np.zeros((len(spec.rows), stack.dim)))  # asked for, never read: inputs come embedded
    add("output_norm.weight", weights("slow.norm"))
    add("output.weight", weights("slow.head"))
    for i in range(stack.layers):
        for name, array in _layer(stack, f"slow.{i}", weights).items():
            add(f"blk.{i}.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer(stack: TransformerSpec, name: str, weights: Weights) -> dict[str, np.ndarray]:
    """A layer's tensors under llama.cpp's names."""
    tensors = {
        "attn_norm.weight": weights(f"{name}.attention_norm"),
        "attn_output.weight": weights(f"{name}.out"),
        "ffn_norm.weight": weights(f"{name}.ffn_norm"),
        **{f"ffn_{part}.weight": weights(f"{name}.{part}") for part in ("gate", "up", "down")},
    }
    ends = np.cumsum([stack.heads, stack.kv_heads]) * stack.head_dim
    for end in ("weight", "bias") if stack.qkv_bias else ("weight",):
        packed = weights(f"{name}.qkv" if end == "weight" else f"{name}.qkv.bias")
        query, key, value = np.split(packed, ends)
        if stack.qk_norm:  # "qwen3" rotates halves, "llama" neighbours
            query, key = _halves(query, stack.head_dim), _halves(key, stack.head_dim)
        tensors |= {f"attn_q.{end}": query, f"attn_k.{end}": key, f"attn_v.{end}": value}
    if stack.qk_norm:
        tensors |= {f"attn_{k}_norm.weight": _halves(weights(f"{name}.{k}_norm"), stack.head_dim) for k in "qk"}
    return tensors


def _halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder each head's rows: even ones first, then odd ones."""
    heads = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


class LlamaCpp:
    """One sequence in llama.cpp, embedded inputs in and logits of the last position out. A context manager.

    The file is written to a temporary directory and deleted on `close`. Settings are llama.cpp's own: matrices
    repacked for the processor, a float16 key-value cache, flash attention where it chooses it.
    """

    def __init__(
        self,
        spec: DualARSpec,
        weights: Weights,
        kind: Kind,
        *,
        threads: int,
        positions: int,
        flash: bool | None = None,
    ) -> None:
        """positions: room of the key-value cache. flash: attention in one pass; None leaves it to llama.cpp.

        Raises EngineError without the packages, or if loading fails.
        """
        if reason := missing():
            raise EngineError(reason)
        self._model = self._context = None
        self._directory = tempfile.TemporaryDirectory(prefix="accelerator-gguf-")
        try:
            path = Path(self._directory.name) / "model.gguf"
            write_gguf(path, spec, weights, kind)
            self._load(path, threads, positions, flash)
        except BaseException:
            self.close()
            raise
        self._rows, self._dim, self._positions = len(spec.rows), spec.slow.dim, positions
        self.length = 0  # positions in the cache

    def _load(self, path: Path, threads: int, positions: int, flash: bool | None) -> None:
        import llama_cpp.llama_cpp as low

        self._low: Any = low
        self._silence = low.llama_log_callback(lambda level, text, data: None)  # kept: C holds a pointer to it
        low.llama_log_set(self._silence, ctypes.c_void_p(0))
        low.llama_backend_init()
        settings = low.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = low.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise EngineError("llama.cpp cannot load the model that was written for it")
        room = low.llama_context_default_params()
        room.n_ctx = room.n_batch = room.n_ubatch = positions
        room.n_threads = room.n_threads_batch = threads
        room.n_seq_max = 1
        room.flash_attn_type = _FLASH_ATTENTION[flash]
        room.offload_kqv = room.op_offload = False
        self._context = low.llama_init_from_model(self._model, room)
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
            self._low.llama_model_free(self._model)
        self._context = self._model = None
        self._directory.cleanup()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Graphs(NamedTuple):
    """A slow graph, the one that runs its prompts if there is one, and whether compiled kernels run its steps."""

    slow: Path
    prefill: Path | None = None
    compiled: bool = False


class Ours:
    """The slow graph behind the calls of `LlamaCpp`."""

    def __init__(self, graphs: Graphs, spec: DualARSpec, options: RunOptions, positions: int) -> None:
        widths = {"logits": len(spec.rows), "hidden": spec.fast.dim}
        matrices = None if graphs.prefill is None else Session(graphs.prefill, options)
        session: Runner
        if graphs.compiled:
            (session,) = open_graphs(graphs.slow.parent, spec, ("slow",), options.threads)
        else:
            session = Session(graphs.slow, options)
        self._model = Transformer(session, spec.slow, widths, 1, positions, matrices)

    def step(self, x: np.ndarray) -> np.ndarray:
        self._model.input(len(x))[0] = x
        logits: np.ndarray = self._model.step(len(x))["logits"][0]
        return logits

    def rewind(self, length: int) -> None:
        self._model.lengths[:] = length


def compare(
    spec: DualARSpec,
    weights: Weights,
    graphs: Mapping[str, Graphs],
    options: RunOptions,
    *,
    kinds: Sequence[Kind] = ("q4_0", "q8_0"),
    contexts: Sequence[int] = (200, 1500),
    rounds: int = 5,
    steps: int = 8,
) -> dict[str, dict[str, Any]]:
    """Seconds of the slow model, measure -> arm -> figures of `summarize`: arms take turns within each round.

    graphs: arm -> a slow graph, float32 or quantized, of the same weights. Measures are "step_<context>", the
    mean of `steps` steps behind that many positions, and "prompt_<context>", of the shortest context. Both sides have
    `options.threads` threads and memory in huge pages where the system has them. llama.cpp is there twice: what it
    chooses by default is slower at long contexts on some processors. Raises EngineError without llama.cpp.
    """
    positions = max(contexts) + 1
    took: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as opened:
        with huge_pages():
            arms: dict[str, LlamaCpp | Ours] = {
                f"llama.cpp {kind}{note}": opened.enter_context(
                    LlamaCpp(spec, weights, kind, threads=options.threads, positions=positions, flash=flash)
                )
                for kind in kinds
                for flash, note in ((None, ""), (False, ", no flash attention"))
            }
            arms |= {name: Ours(own, spec, options, positions) for name, own in graphs.items()}
        prompt = np.random.default_rng(0).standard_normal((max(contexts), spec.slow.dim)).astype(np.float32) * 0.1
        for context in sorted(contexts):
            for arm in arms.values():
                arm.rewind(0)
                arm.step(prompt[:context])
                arm.step(prompt[:1])
            for _ in range(rounds):
                for name, arm in arms.items():
                    _seconds(arm, prompt[:1], context)  # what the arm before left in the processor's caches
                    took[f"step_{context}"][name].append(_seconds(arm, prompt[:1], context, steps))
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
