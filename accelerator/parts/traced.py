"""A part traced from PyTorch into one ONNX graph, and compared with PyTorch's own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..export.component import Built, Component
from ..export.proof import compare_arrays, compare_codes
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
    with codes, the share that must be equal; otherwise answers must agree within `tolerance`. builders: further code
    that determines the module, beyond what the files of `module` and `examples` import.
    """
    build = traced_module(name, module, examples, inputs, outputs)

    def prove(built: Built) -> dict[str, Any]:
        session = Session(built.path / f"{name}.onnx", built.options(threads=_PROOF_THREADS))
        pairs = []
        for arguments, expected in examples():
            answer = session.run(dict(zip(session.inputs, arguments, strict=True)))[0]
            pairs.append((expected, answer))
        if codes_equal is not None:
            return compare_codes(pairs, codes_equal)
        return compare_arrays(pairs, tolerance)

    return Component(name, identity, config, ("fp32",), build, prove, (module, examples, *builders), (examples,))
