"""What OpenVINO answers with a part's graph, as a component of its own beside the one that has the graph.

Nothing is stored twice: this one's entry has the proof, and which version of OpenVINO it is about.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SessionError
from ..export.component import Built, Component, Export, Progress, ProgressEvent
from ..export.proof import SNR_DB, compare_arrays, compare_signals
from ..hardware import detect
from ..runtime import openvino
from ..runtime.options import BF16_FLAGS, Dtype, RunOptions
from .part import Call

__all__ = ["Answered", "Load", "dtypes_of", "in_openvino"]

logger = logging.getLogger(__name__)

Load = Callable[[Mapping[str, Path], RunOptions], Call]
Answered = Callable[[], Iterator[tuple[Any, Any]]]
"""Yields what a component's examples yield: (a call's arguments, or its only one; the original's answer or answers)."""

_FILE = "openvino.json"
_PROOF_THREADS = 2
_TOLERANCE = 1e-4  # of the peak, as an ONNX export's


def in_openvino(component: Component, load: Load, answered: Answered, *, lower: bool) -> Component:
    """A component named <name>-openvino: in float32 it must pass, and "bf16" has the figures of that in its proof.

    component: what has the graph. load: the part's call, in the library that its options name. lower: whether bfloat16
    will do, too, where it is fast.
    """
    name, version = component.name, openvino.version()

    def build(directory: Path, precision: str, progress: Progress, beside: Export) -> None:
        progress(ProgressEvent(f"{name}-openvino", "build", 0, 1, precision))
        (directory / _FILE).write_text(json.dumps({"openvino": version}))

    def prove(built: Built) -> dict[str, Any]:
        assert built.beside is not None
        openvino.library()  # without it nothing is found out, and nothing is to be kept
        paths, examples = {name: built.beside.path}, list(answered())
        report = _report(load, paths, "fp32", examples)
        if report["passed"] and "bf16" in dtypes_of(detect().isa, lower=lower):
            report["bf16"] = low = _report(load, paths, "bf16", examples)
            if not low["passed"]:
                logger.warning("%s does not run in OpenVINO in bfloat16: %s", name, _why(low))
        return report

    return Component(
        f"{name}-openvino",
        component.identity,
        {"openvino": version},
        ("fp32",),
        build,
        prove,
        judges=(*component.judges, load, openvino),
        beside=name,
    )


def dtypes_of(isa: Sequence[str], *, lower: bool) -> list[Dtype]:
    """What OpenVINO is to multiply in on such a processor. lower: whether bfloat16 will do, too."""
    return ["fp32", "bf16"] if lower and any(flag in isa for flag in BF16_FLAGS) else ["fp32"]


def _report(load: Load, paths: Mapping[str, Path], dtype: Dtype, examples: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Of the worst output."""
    options = RunOptions(threads=_PROOF_THREADS, backend=openvino.NAME, dtype=dtype)
    try:
        call = load(paths, options)
        answers = [
            (_arrays(expected), _arrays(call(*given) if isinstance(given, tuple) else call(given)))
            for given, expected in examples
        ]
    except SessionError as error:
        return {"passed": False, "bar": {}, "error": str(error)}
    outputs = [list(zip(*each, strict=True)) for each in answers]
    reports = [
        compare_arrays(pairs, _TOLERANCE) if dtype == "fp32" else compare_signals(pairs, SNR_DB)
        for pairs in zip(*outputs, strict=True)
    ]
    return next((report for report in reports if not report["passed"]), reports[0])


def _arrays(answer: Any) -> list[np.ndarray]:
    return [answer] if isinstance(answer, np.ndarray) else [np.asarray(each) for each in answer]


def _why(report: Mapping[str, Any]) -> str:
    return report["error"] if "error" in report else f"{report['snr_db']:.1f} dB, of which {SNR_DB:g} are needed"
