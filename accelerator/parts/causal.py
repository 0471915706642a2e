"""A causal language model as a part: its embedding table and its graph, proven, on two backends.

The counterpart of `language_model`, which is for dual autoregressive models. An adapter adds the spec, the weights and
a trace; `llama` has them for models of transformers.
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
from ..export.component import Built, Component, Export, Progress, ProgressEvent, counted
from ..export.graph.causal import NAME, build_causal
from ..export.graph.quantize import BY_ROW, RECIPES, Recipe
from ..export.graph.specs import CausalSpec, KVRanges, Weights
from ..export.proof import BARS, Bar, compare_arrays, compare_logits, replay
from ..export.trace import Trace
from ..hardware.pages import huge_pages
from ..inference.batcher import CausalDecoder
from ..inference.compiled import open_graphs
from ..inference.embeddings import Table, write_table
from ..inference.transformer import Runner, TokenEmbeddings
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from .backends import COMPILED, KERNEL_SLACK, beside_steps, nearer, over_graphs, wants_prefill
from .part import Backend, Call

__all__ = [
    "CAUSAL",
    "EMBEDDINGS",
    "OUTSIDE",
    "PREFILL",
    "causal_backends",
    "causal_components",
    "exported_spec",
    "is_float",
    "load_causal",
    "outside",
    "stored_components",
]

EMBEDDINGS, CAUSAL, PREFILL = "embeddings", "causal", "prefill"
OUTSIDE = 1e-3  # the most probability of a step that a cut head may leave out, unless an engine says otherwise
_PROOF_THREADS = 2
_PROVING = RunOptions(threads=_PROOF_THREADS)
_PREFILL = f"{PREFILL}_{NAME}"  # the same graph, quantized by rows
_SPEC, _RANGES, _FLOAT = "spec.json", "ranges.npy", "float32"


def causal_components(
    spec: CausalSpec,
    weights: Weights,
    identity: Callable[[], str],
    trace: Callable[[], Trace],
    *,
    dtype: str = "fp32",
    prefill: bool | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
    witnesses: Callable[[], Sequence[Trace]] | None = None,
    outside: float = OUTSIDE,
) -> tuple[Component, ...]:
    """The embedding table and the graph of a causal language model, and perhaps a graph for prefill.

    weights: called only while exporting, "embeddings" [vocabulary, D] among them. trace: PyTorch's answers, recorded
    once; its `main_logits` [n, 1, vocabulary] or [n, vocabulary] are over the whole vocabulary, its key-value ranges as
    the model's own cache has them. dtype, prefill, recipes: as for `language_model.language_model_components`.

    Traces settle two things while building. The head is cut to the spec's ranges only if PyTorch never gives more than
    `outside` to all other ids, in the trace and in `witnesses`, those of requests of other kinds, which are asked for
    only where the spec leaves ids out; otherwise it has the whole vocabulary. And where an int8 key-value cache misses
    the bar (large key biases may saturate it), the same weights get a float32 cache, unless that misses it as well.
    """
    if prefill is None:
        prefill = wants_prefill()
    export = _Exporter(spec, weights, cache(trace), dtype, recipes, witnesses, outside)
    config = {**spec.to_dict(), "engine_dtype": dtype, "outside": outside}
    quantized = tuple(precision for precision, recipe in recipes.items() if recipe.kv_bits == 8)
    given = (weights, trace)
    builders = given if witnesses is None else (*given, witnesses)
    made = (
        Component(
            EMBEDDINGS,
            identity,
            spec.to_dict(),
            ("fp32",),
            export.build_table,
            export.prove_table,
            given,
            given,
            runs=False,
        ),
        Component(
            CAUSAL,
            identity,
            config,
            tuple(recipes),
            export.build,
            export.prove,
            builders,
            builders,
            kernels.kind,
            {precision: vars(recipe) for precision, recipe in recipes.items()},
            spec.weight_bytes,
        ),
        Component(
            PREFILL,
            identity,
            config,
            quantized,
            export.build_prefill,
            export.prove_prefill,
            given,
            given,
            recipes=dict.fromkeys(quantized, vars(BY_ROW)),
            beside=CAUSAL,
        ),
    )
    return made if prefill else made[:2]


@dataclass(frozen=True)
class _Exporter:
    """Builds and proves the components: arguments as for `causal_components`."""

    spec: CausalSpec
    weights: Weights
    trace: Callable[[], Trace]
    dtype: str
    recipes: Mapping[str, Recipe]
    witnesses: Callable[[], Sequence[Trace]] | None = None
    most: float = OUTSIDE  # probability outside of a cut head

    def build_table(self, directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(EMBEDDINGS, "build", 0, 1, precision))
        write_table(directory / f"{EMBEDDINGS}.npy", self.weights(EMBEDDINGS))

    def prove_table(self, built: Built) -> dict[str, Any]:
        expected, table = self.weights(EMBEDDINGS), Table(built.path / f"{EMBEDDINGS}.npy")
        rows = np.unique(np.linspace(0, len(expected) - 1, 257).astype(np.int64))
        return compare_arrays([(expected[rows], table[rows])], 0.0)

    def build(self, directory: Path, precision: str, progress: Progress) -> None:
        recipe, spec = self.recipes[precision], self._settled
        weights = self._counted(CAUSAL, precision, progress)
        (directory / _SPEC).write_text(json.dumps(spec.to_dict()))
        if recipe.bits == recipe.head_bits == 32:
            (directory / _FLOAT).write_text("nothing is quantized\n")
        ranges = self._ranges() if recipe.kv_bits == 8 else None
        build_causal(directory, spec, weights, recipe, ranges)
        if ranges is not None and not (narrow := self._compared(directory, self._bar(precision), NAME))["passed"]:
            build_causal(directory, spec, weights, recipe)
            if nearer(narrow, self._compared(directory, self._bar(precision), NAME), KERNEL_SLACK):
                build_causal(directory, spec, weights, recipe, ranges)  # it is not the cache that misses the bar
            else:
                ranges = None
        if ranges is not None:
            np.save(directory / _RANGES, np.stack([ranges.keys, ranges.values]))

    def build_prefill(self, directory: Path, precision: str, progress: Progress, beside: Export) -> None:
        """The prefill graph works on the other graph's cache: int8 by the same ranges, or float32."""
        ranges = beside.path / _RANGES
        kept = KVRanges(*np.load(ranges)) if ranges.exists() else None
        weights = self._counted(PREFILL, precision, progress)
        build_causal(directory, exported_spec(beside.path), weights, BY_ROW, kept, name=_PREFILL)

    def prove(self, built: Built) -> dict[str, Any]:
        """The graph in ONNX Runtime, and by compiled kernels under "compiled" where there are some."""
        if built.precision == "fp32":
            return self.proven(built.path, built.precision, built.options(threads=_PROOF_THREADS))
        if not (structure := self._structure)["passed"]:
            return {**structure, "structure": structure}
        return {
            **self.proven(built.path, built.precision, built.options(threads=_PROOF_THREADS)),
            "structure": structure,
        }

    def proven(self, directory: Path, precision: str, options: RunOptions = _PROVING) -> dict[str, Any]:
        bar = self._bar(precision)
        report = self._compared(directory, bar, NAME, options=options)
        report["outside"] = self._outside(exported_spec(directory).rows)
        if precision != "fp32" and kernels.available():
            report["compiled"] = self._prove_compiled(directory, bar, report)
        return report

    def prove_prefill(self, built: Built) -> dict[str, Any]:
        assert built.beside is not None
        return self.proven_prefill(
            built.path, built.beside.path, built.precision, built.options(threads=_PROOF_THREADS)
        )

    def proven_prefill(
        self, directory: Path, beside: Path, precision: str, options: RunOptions = _PROVING
    ) -> dict[str, Any]:
        """Prompts by this graph and steps by the other; then everything by this one, as in a batch with AMX."""
        bar = self._bar(precision)
        own = Session(directory / f"{_PREFILL}.onnx", options)
        other = Session(beside / f"{NAME}.onnx", options)
        prompts, everything = (self._judged(beside, graphs, bar) for graphs in ([other, own], [own]))
        return {**prompts, "passed": prompts["passed"] and everything["passed"], "prompts": prompts, "all": everything}

    def _bar(self, precision: str) -> Bar:
        return BARS["fp32/bf16" if precision == "fp32" and self.dtype != "fp32" else precision]

    def _counted(self, component: str, precision: str, progress: Progress) -> Weights:
        """The weights, reporting progress as they are asked for."""
        total = 3 + 6 * self.spec.stack.layers  # about
        return counted(self.weights, total, ProgressEvent(component, "build", precision=precision), progress)

    def _ranges(self) -> KVRanges | None:
        keys, values = self.trace().key_range, self.trace().value_range
        return None if keys is None or values is None else KVRanges(keys, values)

    @cached_property
    def _settled(self) -> CausalSpec:
        """The spec, or the one with a whole head where the cut would change what is drawn."""
        if self._outside(self.spec.rows) <= self.most:
            return self.spec
        return replace(self.spec, ranges=((0, _logits(self.trace()).shape[1]),))

    def _outside(self, rows: np.ndarray) -> float:
        """The largest share of a step's probability, in all traces, of ids that are not among `rows`."""
        if len(rows) == _logits(self.trace()).shape[1]:
            return 0.0
        return max(outside(_logits(trace), rows) for trace in (self.trace(), *self._others))

    @cached_property
    def _others(self) -> Sequence[Trace]:
        return () if self.witnesses is None else self.witnesses()

    @cached_property
    def _structure(self) -> dict[str, Any]:
        """The same graph with float32 weights, free of quantization noise. Built in a temporary directory."""
        with tempfile.TemporaryDirectory(prefix="structure-") as aside:
            spec = self._settled
            (Path(aside) / _SPEC).write_text(json.dumps(spec.to_dict()))
            build_causal(Path(aside), spec, self.weights, RECIPES["fp32"])
            return self._compared(Path(aside), self._bar("fp32"), NAME)

    def _prove_compiled(self, directory: Path, bar: Bar, beside: Mapping[str, Any]) -> dict[str, Any]:
        """Compiled kernels over the same weights, held to the same bar. usable: whether they may replace the graph."""
        try:
            report = self._judged(
                directory, open_graphs(directory, exported_spec(directory), [NAME], _PROOF_THREADS), bar
            )
        except (SessionError, BadOutput) as error:  # unsupported sizes, or answers that cannot be right
            return {"passed": False, "usable": False, "error": str(error)}
        return {**report, "usable": report["passed"] or nearer(report, beside, KERNEL_SLACK)}

    def _compared(self, directory: Path, bar: Bar, name: str, *, options: RunOptions = _PROVING) -> dict[str, Any]:
        return self._judged(directory, [Session(directory / f"{name}.onnx", options)], bar)

    def _judged(self, directory: Path, sessions: Sequence[Runner], bar: Bar) -> dict[str, Any]:
        """The figures of a graph that is fed the trace's tokens; of two graphs the second one runs the prompt."""
        spec, trace = exported_spec(directory), self.trace()
        prompts = (sessions[1], False) if len(sessions) > 1 else None
        decoder = CausalDecoder(spec, sessions[0], TokenEmbeddings(self.weights(EMBEDDINGS)), prefill_graph=prompts)
        expected = replace(trace, main_logits=_logits(trace)[:, spec.rows])
        answers = replay(lambda prompt, recorder, n: decoder.generate(prompt[0], recorder, n), expected)
        report = compare_logits({"main": (expected.main_logits, answers.main_logits)}, bar)
        kv_bits = 8 if sessions[0].inputs["past_key.0"][0] is np.int8 else 32
        return {**report, "frames": len(trace.frames), "kv_bits": kv_bits}


