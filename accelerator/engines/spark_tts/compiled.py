"""The decoder by compiled kernels: backends over one file of weights, in float32 and in less where that is proven."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import kernels
from ...errors import ExportError
from ...export.component import Built, Component, Export, Progress, ProgressEvent
from ...export.proof import SNR_DB, compare_arrays, compare_signals
from ...parts.backends import compiled_kernels
from ...parts.decoding import continuing
from ...parts.modules import Examples
from ...parts.part import Backend, Call
from ...runtime.options import Dtype, RunOptions
from .detokenizer import DetokenizeCall, takes

__all__ = ["FILE", "NAME", "backends"]

NAME, FILE = "decoder-rewrite", "rewrite.safetensors"
_PROOF_THREADS = 2


def backends(
    save: Callable[[Path], None],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    examples: Examples,
    *,
    builders: tuple[Any, ...],
) -> tuple[Backend, ...]:
    """save: writes the file that `weights` describes. identity, config, examples, builders: as for `traced`."""

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(NAME, "build", 0, 1, precision))
        save(directory / FILE)
        if not takes(directory / FILE):
            raise ExportError("there are no kernels for its sizes, which have to be multiples of 32")

    def prove(built: Built) -> dict[str, Any]:
        def answers(dtype: Dtype) -> list[tuple[np.ndarray, np.ndarray]]:
            decode = DetokenizeCall(built.path / FILE, dtype, _PROOF_THREADS)
            return [(expected[0], decode(semantics[0], codes[0])) for (semantics, codes), expected in examples()]

        return {**compare_arrays(answers("fp32"), 1e-4), less(): compare_signals(answers(less()), SNR_DB)}

    component = Component(
        NAME,
        identity,
        config,
        ("fp32",),
        build,
        prove,
        builders=(save, *builders),
        judges=(examples,),
        kernels=lambda: f"{kernels.kind()} {less()}",
    )

    def proven(options: RunOptions, exports: Mapping[str, Export]) -> bool:
        proof = exports[NAME].proof
        return options.dtype == "fp32" or proof.get(options.dtype, {}).get("passed") is True

    offered = functools.partial(compiled_kernels, (component,), _load, available=kernels.available, proven=proven)
    return offered(dtype=less()), offered()


def less() -> Dtype:
    """What is multiplied in where float32 need not be: bfloat16 where the processor has it."""
    return "bf16" if kernels.multiplies_bf16() else "int16"


def _load(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return continuing(DetokenizeCall(paths[NAME] / FILE, options.dtype, options.threads))
