"""The language model part shared by all dual autoregressive engines; an adapter adds weights, prompts and rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..errors import BadOutput, SessionError
from ..export.component import Built, Component
from ..export.graph.dual_ar import DualARSpec, Weights
from ..export.graph.quantize import BY_ROW, RECIPES, Recipe
from ..export.proof import BARS, Bar, compare_arrays, compare_logits, replay
from ..export.trace import Trace
from ..hardware.pages import huge_pages
from ..inference.batcher import DualARDecoder
from ..inference.compiled import open_graphs
from ..inference.embeddings import Table
from ..inference.transformer import Embeddings, Runner
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from . import graphs
from .backends import COMPILED, KERNEL_SLACK, beside_steps, nearer, over_graphs, wants_prefill
from .graphs import EMBEDDINGS, GRAPHS, LANGUAGE_MODEL, PREFILL, TABLES, prefill_names
from .part import Backend, Call

__all__ = [
    "EMBEDDINGS",
    "LANGUAGE_MODEL",
    "PREFILL",
    "language_model_backends",
    "language_model_components",
    "load_language_model",
]

_PROOF_THREADS = 2


def language_model_components(
    spec: DualARSpec,
    weights: Weights,
    identity: Callable[[], str],
    trace: Callable[[], Trace],
    *,
    dtype: str = "fp32",
    prefill: bool | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> tuple[Component, ...]:
    """The embedding tables and the graphs of a dual autoregressive model, and perhaps its graphs for prefill.

    weights: called only while exporting. trace: PyTorch's answers, recorded once and kept for all precisions. dtype:
    what the engine computes in, "fp32" or "bf16"; an engine that rounds to bfloat16 cannot be matched to float32's bar.
    prefill: whether to add prefill graphs, quantized by rows, which run prompts twice as fast with AVX512-VNNI and
    several times as fast with AMX, where large batches gain too; None decides by this machine. Compiled kernels, where
    available, are proven with the graphs' weights; next to them, prefill graphs pay only with AMX. recipes: what each
    precision means; recipes other than the shipped ones make other exports, judged by the same bars.
    """
    config = spec.to_dict()
    quantized = tuple(precision for precision, recipe in recipes.items() if recipe.kv_bits == 8)
    proof = _Proof(spec, weights, trace, BARS["fp32" if dtype == "fp32" else "fp32/bf16"])
    shape = {**config, "engine_dtype": dtype}
    made = (
        Component(
            EMBEDDINGS,
            identity,
            config,
            ("fp32",),
            graphs.tables(weights),
            proof.of_tables,
            builders=(weights,),
            judges=(weights,),
            runs=False,
        ),
        Component(
            LANGUAGE_MODEL,
            identity,
            shape,
            tuple(recipes),
            graphs.graphs(spec, weights, recipes, proof.trace),
            proof.of_graphs,
            builders=(weights, trace),
            judges=(weights, trace),
            kernels=kernels.kind,
            recipes={precision: vars(recipe) for precision, recipe in recipes.items()},
            weight_bytes=spec.weight_bytes,
        ),
        Component(
            PREFILL,
            identity,
            shape,
            quantized,
            graphs.prefill_graphs(spec, weights),
            proof.of_prefill,
            builders=(weights,),
            judges=(weights, trace),
            recipes=dict.fromkeys(quantized, vars(BY_ROW)),
            beside=LANGUAGE_MODEL,
        ),
    )
    return made if (wants_prefill() if prefill is None else prefill) else made[:2]


class _Proof:
    """Compares the exports of a model with PyTorch's answers."""

    def __init__(self, spec: DualARSpec, weights: Weights, trace: Callable[[], Trace], exact: Bar) -> None:
        """exact: the bar for float32."""
        self._spec, self._weights, self._record, self._exact = spec, weights, trace, exact
        self._recorded: list[Trace] = []
        self._structure: list[dict[str, Any]] = []

    def trace(self) -> Trace:
        """PyTorch's answers."""
        if not self._recorded:
            self._recorded.append(self._record())
        return self._recorded[0]

    def of_tables(self, built: Built) -> dict[str, Any]:
        pairs = []
        for name in TABLES:
            expected, table = self._weights(name), Table(built.path / f"{name}.npy")
            rows = np.unique(np.linspace(0, len(expected) - 1, 257).astype(np.int64))
            pairs.append((expected[rows], table[rows]))
        return compare_arrays(pairs, 0.0)

    def of_graphs(self, built: Built) -> dict[str, Any]:
        """The graphs in ONNX Runtime, and by compiled kernels under "compiled" where there are some."""
        if built.precision == "fp32":
            return self._compared(built.path, self._exact, built.options(threads=_PROOF_THREADS))
        if not self._structure:
            self._structure.append(self._of_structure(built.scratch))
        structure = self._structure[0]
        if not structure["passed"]:
            return {**structure, "structure": structure}
        report = self._compared(built.path, BARS[built.precision], built.options(threads=_PROOF_THREADS))
        compiled = {"compiled": self._of_kernels(built.path, report)} if kernels.available() else {}
        return {**report, **compiled, "structure": structure}

    def of_prefill(self, built: Built) -> dict[str, Any]:
        """Prompts by the prefill graphs and steps by the others; then everything by the former, as in a batch."""
        assert built.beside is not None
        beside, options, bar = built.beside, built.options(threads=_PROOF_THREADS), BARS[built.precision]
        own = [Session(built.path / f"{name}.onnx", options) for name in prefill_names()]
        others = [Session(beside.path / f"{name}.onnx", options) for name in GRAPHS]
        prompts, everything = self._judged([*others, *own], bar), self._judged(own, bar)
        passed = all(r["passed"] or nearer(r, beside.proof) for r in (prompts, everything))
        return {**prompts, "passed": passed, "prompts": prompts, "all": everything}

    def _of_structure(self, scratch: Path) -> dict[str, Any]:
        graphs.float32_graphs(scratch, self._spec, self._weights)
        return self._compared(scratch, self._exact, RunOptions(threads=_PROOF_THREADS, prepack=False))

    def _of_kernels(self, directory: Path, beside: Mapping[str, Any]) -> dict[str, Any]:
        """Compiled kernels over the same weights, held to the same bar. usable: whether they may replace the graphs."""
        try:
            report = self._judged(open_graphs(directory, self._spec, GRAPHS, _PROOF_THREADS), Bar(**beside["bar"]))
        except (SessionError, BadOutput) as error:  # unsupported sizes, or answers that cannot be right
            return {"passed": False, "usable": False, "error": str(error)}
        return {**report, "usable": report["passed"] or nearer(report, beside, KERNEL_SLACK)}

    def _compared(self, directory: Path, bar: Bar, options: RunOptions) -> dict[str, Any]:
        return self._judged([Session(directory / f"{name}.onnx", options) for name in GRAPHS], bar)

    def _judged(self, sessions: Sequence[Runner], bar: Bar) -> dict[str, Any]:
        trace = self.trace()
        slow, fast, *prefill = sessions
        pair = (prefill[0], prefill[1]) if prefill else None
        embeddings = _WeightEmbeddings(self._spec, self._weights)
        answers = replay(DualARDecoder(self._spec, slow, fast, embeddings, prefill_graphs=pair).generate, trace)
        pairs = {
            "main": (trace.main_logits, answers.main_logits),
            "codes": (trace.code_logits, answers.code_logits),
        }
        return {**compare_logits(pairs, bar), "frames": len(trace.frames)}


