"""The decoder by compiled kernels: backends over one file of weights, in float32 and in less where that is proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import kernels
from ...errors import ExportError
from ...export.component import Built, Component, Export, Progress, ProgressEvent
from ...export.proof import SNR_DB, compare_arrays, compare_signals
from ...parts.backends import compiled_kernels
from ...parts.decoding import continuing
from ...parts.part import Backend, Call
from ...runtime.options import Dtype, RunOptions
from .detokenizer import DetokenizeCall, takes

__all__ = ["FILE", "NAME", "Answers", "backends", "exported", "kind", "less", "proof", "write"]

NAME, FILE = "decoder-rewrite", "detokenizer.safetensors"
_PROOF_THREADS = 2
_ODD = "there are no kernels for the decoder's sizes, which have to be multiples of 32"

Answers = Callable[[], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]]
"""Yields tokens int64 [T], codes of who speaks int64 [G], and the engine's own audio float32 [n]."""


def backends(component: Component, file: Callable[[Mapping[str, Path]], Path]) -> tuple[Backend, ...]:
    """component: whose proof is `proof`. file: of the directories that it is loaded from, the weights' own."""

    def load(paths: Mapping[str, Path], options: RunOptions) -> Call:
        return continuing(DetokenizeCall(file(paths), options.dtype, options.threads))

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        report = exports[component.name].proof
        return options.dtype == "fp32" or report.get(options.dtype, {}).get("passed") is True

    available: Any = {"available": kernels.available, "proven": proven}
    return tuple(compiled_kernels((component,), load, dtype=dtype, **available) for dtype in (less(), "fp32"))


def exported(
    save: Callable[[Path], None],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    answers: Answers,
    builders: tuple[Any, ...],
) -> Component:
    """The file as an export. save: as for `write`. identity, config, builders: as for `traced`."""

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(NAME, "build", 0, 1, precision))
        save(directory / FILE)

    def prove(built: Built) -> dict[str, Any]:
        """A file without kernels is rejected, not refused: that is remembered, and nothing is read for it again."""
        if not takes(built.path / FILE):
            return {"passed": False, "bar": None, "error": _ODD}
        return proof(built.path / FILE, answers)

    return Component(
        NAME, identity, config, ("fp32",), build, prove, (save, *builders), judges=(answers,), kernels=kind
    )


def write(save: Callable[[Path], None], path: Path) -> None:
    """save: writes what `weights` describes. Raises ExportError where there are no kernels for it on any machine."""
    save(path)
    if not takes(path):
        path.unlink()
        raise ExportError(_ODD)


def proof(file: Path, answers: Answers) -> dict[str, Any]:
    """How near a file's answers are to the engine's own: in float32 as an ONNX export's, and in `less`."""

    def compared(dtype: Dtype) -> list[tuple[np.ndarray, np.ndarray]]:
        decode = DetokenizeCall(file, dtype, _PROOF_THREADS)
        return [(heard, decode(semantics, codes)) for semantics, codes, heard in answers()]

    return {**compare_arrays(compared("fp32"), 1e-4), less(): compare_signals(compared(less()), SNR_DB)}


def less() -> Dtype:
    """What is multiplied in where float32 need not be: bfloat16 where the processor has it."""
    return "bf16" if kernels.multiplies_bf16() else "int16"


def kind() -> str:
    """Which kernels a proof is about."""
    return f"{kernels.kind()} {less()}"
