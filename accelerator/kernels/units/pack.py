"""Quantized weights into tiles."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["PACK"]


def _entry() -> Any:
    from ..llm.packing import pack

    return pack


PACK = Unit("pack", __name__, _entry, arguments=6)