def language_model_backends(
    components: tuple[Component, ...], load: Callable[[Mapping[str, Path], RunOptions], Call]
) -> tuple[Backend, ...]:
    """Compiled kernels and ONNX Runtime, over the same exports. load: makes the part's call of either."""
    return over_graphs(components, load, LANGUAGE_MODEL)


def load_language_model(paths: Mapping[str, Path], options: RunOptions) -> DualARDecoder:
    """A decoder over the exports of `language_model_components`: with prefill graphs if they are among them.

    Compiled kernels do not use AMX, so with AMX these run prompts for both backends, and steps of ONNX Runtime too.
    Without AMX they are faster only for ONNX Runtime's prompts.
    """
    directory = paths[LANGUAGE_MODEL]
    spec = DualARSpec.from_dict(json.loads((directory / "spec.json").read_text()))
    pair: tuple[Runner, Runner | None] | None = None
    with huge_pages():  # a step reads all weights
        slow: Runner
        fast: Runner
        if options.backend == COMPILED:
            slow, fast = open_graphs(directory, spec, GRAPHS, options.threads)
        else:
            slow, fast = (Session(directory / f"{name}.onnx", options) for name in GRAPHS)
        if PREFILL in paths and (beside := beside_steps(options)) is not None:
            sessions, steps = beside
            prompts, stepping = (paths[PREFILL] / f"{name}.onnx" for name in prefill_names())
            pair = Session(prompts, sessions), Session(stepping, sessions) if steps else None
    return DualARDecoder(spec, slow, fast, Embeddings(paths[EMBEDDINGS], spec), prefill_graphs=pair)


class _WeightEmbeddings(Embeddings):
    """Embeddings straight from the engine's weights, so that the proof of the graphs needs no other export."""

    def __init__(self, spec: DualARSpec, weights: Weights) -> None:
        self._prepare(spec, *(weights(name) for name in TABLES))
