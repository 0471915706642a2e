"""The file of a traced part: one module, as ONNX.

This file and its imports hold only what determines that file, nothing that runs or judges it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..export.component import Progress, ProgressEvent
from ..export.tracing import trace

__all__ = ["Examples", "traced_module"]

Examples = Callable[[], Iterator[tuple[tuple[np.ndarray, ...], Any]]]
"""Yields (inputs, PyTorch's answer: an array, or a list of one for each output)."""


def traced_module(
    name: str,
    module: Callable[[], Any],
    examples: Examples,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: tuple[str, ...],
) -> Callable[[Path, str, Progress], None]:
    """Writes <name>.onnx: the module, traced with the first example's inputs."""

    def build(directory: Path, precision: str, progress: Progress) -> None:
        import torch

        progress(ProgressEvent(name, "build", 0, 1, precision))
        arguments, _ = next(iter(examples()))
        trace(
            module(),
            [torch.from_numpy(np.ascontiguousarray(a)) for a in arguments],
            directory / f"{name}.onnx",
            inputs=list(inputs),
            outputs=outputs,
            dynamic=inputs,
        )

    return build
