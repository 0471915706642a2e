"""The backends of VITS's decoder beside ONNX Runtime, over one file of weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ... import kernels
from ...export.component import Built, Component, Progress, ProgressEvent
from ...export.proof import SNR_DB, compare_signals
from ...runtime.options import RunOptions
from ..backends import compiled_kernels, rewritten
from ..part import Backend, Call
from ..weight_file import Opened, Weights, load, save
from .tiled import Tiled
from .weights import Examples

__all__ = ["FILE", "NAME", "backends"]

NAME, FILE = "decoder-rewrite", "rewrite.safetensors"
_TILED = "tiles"  # in a proof: what the chains answer


def backends(
    made: Callable[[], Weights],
    identity: Callable[[], str],
    config: Mapping[str, Any],
    examples: Examples,
    *,
    builders: tuple[Any, ...] = (),
) -> tuple[Backend, ...]:
    """By chains where they were proven, and the rewrite, proven in float32 as an ONNX export is, and in bfloat16 where
    that was proven.

    identity, config, examples: as for `traced`. builders: what makes the weights, beside what its own file imports.
    """

    def build(directory: Path, precision: str, progress: Progress) -> None:
        progress(ProgressEvent(NAME, "build", 0, 1, precision))
        save(made(), directory / FILE)

    def prove(built: Built) -> dict[str, Any]:
        from . import rewrite  # here, since what runs in tiles does not need PyTorch

        report = rewrite.proof(built.path / FILE, examples)
        if Tiled.takes(stored := load(built.path / FILE)):
            decode = Tiled(stored)
            answers = [(expected, decode(*given, threads=1)) for given, expected in examples()]
            report[_TILED] = compare_signals(answers, SNR_DB)
        return report

    component = Component(
        NAME,
        identity,
        config,
        ("fp32",),
        build,
        prove,
        builders=(made, *builders),
        judges=(examples, *builders),
        kernels=kernels.chain_kind,
    )
    by_tiles = compiled_kernels(
        (component,),
        _load_tiled,
        available=kernels.multiplies_chains,
        proven=lambda _, exports: exports[NAME].proof.get(_TILED, {}).get("passed") is True,
        dtype="bf16",
    )
    return by_tiles, rewritten(component, _load_rewritten)


_OPENED = Opened(Tiled)


def _load_tiled(paths: Mapping[str, Path], options: RunOptions) -> Call:
    return functools.partial(_OPENED(paths[NAME] / FILE), threads=options.threads)


def _load_rewritten(paths: Mapping[str, Path], options: RunOptions) -> Call:
    from .rewrite import DecodeCall

    return DecodeCall(paths[NAME] / FILE, dtype=options.dtype)
