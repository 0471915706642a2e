"""Compiled kernels: a language model's steps at the pace of memory, a codec's convolutions at that of arithmetic.

    llm/team ────────────────────────────► a step of a language model, on threads that wait for the next one
    conv/layers, elementwise ──► parallel ► a codec's layers, in parts on PyTorch's threads
          both: units ──► compiler ──► a C function for each unit, made of `instructions`

ONNX Runtime's quantized kernels are bound by arithmetic for one row, and compute several rows hardly faster than one
after the other. These read the weights as fast as memory gives them, and share each of them among eight rows. numba
compiles them once for a processor with AVX2 or AVX512-VNNI; without, ONNX Runtime goes on as before.
"""

from __future__ import annotations

from .conv.chains import chain, chain_unit
from .conv.elementwise import gelu, snake
from .conv.layers import Dense, Filter, Mix, Single, aligned
from .conv.minimal import Filters, filters
from .descriptors import Link
from .features import available, chain_kind, kind, multiplies_bf16, multiplies_chains, multiplies_tiles

__all__ = [
    "Dense",
    "Filter",
    "Filters",
    "Link",
    "Mix",
    "Single",
    "aligned",
    "available",
    "chain",
    "chain_kind",
    "chain_unit",
    "filters",
    "gelu",
    "kind",
    "multiplies_bf16",
    "multiplies_chains",
    "multiplies_tiles",
    "snake",
]