def stored_components(
    directory: Path, precision: str, identity: Callable[[], str], trace: Callable[[], Trace], *, dtype: str = "fp32"
) -> tuple[Component, ...]:
    """What `causal_components` once wrote into one directory, to be proven on this machine: nothing is built or copied.

    Their entries have proofs only; what is to be loaded is in `directory`. precision: of the graph there. identity: of
    the directory's files. trace: PyTorch's answers, recorded when they were written. dtype: as for
    `causal_components`.
    """
    recipes = {precision: RECIPES[precision]}
    export = _Exporter(exported_spec(directory), lambda name: _table(directory), cache(trace), dtype, recipes)
    stored = _Stored(export, directory)
    config = {"engine_dtype": dtype}
    how: dict[str, Any] = {"recipes": {precision: vars(RECIPES[precision])}, "in_torch": False}
    graph = Component(
        CAUSAL,
        identity,
        config,
        (precision,),
        stored.build,
        stored.prove,
        kernels=kernels.kind,
        weight_bytes=export.spec.weight_bytes,
        **how,
    )
    if not (directory / f"{_PREFILL}.onnx").is_file() or not wants_prefill():
        return (graph,)
    prefill = (PREFILL, identity, config, (precision,), stored.build, stored.prove_prefill)
    return graph, Component(*prefill, beside=CAUSAL, **how)


