"""A part's float32 graph in int8, as a component of its own: built anew, calibrated and swept, proven on other inputs.

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
from ..runtime.options import RunOptions

__all__ = ["SENTENCES", "in_int8"]

SENTENCES = (  # what engines that take text calibrate with, and prove: the second half
    "The old boat left the harbour before sunrise.",
    "Would you please measure this judge's green chair?",
    "Yes!",
    "Thick fog, pale as milk, was moving over the southern hills.",
    "Five voices sang about a treasure that nobody found.",
    "She keeps both of her shoes near the kitchen door.",
    "No, wait.",
    "Charge the batteries, and follow the orange signs to the garage.",
)
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
        session = Session(built.path / f"{name}.onnx", RunOptions(threads=_PROOF_THREADS))
        pairs = [
            (np.asarray(expected), answer)
            for feed, answers in given.judging()
            for expected, answer in zip(answers, session.run(feed), strict=True)
        ]
        error = compare_arrays(pairs, np.inf).get("max_error", np.inf)
        return {**compare_signals(pairs, given.at_least), "max_error": error, **calibration.sweep_of(built.path)}

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
