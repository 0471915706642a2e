"""A part that is traced from PyTorch into one ONNX graph, and held to PyTorch's own answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export import proof, tracing
from ..export.component import Component, Progress, ProgressEvent
from ..export.graph import rewrite
from ..export.proof import compare_arrays, compare_codes
from ..export.sources import source_of
from ..runtime.onnx import Session
from ..runtime.options import RunOptions

__all__ = ["traced"]

_PROOF_THREADS = 2


def traced(
    name: str,
    module: Callable[[], Any],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: tuple[str, ...],
    examples: Callable[[], Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]],
    codes_equal: float | None = None,
    tolerance: float = 1e-4,
    sources: tuple[str, ...] = (),
) -> Component:
    """A traced float32 part.

    module: makes the torch.nn.Module to trace. inputs: name -> dynamic axes. examples: yields (inputs, PyTorch's
    answer); the
    first is traced, the others have lengths that the tracer never saw. codes_equal: for parts that answer with codes,
    the share that must be equal; otherwise answers must agree within `tolerance`.
    """
    filename = f"{name}.onnx"

    def build(directory: Path, precision: str, progress: Progress) -> None:
        import torch

        progress(ProgressEvent(name, "build", 0, 1, precision))
        arguments, _ = next(iter(examples()))
        tracing.trace(
            module(),
            [torch.from_numpy(np.ascontiguousarray(a)) for a in arguments],
            directory / filename,
            inputs=list(inputs),
            outputs=outputs,
            dynamic=inputs,
        )

    def prove(directory: Path, precision: str) -> dict[str, Any]:
        session = Session(directory / filename, RunOptions(threads=_PROOF_THREADS))
        pairs = []
        for arguments, expected in examples():
            answer = session.run(dict(zip(session.inputs, arguments, strict=True)))[0]
            pairs.append((expected, answer))
        if codes_equal is not None:
            return compare_codes(pairs, codes_equal)
        return compare_arrays(pairs, tolerance)

    used = (str(Path(__file__)), *(source_of(each) for each in (proof, module, tracing, rewrite)))
    return Component(name, identity, config, ("fp32",), build, prove, (*used, *sources))
