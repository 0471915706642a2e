"""A part that is ONNX already: the engine's own session is its original, and its graph is what other backends run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.proof import compare_arrays, compare_signals
from ..runtime.onnx import Session
from ..runtime.openvino import Compiled
from ..runtime.options import RunOptions
from ..runtime.sessions import opened
from .part import Call

__all__ = ["Examples", "Feed", "digest", "onnx_file", "run_session"]

Feed = Mapping[str, np.ndarray]
Examples = Callable[[], Iterator[tuple[Feed, Sequence[np.ndarray]]]]
"""Yields (inputs by name, the engine's own answers): of lengths short and long."""

_PROOF_THREADS = 2


def onnx_file(
    name: str,
    model: Callable[[], bytes],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    *,
    examples: Examples,
    tolerance: float = 1e-4,
    at_least: float | None = None,
    builders: tuple[Any, ...] = (),
) -> Component:
    """A graph, stored as `<name>.onnx`; each of its outputs must be within `tolerance` of the peak of the engine's own.

    at_least: a signal-to-noise ratio in dB in place of that, for a graph that is meant to answer otherwise, as one that
    no longer rounds its activations. model: the file's content. identity: sha256 of the weights, see `digest`.
    builders: what makes `model`, beside what its own file imports.
    """

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(name, "build", 0, 1, precision))
        (directory / f"{name}.onnx").write_bytes(model())

    def prove(built: Built) -> dict[str, Any]:
        call = run_session(name, {name: built.path}, built.options(threads=_PROOF_THREADS))
        answered = [(expected, call(feed)) for feed, expected in examples()]
        outputs = _by_output(answered)
        if at_least is not None:
            reports = [compare_signals(pairs, at_least) for pairs in outputs]
            return {**min(reports, key=lambda report: report["snr_db"]), "outputs": len(reports)}
        reports = [compare_arrays(pairs, tolerance) for pairs in outputs]
        worst = max(reports, key=lambda report: (not report["passed"], report.get("max_error", np.inf)))
        return {**worst, "outputs": len(reports)}

    return Component(name, identity, config, ("fp32",), build, prove, (model, examples, *builders), (examples,))


def run_session(name: str, paths: Mapping[str, Path], options: RunOptions) -> Call:
    """The stored graph of a component as a part's call: inputs by name -> all outputs, in the graph's order."""
    return functools.partial(_run, opened(paths[name] / f"{name}.onnx", options))


def digest(content: bytes) -> str:
    """sha256 of a model file."""
    return hashlib.sha256(content).hexdigest()


def _run(session: Session | Compiled, feed: Feed) -> list[np.ndarray]:
    return session.run({name: np.ascontiguousarray(array) for name, array in feed.items()})


def _by_output(answered: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    count = len(answered[0][0])
    return [[(np.asarray(own[i]), np.asarray(other[i])) for own, other in answered] for i in range(count)]
