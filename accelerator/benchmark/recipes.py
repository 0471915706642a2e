"""What each way of storing weights costs a trained voice: candidates beside the shipped precisions, step by step.

    result = run(RecipeOptions(sentences=12), report=print)    # JSON-able
    print(to_markdown(result))

The float32 export speaks held-out sentences with the voice's own sampling, seeded; every recipe's export is then fed
the same frames (teacher forcing), and its logits at each step are held against float32's. Nothing is timed: the figures
are the same on every run. The divergence of a frame is that of its main token and of all its codes, summed: that of
whole frames' distributions, by the chain rule. `quality` takes the same candidates by name and lets them speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import ContentCache
from ..engines.reference import ReferenceAdapter
from ..errors import InvalidOption
from ..export.component import Component, Export, export_component
from ..export.graph.dual_ar import DualARSpec, Weights
from ..export.graph.quantize import RECIPES, Recipe, dequantize_blocks, quantize_blocks
from ..export.proof import BARS, Trace, compare_logits, replay
from ..inference.batcher import DualARDecoder
from ..inference.sampling import Sampler
from ..inference.transformer import Embeddings
from ..parts.language_model import EMBEDDINGS, LANGUAGE_MODEL
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from ..speech import SamplingParams
from .candidates import CANDIDATES, SLOT, adapter_of, check_names
from .machine import describe_machine
from .quality import held_out, trained_voice

if TYPE_CHECKING:
    from ..reference import ReferenceEngine

__all__ = ["RecipeOptions", "run", "to_markdown"]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """voice: a file of `ReferenceEngine.save`; None is the bundled one. recipes: of `CANDIDATES`. sentences: of the
    held-out list. frames: of a sentence, at most."""

    voice: Path | None = None
    recipes: tuple[str, ...] = tuple(CANDIDATES)
    sentences: int = 12
    frames: int = 256
    cache_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_names(self.recipes)
        if self.sentences < 1 or self.frames < 1:
            raise InvalidOption("sentences and frames must be at least 1")


def run(options: RecipeOptions, *, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Export every arm that is not in the cache yet, speak once in float32, compare. Raises EngineError, InvalidOption,
    ExportError for an arm whose structure is wrong."""
    engine = trained_voice(options.voice)
    texts = held_out()
    if options.sentences > len(texts):
        raise InvalidOption(f"there are {len(texts)} held-out sentences, not {options.sentences}")
    cache = ContentCache(options.cache_dir)
    report("float32 speaks the sentences")
    exact = _decoder(ReferenceAdapter(engine), "fp32", cache)[0]
    traces = [_trace(engine, exact, text, index, options) for index, text in enumerate(texts[: options.sentences])]
    rows = []
    of_int4: np.ndarray | None = None
    for name, adapter, precision in _arms(engine, options.recipes):
        decoder, export = _decoder(adapter, precision, cache)
        recipe = RECIPES[precision] if name in RECIPES else CANDIDATES[name]
        figures = [_figures(trace, decoder, precision) for trace in traces]
        nats = np.array([f["main_kl"][0] + f["codes_kl"][0] for f in figures])
        of_int4 = nats if name == SLOT else of_int4
        frames = [len(trace.frames) for trace in traces]
        rows.append(
            {
                "recipe": name,
                **vars(recipe),
                **_stored(*adapter.backbone(), recipe),
                "frame_kl": _ratio(nats, frames, options.seed),
                "times_int4": None if of_int4 is None else _ratio(nats, of_int4, options.seed),
                **{
                    figure: _ratio([f[figure][0] for f in figures], [f[figure][1] for f in figures], options.seed)
                    for figure in figures[0]
                },
                "proof": {k: export.proof.get(k) for k in ("passed", "kl", "relative_error", "main", "codes", "bar")},
            }
        )
        report(_told(rows[-1]))
    return {
        "machine": describe_machine(),
        "voice": str(options.voice or "bundled"),
        "sentences": len(traces),
        "frames": sum(len(trace.frames) for trace in traces),
        "seed": options.seed,
        "rows": rows,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The table, with 95 % intervals over sentences."""
    lines = [
        f"{result['frames']} frames of {result['sentences']} held-out sentences, spoken by float32 and fed to each; in "
        "brackets 95 % intervals of a bootstrap over sentences.",
        "",
        "| recipe | MB | weight error | KL of a frame, nats | times int4's | KL of the main token, same best "
        "| KL of a code, same best | relative error of logits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        times = "" if row["times_int4"] is None else _interval(row["times_int4"], "{:.2f}")
        lines.append(
            f"| {row['recipe']} | {row['bytes'] / 1e6:.2f} | {100 * row['weight_error']:.2f} % "
            f"| {_interval(row['frame_kl'], '{:.3f}')} | {times} "
            f"| {row['main_kl'][0]:.4f}, {100 * row['main_agreement'][0]:.1f} % "
            f"| {row['codes_kl'][0]:.4f}, {100 * row['codes_agreement'][0]:.1f} % "
            f"| {row['main_relative_error'][0]:.3f}, {row['codes_relative_error'][0]:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _arms(engine: ReferenceEngine, recipes: Sequence[str]) -> Iterator[tuple[str, ReferenceAdapter, str]]:
    """(name, adapter, precision): the shipped precisions, then the candidates."""
    shipped = ReferenceAdapter(engine)
    for precision in RECIPES:
        yield precision, shipped, precision
    for name in recipes:  # int4 came before: they are held against it
        yield name, adapter_of(engine, name), SLOT


def _decoder(adapter: ReferenceAdapter, precision: str, cache: ContentCache) -> tuple[DualARDecoder, Export]:
    """The language model by its one-row graphs, for prompts too: what is compared is the recipe alone."""
    components: dict[str, Component] = {c.name: c for part in adapter.parts() for c in part.components}
    export = export_component(components[LANGUAGE_MODEL], precision, cache, proof="warn")
    tables = export_component(components[EMBEDDINGS], "fp32", cache)
    slow, fast = (Session(export.path / f"{graph}.onnx", RunOptions(threads=1)) for graph in ("slow", "fast"))
    spec, _ = adapter.backbone()
    return DualARDecoder(spec, slow, fast, Embeddings(tables.path, spec)), export


class _Listener:
    """A sampler that keeps the logits it is shown, the end token's among them."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.main_logits: list[np.ndarray] = []
        self.code_logits: list[np.ndarray] = []

    def main(self, logits: np.ndarray) -> int:
        self.main_logits.append(logits.copy())
        return self._sampler.main(logits)

    def code(self, codebook: int, logits: np.ndarray) -> int:
        self.code_logits.append(logits.copy())
        return self._sampler.code(codebook, logits)

    def push(self, frame: np.ndarray) -> None:
        self._sampler.push(frame)


def _trace(engine: ReferenceEngine, decoder: DualARDecoder, text: str, index: int, options: RecipeOptions) -> Trace:
    """What float32 says, by the speakers in turn. Codes are kept of spoken frames, not of the end."""
    adapter = ReferenceAdapter(engine)
    prompt = engine.encode_text(text, speaker=engine.speakers[index % len(engine.speakers)])
    params = SamplingParams(seed=options.seed + index).over(adapter.defaults())
    listener = _Listener(adapter.sampler(params))
    frames = np.stack(list(decoder.generate(prompt, listener, options.frames)))
    spoken = int((frames[:, 0] != decoder.spec.end_id).sum())
    codes = np.zeros((len(frames), decoder.spec.codebooks - 1, decoder.spec.fast_codes), np.float32)
    codes[:spoken] = np.array(listener.code_logits, np.float32).reshape(codes[:spoken].shape)
    return Trace(prompt, frames, np.stack(listener.main_logits), codes)


def _figures(trace: Trace, decoder: DualARDecoder, precision: str) -> dict[str, tuple[float, int]]:
    """One sentence's figures, each as its sum over steps and the number of these."""
    answers = replay(decoder.generate, trace)
    spoken = int((trace.frames[:, 0] != decoder.spec.end_id).sum())
    pairs = {"main": (trace.main_logits, answers.main_logits)}
    if spoken:
        pairs["codes"] = (trace.code_logits[:spoken], answers.code_logits[:spoken])
    compared = compare_logits(pairs, BARS[precision])
    figures = ("kl", "agreement", "relative_error")
    nothing = {**dict.fromkeys(figures, 0.0), "steps": 0}
    found = {name: compared.get(name, nothing) for name in ("main", "codes")}
    return {
        f"{name}_{f}": (found[name][f] * found[name]["steps"], found[name]["steps"]) for name in found for f in figures
    }


def _ratio(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, seed: int
) -> tuple[float, float, float]:
    """Of two sums over sentences, with its interval over sentences."""
    from ..reference.measures import bootstrap

    table = np.stack([np.asarray(above, float), np.asarray(below, float)], axis=1)
    return bootstrap(table, lambda rows: rows[:, 0].sum() / max(rows[:, 1].sum(), 1e-12), seed)


def _stored(spec: DualARSpec, weights: Weights, recipe: Recipe) -> dict[str, float | int]:
    """Of all matrices, the heads as the recipe stores heads: ||stored - W|| / ||W||, and bytes."""
    sums = np.zeros(3)
    for stack, layers in (("slow", spec.slow.layers), ("fast", spec.fast.layers)):
        sums += _sums(weights(f"{stack}.head"), recipe.head())
        for i in range(layers):
            for graph_name, names in (("qkv",) * 2, ("out",) * 2, ("down",) * 2, ("gate_up", ("gate", "up"))):
                how = recipe.of(f"{stack}.{i}.{graph_name}")
                for name in [names] if isinstance(names, str) else names:
                    sums += _sums(weights(f"{stack}.{i}.{name}"), how)
    return {"weight_error": float(np.sqrt(sums[0] / sums[1])), "bytes": int(sums[2])}


def _sums(weight: np.ndarray, recipe: Recipe) -> np.ndarray:
    """(squares of the error, squares of the weight, bytes)."""
    squares = float(np.square(weight, dtype=np.float64).sum())
    if recipe.bits == 32:
        return np.array([0.0, squares, weight.nbytes])
    stored = quantize_blocks(weight, recipe.bits, recipe.block, symmetric=recipe.symmetric, fit=recipe.fit)
    error = dequantize_blocks(*stored, recipe.bits, weight.shape[1]) - weight
    size = sum(array.nbytes for array in stored if array is not None)
    return np.array([float(np.square(error, dtype=np.float64).sum()), squares, size])


def _told(row: dict[str, Any]) -> str:
    return f"{row['recipe']}: KL of a frame {_interval(row['frame_kl'], '{:.3f}')} nats, {row['bytes'] / 1e6:.2f} MB"


def _interval(figure: Sequence[float], form: str) -> str:
    value, low, high = (form.format(v) for v in figure)
    return f"{value} [{low}, {high}]"
