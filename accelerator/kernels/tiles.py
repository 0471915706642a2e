"""How a codec's convolutions lie in the arrays that their compiled code reads: see `filtering`."""

from __future__ import annotations

from .descriptors import LANES

__all__ = [
    "CHUNK",
    "DENSE_BIAS",
    "DENSE_DILATION",
    "DENSE_IN",
    "DENSE_OUT",
    "DENSE_ROOM",
    "DENSE_ROWS",
    "DENSE_SCALES",
    "DENSE_SIZE",
    "DENSE_TAPS",
    "DENSE_UNITS",
    "DENSE_VALUES",
    "DENSE_WEIGHTS",
    "DENSE_Y",
    "FILTERS",
    "FILTER_BIAS",
    "FILTER_DILATION",
    "FILTER_GIVEN",
    "FILTER_IN",
    "FILTER_KIND",
    "FILTER_LEVELED",
    "FILTER_OUT",
    "FILTER_OWN",
    "FILTER_ROOM",
    "FILTER_SIZE",
    "FILTER_TAPS",
    "FILTER_UNITS",
    "FILTER_WEIGHTS",
    "FILTER_X",
    "FILTER_Y",
    "LEVELED",
    "LOW",
    "MIXED",
    "MIX_BIAS",
    "MIX_IN",
    "MIX_KIND",
    "MIX_OUT",
    "MIX_ROOM",
    "MIX_ROWS",
    "MIX_SCALES",
    "MIX_SIZE",
    "MIX_UNITS",
    "MIX_VALUES",
    "MIX_WEIGHTS",
    "MIX_X",
    "MOST_LEVEL",
    "ORDER_APART",
    "ORDER_BLOCKS",
    "ORDER_FACTORS",
    "ORDER_IN",
    "ORDER_KERNEL",
    "ORDER_KIND",
    "ORDER_POINTS",
    "ORDER_RUN",
    "ORDER_SIZE",
    "ORDER_TAPS",
    "ORDER_UNITS",
    "ORDER_Y",
    "PANEL",
    "ROWS",
    "SINGLE_SIZE",
    "SINGLE_STEP",
    "SINGLE_TERMS",
    "SINGLE_WEIGHTS",
    "SINGLE_X",
    "SINGLE_Y",
    "SNAKED",
    "SNAKE_ALPHA",
    "SNAKE_CHANNELS",
    "SNAKE_KINDS",
    "SNAKE_SIZE",
    "SNAKE_X",
    "SNAKE_Y",
    "TILES",
    "TOGETHER",
    "filter_layout",
    "filter_space",
    "order_space",
]

# What is where in the arrays that describe a filter, a mix, and so on.
(
    FILTER_X, FILTER_GIVEN, FILTER_IN, FILTER_Y, FILTER_OUT, FILTER_KIND, FILTER_WEIGHTS, FILTER_BIAS, FILTER_DILATION,
    FILTER_ROOM, FILTER_UNITS, FILTER_TAPS, FILTER_LEVELED, FILTER_OWN, FILTER_SIZE,
) = range(15)  # fmt: skip
(
    MIX_VALUES, MIX_UNITS, MIX_ROOM, MIX_IN, MIX_X, MIX_ROWS, MIX_OUT, MIX_WEIGHTS, MIX_SCALES, MIX_BIAS, MIX_KIND,
    MIX_SIZE,
) = range(12)  # fmt: skip
(
    DENSE_VALUES, DENSE_UNITS, DENSE_ROOM, DENSE_ROWS, DENSE_IN, DENSE_TAPS, DENSE_DILATION, DENSE_OUT, DENSE_WEIGHTS,
    DENSE_SCALES, DENSE_BIAS, DENSE_Y, DENSE_SIZE,
) = range(13)  # fmt: skip
SINGLE_X, SINGLE_WEIGHTS, SINGLE_Y, SINGLE_TERMS, SINGLE_STEP, SINGLE_SIZE = range(6)
SNAKE_X, SNAKE_ALPHA, SNAKE_Y, SNAKE_CHANNELS, SNAKE_KINDS, SNAKE_SIZE = range(6)
(
    ORDER_KERNEL, ORDER_TAPS, ORDER_IN, ORDER_POINTS, ORDER_FACTORS, ORDER_BLOCKS, ORDER_Y, ORDER_UNITS, ORDER_KIND,
    ORDER_RUN, ORDER_SIZE,
) = range(11)  # fmt: skip
SNAKED, LOW, MIXED, LEVELED = 1, 2, 4, 8  # kinds of what a filter answers: bfloat16, for a mix, as levels for one
FILTERS = {7: 8, 2: 5}  # outputs of a tile, by taps
CHUNK = 32  # channels that lie side by side
ROWS = 12  # that are multiplied at once, with a chunk of columns
TILES, PANEL = 48, 3 * CHUNK  # that are worked on at a time: tiles, and columns of their answers
TOGETHER = 4  # chunks whose products of levels are summed in int32
MOST_LEVEL = 32_766  # of an input; what rounds to 32,767 at most
_APART = 128  # bytes between the points' values, which would lie in the same sets of a cache without them
ORDER_APART = 8  # float64 between a block's columns, likewise


def filter_layout(taps: int) -> tuple[int, int, int]:
    """Points, and bytes from one point's values to the next one's and from one point's products to the next one's."""
    return FILTERS[taps] + taps - 1, 4 * CHUNK * TILES + _APART, 4 * PANEL * TILES + _APART


def order_space(channels: int) -> int:
    """Bytes that a thread orders weights in: a block's values, float64, and what they are multiplied by."""
    return 8 * (CHUNK + 1) * (channels + ORDER_APART)


def filter_space(taps: int, channels: int) -> int:
    """Bytes that a thread works in."""
    points, values, products = filter_layout(taps)
    beside = -(-max(points * channels, FILTERS[taps] * PANEL) // LANES) * LANES
    return points * (channels // CHUNK * values + products) + 4 * (TILES + beside)
