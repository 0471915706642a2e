"""What the compiled code reads: sizes and addresses, as records whose fields have one name in Python and in numba.

    PLAN ──► LAYER, one behind the other ──► MATRIX    a step of a language model
    FRAME ──► PLAN, and a DRAW for each row            a frame's codes, drawn and stepped in one call
    Filter, Mix, Dense, Single, Snake, Gelu, Order     a codec's layers, and the order of their weights
    Chain ──► Link, one behind the other               convolutions for a tile of rows

NumPy fills the records, `views` reads them in compiled code. A field is an int64 where no other type is named; many are
addresses, and 0 is none. What a codec's layer reads is a tuple of int64 with names, since a window has three hundred of
these, and a tuple is made faster than an array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "AS_BF16",
    "AS_INT16",
    "CHAIN",
    "DENSE",
    "DRAW",
    "DRAW_SPACE",
    "FILTER",
    "FOR_MIX",
    "FRAME",
    "GELU",
    "LAYER",
    "LINK",
    "MATRIX",
    "MIX",
    "ORDER",
    "PLAN",
    "SINGLE",
    "SNAKE",
    "SNAKED",
    "Chain",
    "Dense",
    "Filter",
    "Gelu",
    "Link",
    "Mix",
    "Order",
    "Single",
    "Snake",
]


def _record(*fields: str | tuple[str, np.typing.DTypeLike]) -> np.dtype:
    return np.dtype([(each, np.int64) if isinstance(each, str) else each for each in fields], align=True)


# A language model's step

# A matrix of quantized weights: its tiles (see `tiles.block_layout`), and for each row a factor and a bias, float32.
# block: columns in a block. blocks: in a row.
MATRIX = _record("weights", "factors", "bias", "bits", "block", "blocks", "tiles", "rows")

# keys, values: of the cache. key_scale, value_scale: of a cache in int8.
LAYER = _record(
    *("attention_norm", "ffn_norm", "qk_norm", "key_scale", "value_scale", "keys", "values"),
    *(("qkv", MATRIX), ("out", MATRIX), ("gate_up", MATRIX), ("down", MATRIX)),
)

PLAN = _record(
    *("dim", "heads", "kv_heads", "head_dim", "ffn", "layers", "first_layer", "threads"),
    *(("eps", np.float32), "int8_cache", "cos", "sin", "norm", ("head", MATRIX)),
    *("post_norm", "hidden_width", "is_projected", ("projection", MATRIX)),
    # A run: `length` positions of `batch` rows, the first of which is number `row` of a cache of `capacity` positions.
    # back: from the last position of `seqlens` to the first of these. wanted: whether logits are.
    *("batch", "length", "capacity", "row", "back", "wanted", "input", "input_step", "seqlens", "logits", "hidden"),
    # What all threads work in, float32 but for the quantized values.
    *("x", "qkv_out", "attended", "inner", "last", "shared_values", "shared_scales", "shared_sums"),
    # What each thread works in: see `tiles.scratch_layout`.
    *("scratch", "scratch_size", "scratch_scales", "scratch_sums", "scratch_scores", "scratch_keys"),
)


# A frame

# float32 logits [count]; values that are penalised, int64 recent [window]; random numbers, float64 uniforms, `used` of
# which have been.
DRAW = _record(
    *("logits", "count", "recent", "window", "uniforms", "used", "top_k", "active"),
    *(("penalty", np.float64), ("temperature", np.float64), ("top_p", np.float64)),
)
# The `plan` of a step of `rows` rows, whose `draws` are for the codebooks from `next` on. What is drawn goes to int64
# codes [rows, codebooks], and as a row of `table` to float32 x [rows, dim]; each step adds one to int32 lengths [rows].
# space: memory for a draw. drawing, stepping: cycles that were spent on each.
FRAME = _record(
    *("plan", "rows", "codebooks", "next", "table", "is_bf16", "dim", "x", "lengths", "draws", "codes", "space"),
    *("drawing", "stepping"),
)
DRAW_SPACE = 12  # bytes of memory that a draw needs for each logit


# A codec's layers

# What a filter's `kind` is made of; a mix's and an order's is AS_BF16, AS_INT16 or 0.
SNAKED, AS_BF16, FOR_MIX, AS_INT16 = 1, 2, 4, 8


class Filter(NamedTuple):
    """y = conv(x, weights) + bias of float32 x [given, channels] by minimal filtering. kind: what becomes of y.

    is_int16: of its own matrix products, with `weight_scales`. FOR_MIX: y is the values of a `Mix`, with `room` rows
    to a chunk; AS_INT16 of these, with `y_scales`.
    """

    x: int
    given: int
    channels: int
    y: int
    columns: int
    kind: int
    weights: int
    bias: int
    dilation: int
    taps: int
    is_int16: int
    weight_scales: int
    room: int
    y_scales: int


class Mix(NamedTuple):
    """x += values weights + bias for float32 x [rows, columns], where values have `room` rows to a chunk."""

    values: int
    value_scales: int
    room: int
    channels: int
    x: int
    rows: int
    columns: int
    weights: int
    weight_scales: int
    bias: int
    kind: int


class Dense(NamedTuple):
    """y = conv(values, weights) + bias for float32 y [rows, columns], values of int16 with `room` rows to a chunk."""

    values: int
    value_scales: int
    room: int
    rows: int
    channels: int
    taps: int
    dilation: int
    columns: int
    weights: int
    weight_scales: int
    bias: int
    y: int


class Single(NamedTuple):
    """y[r] = the sum of `terms` values behind x[step r] by the weights, and the weight behind these; all float32."""

    x: int
    weights: int
    y: int
    terms: int
    step: int


class Snake(NamedTuple):
    """y = snake(x) for [rows, channels], float32 or bfloat16; alpha: float32 [channels], or 0 for ones."""

    x: int
    alpha: int
    y: int
    channels: int
    x_is_bf16: int
    y_is_bf16: int


class Gelu(NamedTuple):
    """y = gelu(x) for float32 x [rows, channels]; y alike, or with `room` rows to a chunk, as values of a `Mix`."""

    x: int
    y: int
    channels: int
    room: int


class Order(NamedTuple):
    """float32 kernel [columns, taps, channels] -> y [points, blocks, channels, CHUNK], each point's values the taps'
    sum by its factors, float64 [points, taps]. run: how many channels are multiplied before others are, for AS_INT16.
    """

    kernel: int
    taps: int
    channels: int
    points: int
    factors: int
    blocks: int
    y: int
    y_scales: int
    kind: int
    run: int


class Chain(NamedTuple):
    """`links` convolutions one after the other, each a `Link` behind this, for tiles of the last one's rows.

    tiles: the configuration of AMX, where that multiplies. rows: of the last answer. margin: rows before a tile's in a
    thread's own buffers. tile: rows of one.
    """

    tiles: int
    links: int
    rows: int
    margin: int
    tile: int


class Link(NamedTuple):
    """y = conv(x, weights) + bias + add + more, by bfloat16; low: y rectified, as the next link's x.

    Buffers are addresses of row 0, or in a thread's own memory, the offset with a minus; 0 is none. x, low: bfloat16
    with rows of `step` bytes; `rest` bytes behind a row of low, what rounding has left of it, 0 for not wanted (without
    AMX, both are one row of float32). The others: float32. exact: 1 where x and weights are float32. places: int64
    [terms, 2], offsets of 32 by 32 products from a row of x and from a block of weights, which are `panel` bytes apart.
    columns: of the product, `rate` rows of y, of which the first `pad` are cut off. halo: rows on both sides of a tile
    that are wanted. slope, low_slope: of leaky rectifiers, the bits of a float32. gated: 1 where low is tanh(u) s(g)
    instead, s being the logistic function; 16 columns of u are followed by 16 of g. moments: float32 [tiles, 2,
    channels] or 0: of each tile's rows of y, the means and the sums of squares about them. signal: float32 or 0: x, in
    a thread's own memory, is first made of it, z + sin(z)^2 for z = signal factor + shift, float32 [channels] both, for
    `reach` rows around those that are wanted, too.
    """

    x: int
    add: int
    more: int
    y: int
    low: int
    step: int
    places: int
    terms: int
    weights: int
    panel: int
    bias: int
    columns: int
    rate: int
    pad: int
    halo: int
    rest: int
    slope: int
    low_slope: int
    gated: int
    exact: int
    moments: int
    signal: int
    factor: int
    shift: int
    reach: int


FILTER, MIX, DENSE, SINGLE, SNAKE, GELU, ORDER, CHAIN, LINK = (
    _record(*each._fields) for each in (Filter, Mix, Dense, Single, Snake, Gelu, Order, Chain, Link)
)


# A team's counters, as int64 that are far enough apart to be in cache lines of their own; ASLEEP: 8 for each thread.
# TICKET: the steps so far times MANY, and the threads of the last one. What only a step's leader reads and writes: NOW,
# the threads that share a step at present; AGAIN, when more are tried; PENALTY, for how long they were not.
TICKET, BARRIER, JOB, STOP, SLEEPERS, LOST, NOW, AGAIN, PENALTY, ASLEEP = 0, 8, 16, 24, 32, 40, 48, 49, 50, 56
MANY = 1024  # there are fewer threads
MOST = 1 << 20  # numbers: no job is longer
