"""A part's float32 graph with less in it, as a component of its own: pruned, for those who ask. Proven on real inputs.

    channels, heads   less work: only where it is faster
    weights           a file that packs smaller, which computes no faster: in place of the whole one

This file and its imports hold only what determines its files and judges them; `backends` says what runs them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..export import calibration, pruning
from ..export.calibration import Calibration
from ..export.component import Built, Component, Progress
from .quantized import as_it_sounds

__all__ = ["without_channels", "without_heads", "without_weights"]

_BRINGS = "brings.json"  # beside a pruned model: its size by that of the whole one, or why there is none


def without_channels(component: Component, given: Calibration, share: float) -> Component:
    """A component named <name>-without-channels, with this share of them fewer between pairs of convolutions.

    That it is faster is for the probe to find out.
    """
    return _pruned(component, given, share, "channels", _less(component, pruning.without_channels, share))


def without_heads(component: Component, given: Calibration, share: float, fewer: Component) -> Component:
    """A component named <name>-without-heads. fewer: the same part, made of `pruning.module_without_heads`."""

    def make(progress: Progress) -> tuple[bytes, dict[str, float]]:
        return _built(fewer, progress), {}

    return _pruned(component, given, share, "heads", make, (fewer.build, *fewer.builders))


def without_weights(component: Component, given: Calibration, share: float) -> Component:
    """A component named <name>-without-weights, with this share at zero; it must pack smaller by half of that.

    Only for what is sent or stored compressed: nothing computes faster for it.
    """
    made = _pruned(component, given, share, "weights", _less(component, pruning.without_weights, share))
    most = 1 - share / 2

    def prove(built: Built) -> dict[str, Any]:
        report = made.prove(built)
        if report["passed"] and report["packed"] > most:
            return {**report, "passed": False, "error": f"it packs to {report['packed']:.2f}, more than {most:.2f}"}
        return report

    return replace(made, prove=prove)


Make = Callable[[Progress], tuple[bytes, dict[str, float]]]
"""A model with less in it, and its size by that of the whole one, if that is known. Raises ExportError."""


def _less(component: Component, how: Callable[[bytes, float], bytes], share: float) -> Make:
    def make(progress: Progress) -> tuple[bytes, dict[str, float]]:
        whole = _built(component, progress)
        made = how(whole, share)
        packed = pruning.packed_bytes(made) / pruning.packed_bytes(whole)
        return made, {"packed": packed, "bytes": len(made) / len(whole)}

    return make


def _pruned(
    component: Component, given: Calibration, share: float, what: str, make: Make, builders: tuple[Any, ...] = ()
) -> Component:
    """Where nothing can be spared, the proof says so, and is kept: it is not tried again."""
    name = component.name

    def build(directory: Path, precision: str, progress: Progress) -> None:
        brings: dict[str, Any]
        try:
            made, brings = make(progress)
            (directory / f"{name}.onnx").write_bytes(made)
        except ExportError as error:
            brings = {"error": str(error)}
        (directory / _BRINGS).write_text(json.dumps(brings))

    def prove(built: Built) -> dict[str, Any]:
        brings = json.loads((built.path / _BRINGS).read_text())
        if "error" in brings:
            return {"passed": False, "bar": {"snr_db": given.at_least}, **brings}
        return {**as_it_sounds(name, built, given), **brings}

    return replace(
        component,
        name=f"{name}-without-{what}",
        precisions=("fp32",),
        build=build,
        prove=prove,
        builders=(component.build, *component.builders, *builders, given.examples, pruning),
        judges=(*component.judges, given.examples),
        recipes={"fp32": {"prune": share, "at_least": given.at_least}},
    )


def _built(component: Component, progress: Progress) -> bytes:
    """The content of a component's float32 file."""
    with tempfile.TemporaryDirectory() as folder:
        component.build(Path(folder), "fp32", progress)
        return calibration.one_file(Path(folder) / f"{component.name}.onnx")
