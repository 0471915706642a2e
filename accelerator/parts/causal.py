"""The part that a causal language model is: its embedding table and its graph, proven, on two backends.

What `language_model` is for dual autoregressive models. An adapter adds the spec, the weights and a trace; for models
of transformers they are in `llama`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..errors import BadOutput, SessionError
from ..export import proof
from ..export.component import Component, Export, Progress, ProgressEvent
from ..export.graph import causal as graphs
from ..export.graph import fitting, graph, quantize, rope, specs
from ..export.graph import transformer as blocks
from ..export.graph.causal import NAME, build_causal
from ..export.graph.quantize import BY_ROW, RECIPES, Recipe
from ..export.graph.specs import CausalSpec, KVRanges, Weights
from ..export.proof import BARS, Bar, Trace, compare_arrays, compare_logits, replay
from ..export.sources import source_of
from ..hardware import detect
from ..hardware.pages import huge_pages
from ..inference import batcher, stepper, transformer
from ..inference import embeddings as tables
from ..inference.batcher import CausalDecoder
from ..inference.compiled import open_graphs
from ..inference.embeddings import Table, write_table
from ..inference.transformer import Runner, TokenEmbeddings
from ..runtime.onnx import Session
from ..runtime.options import SHORT_SPIN_US, RunOptions
from .backends import COMPILED, compiled_kernels, onnx_runtime
from .part import Backend, Call

__all__ = [
    "CAUSAL",
    "EMBEDDINGS",
    "OUTSIDE",
    "causal_backends",
    "causal_components",
    "load_causal",
    "outside",
]

EMBEDDINGS, CAUSAL = "embeddings", "causal"
OUTSIDE = 1e-3  # of a step's probability may lie outside of a head that is cut, at most
_PROOF_THREADS = 2
_WIDE = f"wide_{NAME}"  # the same graph in integers by rows, for prompts
_SPEC = "spec.json"
_COMPILED = "compiled.json"  # says that compiled kernels answer to this graph's weights as they should


def causal_components(
    spec: CausalSpec,
    weights: Weights,
    identity: Callable[[], str],
    trace: Callable[[], Trace],
    *,
    dtype: str = "fp32",
    wide: bool | None = None,
    compiled: bool | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> tuple[Component, Component]:
    """The embedding table and the graph of a causal language model.

    weights: called while exporting only, "embeddings" [vocabulary, D] among them. trace: PyTorch's answers, recorded
    once; its `main_logits` [n, 1, vocabulary] or [n, vocabulary] are over the whole vocabulary, its key-value ranges as
    the model's own cache has them. dtype, wide, compiled, recipes: as for `language_model.language_model_components`.

    Two things are settled while building, by the trace. A head is cut to the spec's ranges only if PyTorch never gives
    more than `OUTSIDE` to all other ids; else it has the whole vocabulary. And where an int8 key-value cache misses the
    bar (large biases of keys may saturate it), the same weights get a float32 one.
    """
    compiled = kernels.available() if compiled is None else compiled
    if wide is None:
        wide = not {"amx_int8", *(() if compiled else ("avx512_vnni",))}.isdisjoint(detect().isa)
    export = _Exporter(spec, weights, cache(trace), dtype, wide, compiled, recipes)
    used = (graphs, blocks, rope, specs, graph, quantize, fitting, tables, transformer, stepper, batcher, proof)
    sources = (str(Path(__file__)), source_of(weights), *(source_of(each) for each in used))
    config = spec.to_dict()
    return (
        Component(EMBEDDINGS, identity, config, ("fp32",), export.build_table, export.prove_table, sources),
        Component(
            CAUSAL,
            identity,
            {**config, "engine_dtype": dtype, "wide": wide, "compiled": compiled},
            tuple(recipes),
            export.build,
            export.prove,
            (*sources, *(kernels.sources() if compiled else ())),
            {precision: vars(recipe) for precision, recipe in recipes.items()},
            spec.weight_bytes,
        ),
    )


@dataclass(frozen=True)
class _Exporter:
    """Builds and proves the two components: arguments as for `causal_components`."""

    spec: CausalSpec
    weights: Weights
    trace: Callable[[], Trace]
    dtype: str
    wide: bool
    compiled: bool
    recipes: Mapping[str, Recipe]

    def build_table(self, directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(EMBEDDINGS, "build", 0, 1, precision))
        write_table(directory / f"{EMBEDDINGS}.npy", self.weights(EMBEDDINGS))

    def prove_table(self, directory: Path, precision: str) -> dict[str, Any]:
        expected, table = self.weights(EMBEDDINGS), Table(directory / f"{EMBEDDINGS}.npy")
        rows = np.unique(np.linspace(0, len(expected) - 1, 257).astype(np.int64))
        return compare_arrays([(expected[rows], table[rows])], 0.0)

    def build(self, directory: Path, precision: str, progress: Progress) -> None:
        recipe, spec = self.recipes[precision], _settled(self.spec, self.trace())
        weights = _counting(self.weights, 3 + 6 * spec.stack.layers, precision, progress)
        (directory / _SPEC).write_text(json.dumps(spec.to_dict()))
        ranges = self._ranges() if recipe.kv_bits == 8 else None
        build_causal(directory, spec, weights, recipe, ranges)
        if ranges is not None and not self._compared(directory, self._bar(precision), NAME)["passed"]:
            ranges = None
            build_causal(directory, spec, weights, recipe)
        if self.wide and recipe.bits < 32:  # the same ranges: both work on one cache
            build_causal(directory, spec, weights, BY_ROW, ranges, name=_WIDE)

    def prove(self, directory: Path, precision: str) -> dict[str, Any]:
        bar = self._bar(precision)
        if precision != "fp32" and not (structure := self._structure)["passed"]:
            return {**structure, "structure": structure}
        report = self._compared(directory, bar, NAME)
        report["outside"] = outside(_logits(self.trace()), _spec_in(directory).rows)
        if (directory / f"{_WIDE}.onnx").exists():
            report["wide"] = self._prove_wide(directory, bar)
        if self.compiled and precision != "fp32":
            report["compiled"] = self._prove_compiled(directory, bar)
        return report if precision == "fp32" else {**report, "structure": structure}

    def _bar(self, precision: str) -> Bar:
        return BARS["fp32/bf16" if precision == "fp32" and self.dtype != "fp32" else precision]

    def _ranges(self) -> KVRanges | None:
        keys, values = self.trace().key_range, self.trace().value_range
        return None if keys is None or values is None else KVRanges(keys, values)

    @cached_property
    def _structure(self) -> dict[str, Any]:
        """The same graph with float32 weights, which no quantization noise excuses. Built aside, then deleted."""
        with tempfile.TemporaryDirectory(prefix="structure-") as aside:
            spec = _settled(self.spec, self.trace())
            (Path(aside) / _SPEC).write_text(json.dumps(spec.to_dict()))
            build_causal(Path(aside), spec, self.weights, RECIPES["fp32"])
            return self._compared(Path(aside), self._bar("fp32"), NAME)

    def _prove_wide(self, directory: Path, bar: Bar) -> dict[str, Any]:
        """Prompts by the wide graph and steps by the other; and all of it by the wide one, as in a batch with AMX."""
        report = {"prompts": self._compared(directory, bar, NAME, _WIDE), "all": self._compared(directory, bar, _WIDE)}
        passed = all(each["passed"] for each in report.values())
        if not passed:  # the export is published without it
            for file in directory.glob(f"{_WIDE}.*"):
                file.unlink()
        return {"passed": passed, **report}

    def _prove_compiled(self, directory: Path, bar: Bar) -> dict[str, Any]:
        """Compiled kernels over the same weights, held to the same bar."""
        try:
            report = self._judged(directory, open_graphs(directory, _spec_in(directory), [NAME], _PROOF_THREADS), bar)
        except (SessionError, BadOutput) as error:  # sizes that they are not made for, or answers that cannot be right
            return {"passed": False, "error": str(error)}
        if report["passed"]:
            (directory / _COMPILED).write_text(json.dumps({"passed": True}))
        return report

    def _compared(self, directory: Path, bar: Bar, *names: str) -> dict[str, Any]:
        options = RunOptions(threads=_PROOF_THREADS)
        return self._judged(directory, [Session(directory / f"{name}.onnx", options) for name in names], bar)

    def _judged(self, directory: Path, sessions: Sequence[Runner], bar: Bar) -> dict[str, Any]:
        """The figures of a graph that is fed with the trace's tokens; of two, the second one runs the prompt."""
        spec, trace = _spec_in(directory), self.trace()
        prompts = (sessions[1], False) if len(sessions) > 1 else None
        decoder = CausalDecoder(spec, sessions[0], TokenEmbeddings(self.weights(EMBEDDINGS)), wide=prompts)
        expected = replace(trace, main_logits=_logits(trace)[:, spec.rows])
        answers = replay(lambda prompt, recorder, n: decoder.generate(prompt[0], recorder, n), expected)
        report = compare_logits({"main": (expected.main_logits, answers.main_logits)}, bar)
        kv_bits = 8 if sessions[0].inputs["past_key.0"][0] is np.int8 else 32
        return {**report, "frames": len(trace.frames), "kv_bits": kv_bits}


