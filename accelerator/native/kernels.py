"""A stack of Llama blocks over quantized weights, compiled by numba: all of a step in one call, shared by some threads.

Every thread runs the same function over the same array of sizes and addresses (`plan`), and does its part of each
layer: its heads, its rows of the weights. They meet at `_barrier`s. A step reads all weights once, in the order in
which they lie in memory, so that memory sets its pace; and each token's arithmetic is the same whatever is beside it.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import njit, types

from . import instructions
from .compiled import LEAD, PACK, RUN, SERVE
from .instructions import add, cycles, float_of, load, pause, pointer, store, swap
from .plan import (
    ASLEEP,
    ATTENDED,
    ATTENTION_NORM,
    BACK,
    BARRIER,
    BATCH,
    CAPACITY,
    COS,
    DIM,
    DOWN,
    EPS,
    FFN,
    FFN_NORM,
    GATE_UP,
    HEAD,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    HIDDEN_WIDTH,
    INNER,
    INPUT,
    INPUT_STEP,
    INT8_CACHE,
    JOB,
    KEY_SCALE,
    KEYS,
    KV_HEADS,
    LAYER,
    LAYERS,
    LENGTH,
    LOGITS,
    MOST,
    NORM,
    OUT,
    POST_NORM,
    PROJECTION,
    PROJECTION_GIVEN,
    QK_NORM,
    QKV,
    QKV_OUT,
    ROW,
    SCRATCH,
    SCRATCH_SCALES,
    SCRATCH_SCORES,
    SCRATCH_SIZE,
    SCRATCH_SUMS,
    SEQLENS,
    SHARED_SCALES,
    SHARED_SUMS,
    SHARED_VALUES,
    SIN,
    SIZE,
    SPIN,
    STOP,
    THREADS,
    TICKET,
    TOGETHER,
    VALUE_SCALE,
    VALUES,
    WANTED,
    X,
)

__all__ = ["LEAD", "PACK", "RUN", "SERVE", "call"]

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
_P41, _P42, _P44, _P48 = (instructions.product[4, n] for n in (1, 2, 4, 8))
_P81, _P82, _P84, _P88 = (instructions.product[8, n] for n in (1, 2, 4, 8))
_S1, _S2, _SF1, _SF2 = (instructions.scores[i, n] for i in (True, False) for n in (1, 2))
_A11, _A14, _A21, _A24 = (instructions.attend[True, n, c] for n in (1, 2) for c in (1, 4))
_F11, _F14, _F21, _F24 = (instructions.attend[False, n, c] for n in (1, 2) for c in (1, 4))
_LOG2E = np.float32(math.log2(math.e))
_Y, _Q = 0, 2 * 8 * 16 * 4  # in a thread's scratch: two tiles' products, then two heads' queries
_F32 = np.float32


@njit(inline="always")
def _f(address, count):
    return numba.carray(pointer(address), (count,), np.float32)


@njit(inline="always")
def _exp(x):
    """e^x to 3e-7 for x <= 88: 2^whole, times a polynomial for the rest."""
    t = max(x * _LOG2E, _F32(-126.0))
    whole = np.floor(t + _F32(0.5))
    y = (t - whole) * _F32(math.log(2))
    p = _F32(1 / 720)
    p = p * y + _F32(1 / 120)
    p = p * y + _F32(1 / 24)
    p = p * y + _F32(1 / 6)
    p = p * y + _F32(0.5)
    p = p * y + _F32(1)
    p = p * y + _F32(1)
    return p * float_of(types.int32((types.int32(whole) + types.int32(127)) << types.int32(23)))


@njit(**_OPTIONS)
def _barrier(control, threads):
    """Wait until all threads are here."""
    if threads > 1:
        counter = control + 8 * BARRIER
        before = add(counter, 1)
        goal = (before // threads + 1) * threads
        while load(counter) < goal:
            pause()


@njit(**_OPTIONS)
def _quantise(x, width, block, blocks, values, scales, sums):
    """float32 [width] at x -> int8 levels [blocks, block], and float32 scales and sums of levels of each block."""
    source, levels = _f(x, width), numba.carray(pointer(values), (blocks * block,), np.int8)
    scale, total = _f(scales, blocks), _f(sums, blocks)
    for i in range(blocks):
        size = min(block, width - i * block)
        part, into = source[i * block : i * block + size], levels[i * block : (i + 1) * block]
        for k in range(size, block):
            into[k] = 0
        largest, check = _F32(0), _F32(0)
        for k in range(size):
            largest = max(largest, abs(part[k]))
            check += part[k] * _F32(0)
        inverse = _F32(127) / largest if largest > _F32(1e-30) else _F32(0)
        sum_ = types.int32(0)
        for k in range(size):
            level = types.int32(np.floor(part[k] * inverse + _F32(0.5)))
            into[k] = types.int8(level)
            sum_ += level
        scale[i] = largest / _F32(127) + check  # not a number if one of them is none
        total[i] = _F32(sum_)


@njit(**_OPTIONS)
def _normalise(x, weight, width, eps, out):
    """RMSNorm."""
    source, scale, target = _f(x, width), _f(weight, width), _f(out, width)
    square = _F32(0)
    for k in range(width):
        square += source[k] * source[k]
    factor = _F32(1) / np.sqrt(square / _F32(width) + eps)
    for k in range(width):
        target[k] = source[k] * factor * scale[k]


@njit(**_OPTIONS)
def _product(bits, rows, weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step):
    if bits == 4:
        if rows == 1:
            _P41(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        elif rows == 2:
            _P42(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        elif rows <= 4:
            _P44(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
        else:
            _P48(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows == 1:
        _P81(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows == 2:
        _P82(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    elif rows <= 4:
        _P84(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)
    else:
        _P88(weights, blocks, pairs, values, scales, sums, factor, out, value_step, scale_step, 64)


@njit(**_OPTIONS)
def _tile(plan, m, tile, tokens, first, values, scales, sums, y):
    """One tile of matrix m (16 rows of weights) by tokens first .. first + 8 -> float32 [8, 16] at y."""
    bits, block, blocks = plan[m + 3], plan[m + 4], plan[m + 5]
    tile_size = blocks * (block * 2 * bits + 48)
    width = block * blocks
    _product(
        bits,
        min(8, tokens - first),
        plan[m] + tile * tile_size,
        blocks,
        block // 32,
        values + first * width,
        scales + first * blocks * 4,
        sums + first * blocks * 4,
        plan[m + 1] + tile * 64,
        y,
        width,
        blocks * 4,
    )


@njit(**_OPTIONS)
def _multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, target, step, adds):
    """Tiles begin .. end of matrix m by all tokens, with its bias: put into, or added to, float32 [tokens, step]."""
    products, rows = _f(scratch + _Y, 128), plan[m + 7]
    for tile in range(begin, end):
        columns = min(16, rows - 16 * tile)
        for first in range(0, tokens, 8):
            _tile(plan, m, tile, tokens, first, values, scales, sums, scratch + _Y)
            for t in range(min(8, tokens - first)):
                out, y = _f(target + 4 * ((first + t) * step + 16 * tile), columns), products[16 * t : 16 * t + columns]
                if plan[m + 2]:
                    bias = _f(plan[m + 2] + 64 * tile, columns)
                    for k in range(columns):
                        y[k] += bias[k]
                if adds:
                    for k in range(columns):
                        out[k] += y[k]
                else:
                    for k in range(columns):
                        out[k] = y[k]


@njit(**_OPTIONS)
def _gated(plan, m, begin, end, tokens, values, scales, sums, scratch):
    """Tiles begin .. end of SwiGLU's gate, each before that of what it lets through: silu(gate) * up."""
    ffn = plan[FFN]
    products = _f(scratch + _Y, 256)
    for tile in range(begin, end):
        for first in range(0, tokens, 8):
            _tile(plan, m, 2 * tile, tokens, first, values, scales, sums, scratch + _Y)
            _tile(plan, m, 2 * tile + 1, tokens, first, values, scales, sums, scratch + _Y + 512)
            for t in range(min(8, tokens - first)):
                out = _f(plan[INNER] + 4 * ((first + t) * ffn + 16 * tile), 16)
                for k in range(16):
                    gate = products[16 * t + k]
                    out[k] = gate / (_F32(1) + _exp(min(-gate, _F32(80)))) * products[128 + 16 * t + k]


