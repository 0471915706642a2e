"""A part's float32 graph with less in it, as a component of its own: in int8, or pruned. Proven on real inputs.

This file and its imports hold only what determines its files and judges them, nothing that runs them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..export import calibration, pruning
from ..export.calibration import Calibration
from ..export.component import Built, Component, Progress, ProgressEvent
from ..export.proof import compare_arrays, compare_signals
from ..runtime import quantization
from ..runtime.onnx import Session
from ..runtime.options import RunOptions

__all__ = ["in_int8", "without_channels", "without_weights"]

_PROOF_THREADS = 2
_BRINGS = "brings.json"  # beside a pruned model: its size by that of the whole one


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
        return {**_as_it_sounds(name, built, given), **calibration.sweep_of(built.path)}

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


def without_channels(component: Component, given: Calibration, prune: float) -> Component:
    """A component named <name>-pruned, with this share of the channels fewer between pairs of convolutions.

    That it is faster is for the probe to find out.
    """
    return _pruned(component, given, prune, pruning.without_channels, smaller=False)


def without_weights(component: Component, given: Calibration, prune: float) -> Component:
    """A component named <name>-pruned, with this share of the weights at zero; it must pack smaller by half of that.

    Only for what is sent or stored compressed: nothing computes faster for it.
    """
    return _pruned(component, given, prune, pruning.without_weights, smaller=True)


def _pruned(
    component: Component, given: Calibration, prune: float, how: Callable[[bytes, float], bytes], *, smaller: bool
) -> Component:
    name = component.name

    def build(directory: Path, precision: str, progress: Progress) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            component.build(Path(folder), precision, progress)
            whole = calibration.one_file(Path(folder) / f"{name}.onnx")
        made = how(whole, prune)
        (directory / f"{name}.onnx").write_bytes(made)
        brings = {"packed": pruning.packed_bytes(made) / pruning.packed_bytes(whole), "bytes": len(made) / len(whole)}
        (directory / _BRINGS).write_text(json.dumps(brings))

    def prove(built: Built) -> dict[str, Any]:
        report = {**_as_it_sounds(name, built, given), **json.loads((built.path / _BRINGS).read_text())}
        if smaller and report["packed"] > (most := 1 - prune / 2):
            return {**report, "passed": False, "error": f"it packs to {report['packed']:.2f}, more than {most:.2f}"}
        return report

    return replace(
        component,
        name=f"{name}-pruned",
        precisions=("fp32",),
        build=build,
        prove=prove,
        builders=(component.build, *component.builders, pruning),
        judges=(*component.judges, given.examples),
        recipes={"fp32": {"prune": prune, "how": how.__name__, "at_least": given.at_least}},
    )


def _as_it_sounds(name: str, built: Built, given: Calibration) -> dict[str, Any]:
    """The lowest signal-to-noise ratio over what the calibration has not seen, against the engine's own answers."""
    session = Session(built.path / f"{name}.onnx", RunOptions(threads=_PROOF_THREADS))
    pairs = [
        (np.asarray(expected), answer)
        for feed, answers in given.judging()
        for expected, answer in zip(answers, session.run(feed), strict=True)
    ]
    error = compare_arrays(pairs, np.inf).get("max_error", np.inf)
    return {**compare_signals(pairs, given.at_least), "max_error": error}
