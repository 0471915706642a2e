"""A dense layer's inputs as int16."""

from __future__ import annotations

from typing import Any

from ..compiler import Unit

__all__ = ["QUANTIZE"]


def _entry() -> Any:
    from ..conv.dense import quantize_rows

    def quantized(address, x, given):
        quantize_rows(address, x, given)
        return 0

    return quantized


QUANTIZE = Unit("quantize", __name__, _entry, arguments=3)
