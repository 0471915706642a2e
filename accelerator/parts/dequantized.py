"""Engines whose graph is dynamically quantized: what rounds each activation as it comes, in float32 again and in int8.

Dynamic quantization makes a file small and not fast: ONNX Runtime's integer convolutions are slower than float32 ones.
Further candidates, for `whole_graph`:

    <graph>-float       products of the same weights without rounding, norms and snakes in fewer passes
    <graph>-float-int8  of that, static int8 of chosen layers; only for those who ask for int8
    <graph>-blocks      of that, residual blocks by compiled kernels that multiply bfloat16: see `adaptive_blocks`

What such a file's answer should be nobody knows: the model as it was before is not in it, and the file's own answer has
the noise of its rounding. So the float32 graph is proven where there is no noise: each product is that of the file
(`PRODUCT_DB`), and the rewritten graph answers as these products do (`REWRITTEN_DB`). The whole answer is only held to
be as long and about as near as the noise allows (`NOISE_DB`). The int8 graph is judged by the float32 one, and so are
the blocks, as audio from bfloat16 is (`export.proof.SNR_DB`).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import kernels
from ..export.calibration import Calibration
from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.graph import adaptive, dequantize
from ..export.graph.rewrite import rewrite_activations
from ..export.proof import SNR_DB, compare_signals
from ..runtime.borrowed import model_of
from ..runtime.onnx import Session
from ..runtime.options import RunOptions
from . import adaptive_blocks
from .backends import ONNX_RUNTIME, compiled_kernels, onnx_runtime, onnx_runtime_int8
from .onnx_file import Feed, looked_into, model_digest, run_session
from .part import Backend, Call, Machine
from .whole_graph import GRAPH, Speak, heard

__all__ = ["NOISE_DB", "PRODUCT_DB", "REWRITTEN_DB", "dequantized"]

PRODUCT_DB = 100.0  # of each product alone: Kokoro's have 130 and more
REWRITTEN_DB = 60.0  # of the rewritten graph: 114
NOISE_DB = 10.0  # of the file's own answers: 12.8 to 16.9. Two ways to sum up the same rounded values are at 18 to 26
_NAME, _BLOCKS = f"{GRAPH}-float", f"{GRAPH}-blocks"
_PROOF_THREADS = 2


def dequantized(
    session: Any, speeches: Sequence[Speak], sentences: Callable[[], Sequence[Speak]], among: str
) -> tuple[Backend, ...]:
    """For `whole_graph`'s `beside`; offered only where the engine's graph is dynamically quantized.

    session: the engine's own. speeches: to prove with. sentences: to calibrate with. among: how the names of the nodes
    begin that are rewritten: without those that predict lengths, the answer stays as long as it was.
    """
    kind = functools.cache(lambda: looked_into(session, functools.partial(_kind, among=among), among))

    def spoken() -> Iterator[tuple[Feed, Sequence[np.ndarray]]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "exact.onnx"
            _write(model_of(session), path, among)
            exact = Session(path, RunOptions()).opened()
            for speak in sentences():
                yield from heard(exact, speak)

    component, blocks = _component(session, speeches, among), _blocks(session, speeches, among)
    calibrated = replace(component, builders=(sentences,))
    load = functools.partial(run_session, _NAME)
    plain = replace(onnx_runtime((component,), load), name=f"{ONNX_RUNTIME}-float", probed=True)
    made = plain, onnx_runtime_int8(calibrated, load, Calibration(spoken, among=among))
    by_kernels = compiled_kernels(
        (blocks,), _load_blocks, available=kernels.multiplies_chains, proven=lambda *_: True, dtype="bf16"
    )
    return (
        *(replace(backend, offers=functools.partial(_offered, backend, kind, "rounds")) for backend in made),
        # One set of sessions for all callers: a twentieth faster than another one on one thread, and 300 MB less.
        replace(by_kernels, offers=functools.partial(_offered, by_kernels, kind, "snakes"), shared=True),
    )


def _kind(content: bytes, *, among: str) -> dict[str, bool]:
    """Whether a graph rounds, and whether it then has snakes, too."""
    rounds = dequantize.rounds(content, among)
    return {"rounds": rounds, "snakes": rounds and adaptive.has_sines(content, among)}


def _offered(
    backend: Backend, kind: Callable[[], Mapping[str, Any]], wanted: str, machine: Machine
) -> Sequence[RunOptions]:
    offered = backend.offers(machine)
    return offered if offered and kind()[wanted] else []


def _component(session: Any, speeches: Sequence[Speak], among: str) -> Component:
    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(_NAME, "build", 0, 1, precision))
        _write(model_of(session), directory / f"{_NAME}.onnx", among)

    def prove(built: Built) -> dict[str, Any]:
        call = run_session(_NAME, {_NAME: built.path}, built.options(threads=_PROOF_THREADS, arena=False))
        return _judged(session, speeches, among, built, call, REWRITTEN_DB)

    identity = functools.cache(lambda: model_digest(session))
    return Component(_NAME, identity, {"part": _NAME, "among": among}, ("fp32",), build, prove, judges=tuple(speeches))


def _blocks(session: Any, speeches: Sequence[Speak], among: str) -> Component:
    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(_BLOCKS, "build", 0, 1, precision))
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            _write(model_of(session), whole := Path(folder) / f"{_NAME}.onnx", among)
            adaptive_blocks.write(whole, directory)

    def prove(built: Built) -> dict[str, Any]:
        call = adaptive_blocks.Pieces(built.path, built.options(threads=_PROOF_THREADS, arena=False))
        return _judged(session, speeches, among, built, call, SNR_DB)

    return Component(
        _BLOCKS,
        functools.cache(lambda: model_digest(session)),
        {"part": _BLOCKS, "among": among},
        ("fp32",),
        build,
        prove,
        judges=tuple(speeches),
        kernels=kernels.chain_kind,
    )


def _load_blocks(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return adaptive_blocks.Pieces(paths[_BLOCKS], options)


def _write(content: bytes, path: Path, among: str) -> None:
    dequantize.dequantize(content, path, among)
    rewrite_activations(path, among)


def _judged(
    session: Any, speeches: Sequence[Speak], among: str, built: Built, call: Call, at_least: float
) -> dict[str, Any]:
    """The figures of a graph that answers as `call` does. at_least: `rewritten_db`."""
    content, found = model_of(session), [each for speak in speeches for each in heard(session, speak)]
    with tempfile.TemporaryDirectory(dir=built.scratch) as folder:
        dequantize.compared(content, products := Path(folder) / "products.onnx", among)
        dequantize.dequantize(content, plain := Path(folder) / "plain.onnx", among)
        shortest = min(found, key=lambda each: sum(np.asarray(answer).size for answer in each[1]))
        ratio = min(map(_ratio, _answers(products, [shortest])))  # a product is right or wrong at any length
        products.with_name(f"{products.name}.data").unlink()
        answers = [call(feed) for feed, _ in found]
        exact = compare_signals(_pairs(_answers(plain, found), answers), at_least)
    whole = compare_signals(_pairs([own for _, own in found], answers), NOISE_DB)
    return {
        "passed": ratio >= PRODUCT_DB and exact["passed"] and whole["passed"],
        "bar": {"product_db": PRODUCT_DB, "rewritten_db": at_least, **whole["bar"]},
        "product_db": ratio,
        "rewritten_db": exact["snr_db"],
        "snr_db": whole["snr_db"],
    }


def _answers(path: Path, found: Sequence[tuple[Feed, Sequence[np.ndarray]]]) -> list[list[np.ndarray]]:
    session = Session(path, RunOptions(threads=_PROOF_THREADS, arena=False))
    return [session.run(feed) for feed, _ in found]


def _pairs(expected: Sequence[Sequence[Any]], answers: Sequence[Sequence[Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(one), np.asarray(other))
        for own, others in zip(expected, answers, strict=True)
        for one, other in zip(own, others, strict=True)
    ]


def _ratio(energies: Sequence[np.ndarray]) -> float:
    """The lowest ratio in dB, of noise and signal in turn."""
    noise, signal = (np.array([each.item() for each in energies[start::2]], np.float64) for start in (0, 1))
    if not np.isfinite(noise).all():
        return -200.0
    ratios = np.divide(signal, noise, out=np.full(len(noise), 1e20), where=noise > 0)
    return float(10 * np.log10(np.clip(ratios, 1e-20, 1e20)).min())
