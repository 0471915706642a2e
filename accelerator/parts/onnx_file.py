"""A part that is ONNX already: the engine's own session is its original, and its graph is what other backends run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cache import remembered
from ..export import sources
from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.proof import compare_arrays, compare_signals
from ..runtime.borrowed import Deferred, describe, model_file, model_of
from ..runtime.onnx import Session
from ..runtime.openvino import Compiled
from ..runtime.options import RunOptions
from ..runtime.sessions import opened
from .part import Call

__all__ = ["Examples", "Feed", "deferred", "digest", "looked_into", "model_digest", "onnx_file", "run_session"]

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
    alike: bool = False,
) -> Component:
    """A graph, stored as `<name>.onnx`; each of its outputs must be within `tolerance` of the peak of the engine's own.

    at_least: a signal-to-noise ratio in dB in place of that, for a graph that is meant to answer otherwise, as one that
    no longer rounds its activations. model: the file's content. identity: sha256 of the weights, see `digest`.
    builders: what makes `model`, beside what its own file imports. alike: the proof also says whether two threads
    answer bit for bit as one does, as "alike".
    """

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(name, "build", 0, 1, precision))
        (directory / f"{name}.onnx").write_bytes(model())

    def prove(built: Built) -> dict[str, Any]:
        call = run_session(name, {name: built.path}, built.options(threads=_PROOF_THREADS))
        found = list(examples())
        answered = [(expected, call(feed)) for feed, expected in found]
        outputs = _by_output(answered)
        if at_least is not None:
            reports = [compare_signals(pairs, at_least) for pairs in outputs]
            return {**min(reports, key=lambda report: report["snr_db"]), "outputs": len(reports)}
        reports = [compare_arrays(pairs, tolerance) for pairs in outputs]
        worst = max(reports, key=lambda report: (not report["passed"], report.get("max_error", np.inf)))
        same = {"alike": _is_alike(name, built.path, found)} if alike else {}
        return {**worst, "outputs": len(reports), **same}

    return Component(name, identity, config, ("fp32",), build, prove, (model, examples, *builders), (examples,))


def run_session(name: str, paths: Mapping[str, Path], options: RunOptions) -> Call:
    """The stored graph of a component as a part's call: inputs by name -> all outputs, in the graph's order."""
    return functools.partial(_run, opened(paths[name] / f"{name}.onnx", options))


def _is_alike(name: str, path: Path, found: Sequence[tuple[Feed, Sequence[np.ndarray]]]) -> bool:
    one, two = (run_session(name, {name: path}, RunOptions(threads=n)) for n in (1, 2))
    return all(np.array_equal(*pair) for feed, _ in found for pair in zip(one(feed), two(feed), strict=True))


def looked_into(session: Any, find: Callable[[bytes], Mapping[str, Any]], *names: str) -> Mapping[str, Any]:
    """What `find` says of the model that an engine's session runs, JSON-able: of a file, it is remembered.

    names: what `find` depends on beside the model and its own code. Raises SessionError, and what `find` raises.
    """
    file = model_file(session)
    if file is None:
        return find(model_of(session))
    about = {
        "model": str(file),
        "names": list(names),
        "by": getattr(find, "func", find).__qualname__,
        "sources": sources.digest(find),
    }
    return remembered(about, lambda: (find(model_of(session)), [file]))


def deferred(file: Path) -> Deferred:
    """What an engine may call its session of a file, and which knows what it is asked about before it is run.

    Raises SessionError for one that cannot be read, and what ONNX Runtime raises.
    """
    return Deferred(file, looked_into(Deferred(file), describe))


def model_digest(session: Any) -> str:
    """`digest` of the model that an engine's session runs. Raises SessionError."""
    return str(looked_into(session, _digested)["sha256"])


def _digested(content: bytes) -> dict[str, str]:
    return {"sha256": digest(content)}


def digest(content: bytes) -> str:
    """sha256 of a model file."""
    return hashlib.sha256(content).hexdigest()


def _run(session: Session | Compiled, feed: Feed) -> list[np.ndarray]:
    return session.run({name: np.ascontiguousarray(array) for name, array in feed.items()})


def _by_output(answered: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    count = len(answered[0][0])
    return [[(np.asarray(own[i]), np.asarray(other[i])) for own, other in answered] for i in range(count)]