@dataclass(frozen=True)
class _Stored:
    """Proves what lies in a directory already."""

    export: _Exporter
    directory: Path

    def build(self, place: Path, precision: str, progress: Progress, beside: Export | None = None) -> None:
        (place / _SPEC).write_text((self.directory / _SPEC).read_text())

    def prove(self, built: Built) -> dict[str, Any]:
        return self.export.proven(self.directory, built.precision, built.options(threads=_PROOF_THREADS))

    def prove_prefill(self, built: Built) -> dict[str, Any]:
        options = built.options(threads=_PROOF_THREADS)
        return self.export.proven_prefill(self.directory, self.directory, built.precision, options)


def _table(directory: Path) -> Any:
    return Table(directory / f"{EMBEDDINGS}.npy")


def outside(logits: np.ndarray, rows: np.ndarray) -> float:
    """The largest share of a step's probability, over logits [n, vocabulary], of ids that are not among `rows`."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(1 - shares[:, rows].sum(axis=1).min()) if len(rows) < logits.shape[1] else 0.0


def _logits(trace: Trace) -> np.ndarray:
    """[n, vocabulary]"""
    return trace.main_logits.reshape(len(trace.main_logits), -1)


def exported_spec(directory: Path) -> CausalSpec:
    """The spec that an export was built with."""
    return CausalSpec.from_dict(json.loads((directory / _SPEC).read_text()))


def is_float(directory: Path) -> bool:
    """Whether an export's matrices are as the model has them."""
    return (directory / _FLOAT).exists()


