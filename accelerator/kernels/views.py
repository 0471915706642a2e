"""`descriptors` and `tiles` in compiled code: `plan_at(address).heads` is a number there, and can be assigned to."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from . import descriptors, tiles

__all__ = [
    "block_layout",
    "chain_at",
    "dense_at",
    "draw_at",
    "filter_at",
    "filter_scratch",
    "frame_at",
    "gelu_at",
    "layer_at",
    "link_at",
    "mix_at",
    "order_at",
    "order_scratch",
    "plan_at",
    "row_place",
    "single_at",
    "snake_at",
    "square_place",
]


def _view(dtype: np.dtype) -> Any:
    """An intrinsic: the record of that type at an address."""
    kind = numba.from_dtype(dtype)

    def typed(context: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(kind))

        return kind(types.int64), code

    return intrinsic(typed)


plan_at, layer_at = _view(descriptors.PLAN), _view(descriptors.LAYER)
frame_at, draw_at = _view(descriptors.FRAME), _view(descriptors.DRAW)
filter_at, mix_at, dense_at = (_view(each) for each in (descriptors.FILTER, descriptors.MIX, descriptors.DENSE))
chain_at, link_at = (_view(each) for each in (descriptors.CHAIN, descriptors.LINK))
single_at, snake_at, order_at = (_view(each) for each in (descriptors.SINGLE, descriptors.SNAKE, descriptors.ORDER))
gelu_at = _view(descriptors.GELU)

block_layout, filter_scratch, order_scratch, row_place, square_place = (
    njit(inline="always")(each)
    for each in (
        tiles.block_layout, tiles.filter_scratch, tiles.order_scratch, tiles.row_place, tiles.square_place,
    )
)  # fmt: skip
