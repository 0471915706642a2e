"""A part traced from PyTorch into one ONNX graph, and compared with PyTorch's own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..export.component import Built, Component
from ..export.proof import compare_arrays, compare_codes, worst
from ..runtime.onnx import Session
from .modules import Examples, traced_module

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
    examples: Examples,
    codes_equal: float | None = None,
    tolerance: float = 1e-4,
    builders: tuple[Any, ...] = (),
) -> Component:
    """A traced float32 part.

    module: makes the torch.nn.Module to trace. inputs: name -> dynamic axes. examples: yields (inputs, PyTorch's
    answer); the first is traced, the others have lengths that the tracer never saw. codes_equal: for parts that answer
    with codes, the share that must be equal; otherwise answers must agree within `tolerance`, each output by itself
    where `examples` yields several. builders: further code that determines the module, beyond what the files of
    `module` and `examples` import.
    """
    build = traced_module(name, module, examples, inputs, outputs)

    def prove(built: Built) -> dict[str, Any]:
        session = Session(built.path / f"{name}.onnx", built.options(threads=_PROOF_THREADS))
        compared: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in outputs]
        for arguments, expected in examples():
            answers = session.run(dict(zip(session.inputs, arguments, strict=True)))
            several = [expected] if isinstance(expected, np.ndarray) else expected
            for pairs, *pair in zip(compared, several, answers, strict=True):
                pairs.append((pair[0], pair[1]))
        if codes_equal is not None:
            return compare_codes(compared[0], codes_equal)
        return worst([compare_arrays(pairs, tolerance) for pairs in compared])

    return Component(name, identity, config, ("fp32",), build, prove, (module, examples, *builders), (examples,))
