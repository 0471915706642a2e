"""Compiled kernels: a language model's steps at the pace of the memory, a codec's convolutions at that of the products.

    NativeSession ──► NativeBinding ──► Team ──► one C function (`compiled`), made of `kernels` and `instructions`
       (weights in tiles)   (a plan)      (threads)        ▲
    Filter, Mix, Dense, Single, snake (`convolution`, `elementwise`) ──► `parts`

ONNX Runtime's quantized kernels are bound by arithmetic for one row, and compute several rows hardly faster than one
after the other. These read the weights as fast as memory gives them, and share each of them among eight rows. numba
compiles them once for a processor with AVX2 or AVX512-VNNI; without, ONNX Runtime goes on as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..graph.dual_ar import DualARSpec
from .features import available
from .convolution import Dense, Filter, Mix, Single
from .elementwise import snake
from .frames import CodeLoop
from .minimal import Filters, filters
from .session import NativeSession
from .team import Team

__all__ = [
    "CodeLoop",
    "Dense",
    "Filter",
    "Filters",
    "Mix",
    "NativeSession",
    "Single",
    "available",
    "filters",
    "open_graphs",
    "snake",
    "sources",
]

_OF_MODELS = (
    "attention.py",
    "instructions.py",
    "kernels.py",
    "plan.py",
    "quantized.py",
    "rows.py",
    "session.py",
    "vectors.py",
)
_OF_CODECS = (
    "activation.py",
    "blocks.py",
    "convolution.py",
    "dense.py",
    "elementwise.py",
    "filtering.py",
    "job.py",
    "minimal.py",
    "ordering.py",
    "parts.py",
    "tiles.py",
    "vectors.py",
)


def open_graphs(directory: Path, spec: DualARSpec, names: Sequence[str], threads: int) -> list[NativeSession]:
    """Sessions over graphs of an export, which share their threads. Raises SessionError."""
    team = Team(threads)
    return [NativeSession(directory / f"{name}.onnx", spec, team) for name in names]


def sources(codec: bool = False) -> tuple[str, ...]:
    """The files that say what is computed, for language models or codecs."""
    return tuple(str(Path(__file__).with_name(name)) for name in (_OF_CODECS if codec else _OF_MODELS))
