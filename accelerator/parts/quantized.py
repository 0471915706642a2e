"""A part's float32 graph in int8, as a component of its own, proven on real inputs.

This file and its imports hold only what determines its files and judges them, nothing that runs them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..export import calibration
from ..export.calibration import Calibration
from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.proof import compare_arrays, compare_signals
from ..runtime import quantization
from ..runtime.onnx import Session

__all__ = ["as_it_sounds", "in_int8"]

_PROOF_THREADS = 2


def in_int8(component: Component, given: Calibration) -> Component:
    """A component named <name>-int8, of the same file <name>.onnx. component: one of `traced` or `onnx_file`.

    Its recipe is the calibration's method and bar: another bar is another export.
    """
    name = component.name

    def build(directory: Path, precision: str, progress: Progress) -> None:
        def told(done: int, total: int) -> None:
            progress(ProgressEvent(f"{name}-int8", "build", done, total, precision))

        with tempfile.TemporaryDirectory(dir=directory) as folder:
            component.build(Path(folder), "fp32", progress)
            feeds = [feed for feed, _ in given.calibrating()]
            path = Path(folder) / f"{name}.onnx"
            made = calibration.quantize(path, feeds, **given.recipe, progress=told)
        made.write(directory / f"{name}.onnx")

    def prove(built: Built) -> dict[str, Any]:
        return {**as_it_sounds(name, built, given), **calibration.sweep_of(built.path)}

    return replace(
        component,
        name=f"{name}-int8",
        precisions=("int8",),
        build=build,
        prove=prove,
        builders=(component.build, *component.builders, given.examples, calibration, quantization),
        judges=(*component.judges, given.examples),
        recipes={"int8": given.recipe},
    )


def as_it_sounds(name: str, built: Built, given: Calibration) -> dict[str, Any]:
    """The lowest signal-to-noise ratio over what the calibration has not seen, against the engine's own answers."""
    session = Session(built.path / f"{name}.onnx", built.options(threads=_PROOF_THREADS))
    pairs = [
        (np.asarray(expected), answer)
        for feed, answers in given.judging()
        for expected, answer in zip(answers, session.run(feed), strict=True)
    ]
    error = compare_arrays(pairs, np.inf).get("max_error", np.inf)
    return {**compare_signals(pairs, given.at_least), "max_error": error}