def outside(logits: np.ndarray, rows: np.ndarray) -> float:
    """The largest share of a step's probability, over logits [n, vocabulary], of ids that are not among `rows`."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(1 - shares[:, rows].sum(axis=1).min()) if len(rows) < logits.shape[1] else 0.0


def _settled(spec: CausalSpec, trace: Trace) -> CausalSpec:
    """The spec, or the one with a whole head where the cut would change what is drawn."""
    logits = _logits(trace)
    if outside(logits, spec.rows) <= OUTSIDE:
        return spec
    return replace(spec, ranges=((0, logits.shape[1]),))


def _logits(trace: Trace) -> np.ndarray:
    """[n, vocabulary]"""
    return trace.main_logits.reshape(len(trace.main_logits), -1)


def _counting(weights: Weights, total: int, precision: str, progress: Progress) -> Weights:
    """Weights that tell how many of about `total` have been read."""
    seen = 0

    def counted(name: str) -> np.ndarray:
        nonlocal seen
        seen += 1
        progress(ProgressEvent(CAUSAL, "build", min(seen, total), total, precision))
        return weights(name)

    return counted


def _spec_in(directory: Path) -> CausalSpec:
    """What an export was built with."""
    return CausalSpec.from_dict(json.loads((directory / _SPEC).read_text()))


def causal_backends(
    components: tuple[Component, Component], load: Callable[[Mapping[str, Path], RunOptions], Call]
) -> tuple[Backend, ...]:
    """Compiled kernels and ONNX Runtime, over the same two exports. load: makes the part's call of either."""

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        return (exports[CAUSAL].path / _COMPILED).exists()

    return (
        compiled_kernels(components, load, available=kernels.available, proven=proven),
        onnx_runtime(components, load),
    )


def load_causal(paths: Mapping[str, Path], options: RunOptions) -> CausalDecoder:
    """A decoder over the two exports of `causal_components`; `decoder.spec.rows` are the ids that its head has."""
    directory, compiled = paths[CAUSAL], options.backend == COMPILED
    spec, isa = _spec_in(directory), detect().isa
    embeddings, prompts = TokenEmbeddings(Table(paths[EMBEDDINGS] / f"{EMBEDDINGS}.npy")), directory / f"{_WIDE}.onnx"
    wide, beside = None, replace(options, backend="onnxruntime", spin_us=SHORT_SPIN_US) if compiled else options
    with huge_pages():  # a step reads all weights
        graph = (
            open_graphs(directory, spec, [NAME], options.threads)[0]
            if compiled
            else Session(directory / f"{NAME}.onnx", options)
        )
        # Compiled kernels have no matrix instructions; without these they are the faster ones for prompts, too.
        if prompts.exists() and ("amx_int8" in isa or not compiled):
            wide = Session(prompts, beside), not compiled and "amx_int8" in isa
    return CausalDecoder(spec, graph, embeddings, wide=wide)