def causal_backends(
    components: tuple[Component, ...], load: Callable[[Mapping[str, Path], RunOptions], Call]
) -> tuple[Backend, ...]:
    """Compiled kernels and ONNX Runtime, over the same exports. load: makes the part's call of either."""
    return over_graphs(components, load, CAUSAL)


def load_causal(paths: Mapping[str, Path], options: RunOptions) -> CausalDecoder:
    """A decoder over the exports of `causal_components`; `decoder.spec.rows` are the ids that its head has.

    Compiled kernels do not use AMX, so with AMX the prefill graph runs prompts for both backends, and steps of ONNX
    Runtime too. Without AMX it is faster only for ONNX Runtime's prompts.
    """
    directory = paths[CAUSAL]
    spec, embeddings = exported_spec(directory), TokenEmbeddings(Table(paths[EMBEDDINGS] / f"{EMBEDDINGS}.npy"))
    prefill = None
    with huge_pages():  # a step reads all weights
        graph: Runner
        if options.backend == COMPILED:
            (graph,) = open_graphs(directory, spec, [NAME], options.threads)
        else:
            graph = Session(directory / f"{NAME}.onnx", options)
        if PREFILL in paths and (beside := beside_steps(options)) is not None:
            sessions, steps = beside
            prefill = Session(paths[PREFILL] / f"{_PREFILL}.onnx", sessions), steps
    return CausalDecoder(spec, graph, embeddings, prefill_graph=prefill)
