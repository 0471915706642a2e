"""A stack of Llama blocks over quantized weights, compiled by numba: all of a step in one call, shared by some threads.

Every thread runs the same function over the same array of sizes and addresses (`plan`), and does its part of each
layer: its heads, its rows of the weights. They `meet` at barriers. A step reads all weights once, in the order in
which they lie in memory, so that memory sets its pace; and each token's arithmetic is the same whatever is beside it.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from .. import descriptors as at
from .. import draws as of_frame
from ..arithmetic import OPTIONS, QUERIES, floats, gated, multiply, normalise, quantise
from ..barrier import await_step, begin, judge, meet, share, stop
from ..instructions import cycles, float_of, load, pointer
from ..opcodes import DRAW, END, FRAME, LEAD, SERVE
from .attention import attention
from .drawing import draw

__all__ = ["call"]


@njit(**OPTIONS)
def _levels(plan, m, source, width, norm, begin, end, scratch, values, scales, sums):
    """Quantize tokens begin .. end of float32 [tokens, width] for matrix m, normalised if there is a norm."""
    block, blocks = plan[m + 4], plan[m + 5]
    for t in range(begin, end):
        x = source + 4 * t * width
        if norm:
            normed = scratch + plan[at.SCRATCH_SCORES]  # not needed at the same time
            normalise(x, norm, width, float_of(types.int32(plan[at.EPS])), normed)
            x = normed
        quantise(x, width, block, blocks, values + t * block * blocks, scales + 4 * t * blocks, sums + 4 * t * blocks)


@njit(**OPTIONS)
def _stack(plan, control, me, threads):
    tokens, dim = plan[at.BATCH] * plan[at.LENGTH], plan[at.DIM]
    scratch = plan[at.SCRATCH] + me * plan[at.SCRATCH_SIZE]
    # Few tokens are quantized by every thread for itself; many are shared out, at the price of one more barrier.
    apart = tokens <= 8
    values = scratch + QUERIES + at.QUERY_BYTES if apart else plan[at.SHARED_VALUES]
    scales = scratch + plan[at.SCRATCH_SCALES] if apart else plan[at.SHARED_SCALES]
    sums = scratch + plan[at.SCRATCH_SUMS] if apart else plan[at.SHARED_SUMS]
    first = 0 if apart else tokens * me // threads
    after = tokens if apart else tokens * (me + 1) // threads
    x = plan[at.X]
    for t in range(tokens * me // threads, tokens * (me + 1) // threads):
        row, into = t // plan[at.LENGTH], floats(x + 4 * t * dim, dim)
        source = floats(plan[at.INPUT] + 4 * (row * plan[at.INPUT_STEP] + (t % plan[at.LENGTH]) * dim), dim)
        for k in range(dim):
            into[k] = source[k]
    meet(control, threads, True)
    heads, kv_heads, tiles = plan[at.HEADS], plan[at.KV_HEADS], plan[at.HEAD_DIM] // 16
    group, width = heads // kv_heads, (heads + 2 * kv_heads) * plan[at.HEAD_DIM]
    my_first, my_last = kv_heads * me // threads, kv_heads * (me + 1) // threads
    for index in range(plan[at.LAYERS]):
        layer = at.SIZE + index * at.LAYER
        m = layer + at.QKV
        _levels(plan, m, x, dim, plan[layer + at.ATTENTION_NORM], first, after, scratch, values, scales, sums)
        if not apart:
            meet(control, threads, True)
        for part in range(3):
            base = 0 if part == 0 else heads + (part - 1) * kv_heads
            size = group if part == 0 else 1
            begin, end = (base + my_first * size) * tiles, (base + my_last * size) * tiles
            multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, plan[at.QKV_OUT], width, False)
        attention(plan, layer, my_first, my_last, scratch)
        meet(control, threads, True)
        m = layer + at.OUT
        _levels(plan, m, plan[at.ATTENDED], heads * plan[at.HEAD_DIM], 0, first, after, scratch, values, scales, sums)
        if not apart:
            meet(control, threads, True)
        begin, end = plan[m + 6] * me // threads, plan[m + 6] * (me + 1) // threads
        multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, x, dim, True)
        meet(control, threads, True)
        m = layer + at.GATE_UP
        _levels(plan, m, x, dim, plan[layer + at.FFN_NORM], first, after, scratch, values, scales, sums)
        if not apart:
            meet(control, threads, True)
        gates = plan[at.FFN] // 16
        begin, end = gates * me // threads, gates * (me + 1) // threads
        gated(plan, m, begin, end, tokens, values, scales, sums, scratch)
        meet(control, threads, True)
        m = layer + at.DOWN
        _levels(plan, m, plan[at.INNER], plan[at.FFN], 0, first, after, scratch, values, scales, sums)
        if not apart:
            meet(control, threads, True)
        begin, end = plan[m + 6] * me // threads, plan[m + 6] * (me + 1) // threads
        multiply(plan, m, begin, end, tokens, values, scales, sums, scratch, x, dim, True)
        meet(control, threads, True)
    if plan[at.WANTED]:
        _answers(plan, control, me, threads, scratch)


@njit(**OPTIONS)
def _answers(plan, control, me, threads, scratch):
    """The output head at each row's last position, and the state that the fast model starts from."""
    batch, length, dim = plan[at.BATCH], plan[at.LENGTH], plan[at.DIM]
    eps, norms = float_of(types.int32(plan[at.EPS])), plan[at.TOGETHER]  # float32 [batch, dim], and the same normalised
    if me == 0:
        for b in range(batch):
            source, into = floats(plan[at.X] + 4 * ((b + 1) * length - 1) * dim, dim), floats(norms + 4 * b * dim, dim)
            for k in range(dim):
                into[k] = source[k]
            normalise(norms + 4 * b * dim, plan[at.NORM], dim, eps, norms + 4 * (batch + b) * dim)
    meet(control, threads, True)
    normed = norms + 4 * batch * dim
    values, scales, sums = plan[at.SHARED_VALUES], plan[at.SHARED_SCALES], plan[at.SHARED_SUMS]
    if me == 0:
        _levels(plan, at.HEAD, normed, dim, 0, 0, batch, scratch, values, scales, sums)
    meet(control, threads, True)
    begin, end = plan[at.HEAD + 6] * me // threads, plan[at.HEAD + 6] * (me + 1) // threads
    multiply(plan, at.HEAD, begin, end, batch, values, scales, sums, scratch, plan[at.LOGITS], plan[at.HEAD + 7], False)
    if plan[at.HIDDEN]:
        source = normed if plan[at.POST_NORM] else norms
        if plan[at.PROJECTION_GIVEN]:
            meet(control, threads, True)
            if me == 0:
                _levels(plan, at.PROJECTION, source, dim, 0, 0, batch, scratch, values, scales, sums)
            meet(control, threads, True)
            begin, end = plan[at.PROJECTION + 6] * me // threads, plan[at.PROJECTION + 6] * (me + 1) // threads
            width = plan[at.HIDDEN_WIDTH]
            multiply(
                plan, at.PROJECTION, begin, end, batch, values, scales, sums, scratch, plan[at.HIDDEN], width, False
            )
        elif me == 0:
            into, rows = floats(plan[at.HIDDEN], batch * dim), floats(source, batch * dim)
            for k in range(batch * dim):
                into[k] = rows[k]