@njit(**_OPTIONS)
def _head(plan, layer, x, weight, position):
    """A query's or key's head in place: its norm, if the model has one, and its rotation."""
    size = plan[HEAD_DIM]
    if plan[layer + QK_NORM]:
        _normalise(x, plan[layer + QK_NORM] + 4 * weight, size, float_of(types.int32(plan[EPS])), x)
    half = size // 2
    values, cos, sin = _f(x, size), _f(plan[COS] + 4 * half * position, half), _f(plan[SIN] + 4 * half * position, half)
    for k in range(half):
        even, odd = values[2 * k], values[2 * k + 1]
        values[2 * k] = even * cos[k] - odd * sin[k]
        values[2 * k + 1] = odd * cos[k] + even * sin[k]


@njit(**_OPTIONS)
def _keep(plan, x, scale, cache, at):
    """Put a head's key or value float32 [head_dim] at x into the cache, at its value number `at`."""
    size = plan[HEAD_DIM]
    source = _f(x, size)
    if plan[INT8_CACHE]:
        into, step = numba.carray(pointer(cache + at), (size,), np.int8), _f(scale, size)
        for k in range(size):
            level = np.floor(source[k] / step[k] + _F32(0.5))
            into[k] = types.int8(min(max(level, _F32(-128)), _F32(127)))
    else:
        copy = _f(cache + 4 * at, size)
        for k in range(size):
            copy[k] = source[k]


