"""How weights and values lie in memory: all sizes and offsets that several kernels, or kernels and Python, agree on.

Functions of these are plain arithmetic, so that `views` can compile them. Offsets are in bytes where nothing else is
said.
"""

from __future__ import annotations

__all__ = [
    "BLOCK_OUT",
    "CHAIN_SPACE",
    "CHUNK",
    "FILTERS",
    "LANES",
    "LARGEST_INT16",
    "PANEL",
    "PROMPT",
    "QUERIES",
    "ROWS",
    "SQUARE",
    "TILES",
    "TILE_OUT",
    "TOGETHER",
    "TOKENS",
    "VALUES",
    "block_layout",
    "filter_layout",
    "filter_scratch",
    "filter_space",
    "order_scratch",
    "row_place",
    "scratch_layout",
    "square_place",
    "whole_blocks",
]

LANES = 16  # float32 in a vector of AVX-512; also the rows of a tile of quantized weights


# A language model's step

TOKENS = 8  # that share a tile while it is in the cache
PROMPT = 8  # positions from which a row's queries are attended to eight at a time
# A thread's scratch memory: what two tiles give, float32; eight queries of 256 dimensions; quantized values.
TILE_OUT = 0
QUERIES = TILE_OUT + 2 * 4 * TOKENS * LANES
VALUES = QUERIES + 8 * 256 * 4


def block_layout(block: int, bits: int) -> tuple[int, int, int]:
    """A block of `block` columns of a tile: where its scales (float16) and its zero points (uint8) begin, and its size.

    Quantized values are at its beginning. A tile is blocks one behind the other, a matrix tiles.
    """
    scales = block * LANES * bits // 8
    zeros = scales + 2 * LANES
    return scales, zeros, zeros + LANES


def scratch_layout(
    widest: int, positions: int, dim: int, head_dim: int, is_prompt: bool
) -> tuple[int, int, int, int, int]:
    """A thread's scratch memory behind VALUES: where the scales and sums of quantized values, attention's scores and a
    prompt's keys begin, and its size.

    widest: inputs of a matrix at most, in blocks of at least 32. positions: of the cache, in whole `LANES`.
    """
    scales = VALUES + TOKENS * widest
    sums = scales + 4 * TOKENS * (widest // 32)
    scores = sums + 4 * TOKENS * (widest // 32)
    keys = scores + 4 * max((8 if is_prompt else 2) * positions, dim)
    end = keys + (4 * positions * head_dim if is_prompt else 0)
    return scales, sums, scores, keys, -(-end // 4096) * 4096


# A codec's layers

CHUNK = 32  # channels that lie side by side
SQUARE = CHUNK * CHUNK  # weights that lie together: of a chunk of channels, for a chunk of columns
ROWS = 12  # that are multiplied at once, with a chunk of columns
BLOCK_OUT = 4 * ROWS * CHUNK  # what that gives, float32
FILTERS = {7: 8, 2: 5}  # outputs of a tile, by taps
TILES, PANEL = 48, 3 * CHUNK  # that are worked on at a time: tiles, and columns of their answers
TOGETHER = 4  # chunks whose matrix products of int16 are summed in int32
LARGEST_INT16 = 32_766  # of a quantized input; what rounds to 32,767 at most
CHAIN_SPACE = 64 + 4 * SQUARE  # a thread's memory before its buffers: AMX's configuration as it was, and sums
_APART = 128  # bytes between the points' values, which would lie in the same sets of a cache without them
_ORDER_APART = 8  # float64 between a block's columns, likewise


def whole_blocks(rows: int) -> int:
    """The rows that a matrix product of so many reads and writes: whole blocks of `ROWS`."""
    return -(-rows // ROWS) * ROWS


def row_place(room: int, chunk: int, row: int) -> int:
    """Values lie as [channels / CHUNK, room, CHUNK]: the number of a row of one chunk, and of its scale."""
    return chunk * room + row


def square_place(blocks: int, chunks: int, point: int, block: int, chunk: int) -> int:
    """Weights lie as [points, columns / CHUNK, channels / CHUNK, SQUARE]: the number of a square."""
    return (point * blocks + block) * chunks + chunk


def filter_layout(taps: int) -> tuple[int, int, int]:
    """Points, and bytes from one point's values to the next one's and from one point's products to the next one's."""
    return FILTERS[taps] + taps - 1, 4 * CHUNK * TILES + _APART, 4 * PANEL * TILES + _APART


def filter_scratch(channels: int, outputs: int, points: int, pitch: int, panel: int) -> tuple[int, int, int, int]:
    """What a thread filters in: where products, the scales of int16 values, and a tile's rows begin, and its size.

    Values are at its beginning. points, pitch, panel: as `filter_layout` has them.
    """
    products = channels // CHUNK * points * pitch
    scales = products + points * panel
    rows = scales + 4 * TILES
    return products, scales, rows, rows + 4 * (-(-max(points * channels, outputs * PANEL) // LANES) * LANES)


def filter_space(taps: int, channels: int) -> int:
    """Bytes that a thread filters in."""
    return filter_scratch(channels, FILTERS[taps], *filter_layout(taps))[-1]


def order_scratch(channels: int) -> tuple[int, int, int]:
    """What a thread orders weights in, float64: numbers from one column of a block to the next, where the columns'
    scales begin, and how many there are of all."""
    step = channels + _ORDER_APART
    return step, CHUNK * step, (CHUNK + 1) * step