@njit(**OPTIONS)
def _run(job, control, me, threads):
    """A thread's part of a step; job, control: addresses of a plan and of a team's counters."""
    plan = numba.carray(pointer(job), (at.MOST,), np.int64)
    _stack(plan, control, me, threads)
    meet(control, threads, False)


@njit(**OPTIONS)
def _lead(job, control):
    """Run a step, with as many of the team's threads as share one at present."""
    plan = numba.carray(pointer(job), (at.MOST,), np.int64)
    threads = share(control, plan[at.THREADS])
    if threads == 1:
        _run(job, control, 0, 1)
        return
    start, lost = cycles(), load(control + 8 * at.LOST)
    begin(control, job, threads)
    _run(job, control, 0, threads)
    judge(control, threads, cycles() - start, load(control + 8 * at.LOST) - lost)


@njit(**OPTIONS)
def _serve(control, me):
    """Do a thread's part of every step that it shares, until the team's end."""
    ticket = await_step(control, me, 0)
    while ticket >= 0:
        if me < ticket % at.MANY:
            _run(load(control + 8 * at.JOB), control, me, ticket % at.MANY)
        ticket = await_step(control, me, ticket)


@njit(**OPTIONS)
def _embed(frame, row, code):
    """A code's embedding -> the next step's input."""
    dim = frame[of_frame.DIM]
    into = floats(frame[of_frame.X] + 4 * dim * row, dim)
    if frame[of_frame.IS_BF16]:
        halves = numba.carray(pointer(frame[of_frame.TABLE] + 2 * dim * code), (dim,), np.uint16)
        for k in range(dim):
            into[k] = float_of(types.int32(types.int32(halves[k]) << types.int32(16)))
    else:
        values = floats(frame[of_frame.TABLE] + 4 * dim * code, dim)
        for k in range(dim):
            into[k] = values[k]


@njit(**OPTIONS)
def _frame(address, control):
    """Draw the codes that are left of a frame, with a step before each but the next."""
    frame = numba.carray(pointer(address), (of_frame.FRAME,), np.int64)
    rows, count = frame[of_frame.ROWS], frame[of_frame.CODEBOOKS]
    codes = numba.carray(pointer(frame[of_frame.CODES]), (rows * count,), np.int64)
    lengths = numba.carray(pointer(frame[of_frame.LENGTHS]), (rows,), np.int32)
    while True:
        book, start = frame[of_frame.NEXT], cycles()
        for row in range(rows):
            where, code = frame[of_frame.DRAWS] + 8 * of_frame.SIZE * row, types.int64(-1)
            one = numba.carray(pointer(where), (of_frame.SIZE,), np.int64)
            if one[of_frame.ACTIVE]:
                code = draw(where, frame[of_frame.SPACE])
                one[of_frame.RECENT] += 8 * one[of_frame.WINDOW]
                one[of_frame.ACTIVE] = code >= 0
            codes[row * count + book] = code
            if book + 1 < count:
                _embed(frame, row, max(code, 0))
                lengths[row] += 1
        drawn = cycles()
        frame[of_frame.DRAWING] += drawn - start
        frame[of_frame.NEXT] = book + 1
        if book + 1 == count:
            return
        _lead(frame[of_frame.STEP], control)
        frame[of_frame.STEPPING] += cycles() - drawn


def call(what, a, b):
    """The one function that is compiled."""
    if what == LEAD:
        _lead(a, b)
    elif what == SERVE:
        _serve(a, b)
    elif what == END:
        stop(a, b)
    elif what == FRAME:
        _frame(a, b)
    elif what == DRAW:
        return draw(a, b)
    return 0