@njit(**_OPTIONS)
def _softmax(scores, count):
    values = _f(scores, count)
    largest = values[0]
    for j in range(count):
        largest = max(largest, values[j])
    total = _F32(0)
    for j in range(count):
        values[j] = _exp(values[j] - largest)
        total += values[j]
    inverse = _F32(1) / total
    for j in range(count):
        values[j] *= inverse


@njit(**_OPTIONS)
def _weighted(int8_cache, heads, weights, weight_step, values, row, count, out, out_step, size):
    """The sum of `count` values by their weights, for one or two heads."""
    item = 1 if int8_cache else 4
    for start in range(0, size, 64):
        at, to = values + start * item, out + 4 * start
        if size - start >= 64:
            if int8_cache:
                if heads == 1:
                    _A14(weights, weight_step, at, row, count, to, out_step)
                else:
                    _A24(weights, weight_step, at, row, count, to, out_step)
            elif heads == 1:
                _F14(weights, weight_step, at, row, count, to, out_step)
            else:
                _F24(weights, weight_step, at, row, count, to, out_step)
        else:
            for more in range(0, size - start, 16):
                if int8_cache:
                    if heads == 1:
                        _A11(weights, weight_step, at + more, row, count, to + 4 * more, out_step)
                    else:
                        _A21(weights, weight_step, at + more, row, count, to + 4 * more, out_step)
                elif heads == 1:
                    _F11(weights, weight_step, at + 4 * more, row, count, to + 4 * more, out_step)
                else:
                    _F21(weights, weight_step, at + 4 * more, row, count, to + 4 * more, out_step)


