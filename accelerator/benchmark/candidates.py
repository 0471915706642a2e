"""Candidate recipes: ways to store weights that are measured beside the shipped precisions, and are none themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engines.reference import ReferenceAdapter
from ..errors import InvalidOption
from ..export.graph.quantize import RECIPES, Recipe

if TYPE_CHECKING:
    from ..reference import ReferenceEngine

__all__ = ["CANDIDATES", "SLOT", "adapter_of", "check_names"]

SLOT = "int4"  # the precision whose place and whose bar a candidate takes
_Q4 = Recipe(bits=4, symmetric=False, head_bits=8, kv_bits=8)


def _four(block: int, **changed: Any) -> Recipe:
    return replace(_Q4, block=block, head_block=block, **changed)


CANDIDATES: Mapping[str, Recipe] = {
    "rtn-32": _four(32, symmetric=True),  # llama.cpp's Q4_0, its head as Q8_0
    "rtn-64": _four(64),
    "search-64": _four(64, fit="clipped"),
    "search-128": _four(128, fit="clipped"),
    "kquant-32": _four(32, fit="k-quant"),
    "kquant-64": _four(64, fit="k-quant"),
    "kquant-128": _four(128, fit="k-quant"),
    "hqq-32": _four(32, fit="hqq"),
    "hqq-64": _four(64, fit="hqq"),
    "hqq-128": _four(128, fit="hqq"),
    # Mixed: the matrices behind the largest activations in 8 bits, or the whole fast model.
    "kquant-64+down": _four(64, fit="k-quant", wider=("*.down",)),
    "kquant-64+fast": _four(64, fit="k-quant", wider=("fast.*",)),
    "search-128+fast": _four(128, fit="clipped", wider=("fast.*",)),
    # Too coarse on purpose: where a loss begins to be heard is where the proof's bar belongs.
    "coarse-128": Recipe(bits=4, block=128, head_bits=4, head_block=128, kv_bits=8),
    "coarse-256": Recipe(bits=4, block=256, head_bits=4, head_block=256, kv_bits=8),
}
"""Ways to store weights that are no precision of the product: name -> recipe, tried in the place of int4."""


def check_names(recipes: Sequence[str]) -> None:
    """Raises InvalidOption for what is no candidate."""
    if unknown := [name for name in recipes if name not in CANDIDATES]:
        raise InvalidOption(f"no recipe called {unknown[0]!r}; there are {', '.join(CANDIDATES)}")


def adapter_of(engine: ReferenceEngine, recipe: str) -> ReferenceAdapter:
    """The engine's adapter in which int4 means the candidate of that name."""
    return ReferenceAdapter(engine, recipes={**RECIPES, SLOT: CANDIDATES[recipe]})