@njit(**_OPTIONS)
def _attention(plan, layer, begin, end, scratch):
    """Grouped-query attention of key-value heads begin .. end: keys and values into the cache, then all queries."""
    size, heads, kv_heads = plan[HEAD_DIM], plan[HEADS], plan[KV_HEADS]
    group, width, length = heads // kv_heads, (heads + 2 * kv_heads) * size, plan[LENGTH]
    capacity, int8_cache = plan[CAPACITY], plan[INT8_CACHE]
    item = 1 if int8_cache else 4
    last = numba.carray(pointer(plan[SEQLENS]), (plan[BATCH],), np.int32)
    root = _F32(1) / np.sqrt(_F32(size))
    scores = scratch + plan[SCRATCH_SCORES]
    for head in range(begin, end):
        for b in range(plan[BATCH]):
            slot = ((plan[ROW] + b) * kv_heads + head) * capacity * size
            start = last[b] - plan[BACK]
            for s in range(length):
                key = plan[QKV_OUT] + 4 * ((b * length + s) * width + (heads + head) * size)
                _head(plan, layer, key, (heads + head) * size, start + s)
                at = slot + (start + s) * size
                _keep(plan, key, plan[layer + KEY_SCALE] + 4 * head * size, plan[layer + KEYS], at)
                value = key + 4 * kv_heads * size
                _keep(plan, value, plan[layer + VALUE_SCALE] + 4 * head * size, plan[layer + VALUES], at)
            for s in range(length):
                count = start + s + 1
                token = b * length + s
                for h in range(0, group, 2):
                    pair = min(2, group - h)
                    for i in range(pair):
                        query = plan[QKV_OUT] + 4 * (token * width + (head * group + h + i) * size)
                        _head(plan, layer, query, (head * group + h + i) * size, start + s)
                        source, into = _f(query, size), _f(scratch + _Q + 4 * i * size, size)
                        if int8_cache:
                            step = _f(plan[layer + KEY_SCALE] + 4 * head * size, size)
                            for k in range(size):
                                into[k] = source[k] * root * step[k]
                        else:
                            for k in range(size):
                                into[k] = source[k] * root
                    keys = plan[layer + KEYS] + slot * item
                    if int8_cache:
                        if pair == 1:
                            _S1(scratch + _Q, keys, count, size // 16, scores, 4 * capacity)
                        else:
                            _S2(scratch + _Q, keys, count, size // 16, scores, 4 * capacity)
                    elif pair == 1:
                        _SF1(scratch + _Q, keys, count, size // 16, scores, 4 * capacity)
                    else:
                        _SF2(scratch + _Q, keys, count, size // 16, scores, 4 * capacity)
                    for i in range(pair):
                        _softmax(scores + 4 * i * capacity, count)
                    out = plan[ATTENDED] + 4 * (token * heads + head * group + h) * size
                    values = plan[layer + VALUES] + slot * item
                    _weighted(int8_cache, pair, scores, 4 * capacity, values, size * item, count, out, 4 * size, size)
                    if int8_cache:
                        step = _f(plan[layer + VALUE_SCALE] + 4 * head * size, size)
                        for i in range(pair):
                            attended = _f(out + 4 * i * size, size)
                            for k in range(size):
                                attended[k] *= step[k]


@njit(**_OPTIONS)
def _levels(plan, m, source, width, norm, begin, end, scratch, values, scales, sums):
    """Quantize tokens begin .. end of float32 [tokens, width] for matrix m, normalised if there is a norm."""
    block, blocks = plan[m + 4], plan[m + 5]
    for t in range(begin, end):
        x = source + 4 * t * width
        if norm:
            normed = scratch + plan[SCRATCH_SCORES]  # not needed at the same time
            _normalise(x, norm, width, float_of(types.int32(plan[EPS])), normed)
            x = normed
        _quantise(x, width, block, blocks, values + t * block * blocks, scales + 4 * t * blocks, sums + 4 * t * blocks)


@njit(**_OPTIONS)
def _stack(plan, control, me):
    threads, tokens, dim = plan[THREADS], plan[BATCH] * plan[LENGTH], plan[DIM]
    scratch = plan[SCRATCH] + me * plan[SCRATCH_SIZE]
    # Few tokens are quantized by every thread for itself; many are shared out, at the price of one more barrier.
    apart = tokens <= 8
    values = scratch + _Q + 4096 if apart else plan[SHARED_VALUES]
    scales = scratch + plan[SCRATCH_SCALES] if apart else plan[SHARED_SCALES]
    sums = scratch + plan[SCRATCH_SUMS] if apart else plan[SHARED_SUMS]
    first = 0 if apart else tokens * me // threads
    after = tokens if apart else tokens * (me + 1) // threads
    x = plan[X]
    for t in range(tokens * me // threads, tokens * (me + 1) // threads):
        row, into = t // plan[LENGTH], _f(x + 4 * t * dim, dim)
        source = _f(plan[INPUT] + 4 * (row * plan[INPUT_STEP] + (t % plan[LENGTH]) * dim), dim)
        for k in range(dim):
            into[k] = source[k]
    _barrier(control, threads)
    heads, kv_heads, tiles = plan[HEADS], plan[KV_HEADS], plan[HEAD_DIM] // 16
    group, width = heads // kv_heads, (heads + 2 * kv_heads) * plan[HEAD_DIM]
    my_first, my_last = kv_heads * me // threads, kv_heads * (me + 1) // threads
    for index in range(plan[LAYERS]):
        layer = SIZE + index * LAYER
        m = layer + QKV
        _levels(plan, m, x, dim, plan[layer + ATTENTION_NORM], first, after, scratch, values, scales, sums)
        if not apart:
            _barrier(control, threads)
        for part in range(3):
            base = 0 if part == 0 else heads + (part - 1) * kv_heads
            size = group if part == 0 else 1
            begin, end = (base + my_first * size) * tiles, (base + my_last * size) * tiles
            _multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, plan[QKV_OUT], width, False)
        _attention(plan, layer, my_first, my_last, scratch)
        _barrier(control, threads)
        m = layer + OUT
        _levels(plan, m, plan[ATTENDED], heads * plan[HEAD_DIM], 0, first, after, scratch, values, scales, sums)
        if not apart:
            _barrier(control, threads)
        begin, end = plan[m + 6] * me // threads, plan[m + 6] * (me + 1) // threads
        _multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, x, dim, True)
        _barrier(control, threads)
        m = layer + GATE_UP
        _levels(plan, m, x, dim, plan[layer + FFN_NORM], first, after, scratch, values, scales, sums)
        if not apart:
            _barrier(control, threads)
        gates = plan[FFN] // 16
        begin, end = gates * me // threads, gates * (me + 1) // threads
        _gated(plan, m, begin, end, tokens, values, scales, sums, scratch)
        _barrier(control, threads)
        m = layer + DOWN
        _levels(plan, m, plan[INNER], plan[FFN], 0, first, after, scratch, values, scales, sums)
        if not apart:
            _barrier(control, threads)
        begin, end = plan[m + 6] * me // threads, plan[m + 6] * (me + 1) // threads
        _multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, x, dim, True)
        _barrier(control, threads)
    if plan[WANTED]:
        _answers(plan, control, me, scratch)


@njit(**_OPTIONS)
def _answers(plan, control, me, scratch):
    """The output head at each row's last position, and the state that the fast model starts from."""
    batch, length, dim, threads = plan[BATCH], plan[LENGTH], plan[DIM], plan[THREADS]
    eps, norms = float_of(types.int32(plan[EPS])), plan[TOGETHER]  # float32 [batch, dim], and the same normalised
    if me == 0:
        for b in range(batch):
            source, into = _f(plan[X] + 4 * ((b + 1) * length - 1) * dim, dim), _f(norms + 4 * b * dim, dim)
            for k in range(dim):
                into[k] = source[k]
            _normalise(norms + 4 * b * dim, plan[NORM], dim, eps, norms + 4 * (batch + b) * dim)
    _barrier(control, threads)
    normed = norms + 4 * batch * dim
    values, scales, sums = plan[SHARED_VALUES], plan[SHARED_SCALES], plan[SHARED_SUMS]
    if me == 0:
        _levels(plan, HEAD, normed, dim, 0, 0, batch, scratch, values, scales, sums)
    _barrier(control, threads)
    begin, end = plan[HEAD + 6] * me // threads, plan[HEAD + 6] * (me + 1) // threads
    _multiply(plan, HEAD, begin, end, batch, values, scales, sums, scratch, plan[LOGITS], plan[HEAD + 7], False)
    if plan[HIDDEN]:
        source = normed if plan[POST_NORM] else norms
        if plan[PROJECTION_GIVEN]:
            _barrier(control, threads)
            if me == 0:
                _levels(plan, PROJECTION, source, dim, 0, 0, batch, scratch, values, scales, sums)
            _barrier(control, threads)
            begin, end = plan[PROJECTION + 6] * me // threads, plan[PROJECTION + 6] * (me + 1) // threads
            _multiply(
                plan, PROJECTION, begin, end, batch, values, scales, sums, scratch, plan[HIDDEN], plan[HIDDEN_WIDTH],
                False,
            )  # fmt: skip
        elif me == 0:
            into, rows = _f(plan[HIDDEN], batch * dim), _f(source, batch * dim)
            for k in range(batch * dim):
                into[k] = rows[k]


@njit(**_OPTIONS)
def _run(job, control, me):
    """A thread's part of a step; job, control: addresses of a plan and of a team's counters."""
    plan = numba.carray(pointer(job), (MOST,), np.int64)
    _stack(plan, control, me)
    _barrier(control, plan[THREADS])


@njit(**_OPTIONS)
def _lead(job, control):
    """Run a step with all threads. Answers which of them are asleep, as bits: if there are any, nothing has run yet,
    and whoever wakes them must call `_run`."""
    plan = numba.carray(pointer(job), (MOST,), np.int64)
    store(control + 8 * JOB, job)
    add(control + 8 * TICKET, 1)
    asleep = 0
    for i in range(1, plan[THREADS]):
        if swap(control + 8 * (ASLEEP + 8 * i), 0) == 1:
            asleep |= 1 << i
    if asleep == 0:
        _run(job, control, 0)
    return asleep


@njit(**_OPTIONS)
def _serve(control, me, last):
    """Do a thread's part of every step behind number `last`; answers the last one's number when there has been none for
    a while (then the thread has to sleep until it is woken), or -1 at the end."""
    start = cycles()
    while True:
        ticket = load(control + 8 * TICKET)
        if ticket != last:
            if load(control + 8 * STOP):
                return -1
            _run(load(control + 8 * JOB), control, me)
            last = ticket
            start = cycles()
        elif cycles() - start > SPIN:
            flag = control + 8 * (ASLEEP + 8 * me)
            swap(flag, 1)
            if load(control + 8 * TICKET) != last and swap(flag, 0) == 1:
                continue
            return last
        else:
            pause()


@njit(**_OPTIONS)
def _pack(source, target, rows, blocks, block, bits):
    """Levels uint8 [rows, blocks, block * bits / 8] (4 bits: the even ones in the lower halves) -> tiles of 16 rows."""
    given = numba.carray(pointer(source), (rows * blocks * block * bits // 32,), np.uint32)
    words = block * bits // 32  # of a row's block
    step = block * bits // 2 + 12  # of a tile's block, in words
    into = numba.carray(pointer(target), (-(-rows // 16) * blocks * step,), np.uint32)
    for row in range(rows):
        tile, lane = row // 16, row % 16
        for b in range(blocks):
            at = (tile * blocks + b) * step + lane
            start = (row * blocks + b) * words
            for w in range(words):
                word = given[start + w]
                if bits == 4:
                    low, high = word & np.uint32(0xFFFF), word >> np.uint32(16)
                    low = (low | low << np.uint32(8)) & np.uint32(0x00FF00FF)
                    high = (high | high << np.uint32(8)) & np.uint32(0x00FF00FF)
                    low = (low | low << np.uint32(4)) & np.uint32(0x0F0F0F0F)
                    high = (high | high << np.uint32(4)) & np.uint32(0x0F0F0F0F)
                    word = np.uint32(low | high << np.uint32(4))
                into[at + 16 * w] = word


def call(what, a, b, c, d, e, f):
    """The one function that is compiled."""
    if what == RUN:
        _run(a, b, c)
    elif what == LEAD:
        return _lead(a, b)
    elif what == SERVE:
        return _serve(a, b, c)
    elif what == PACK:
        _pack(a, b, c, d, e, f)
    return 0
