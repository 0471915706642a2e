"""A stack of Llama blocks over quantized weights, compiled by numba: all of a step in one call, shared by some threads.

Every thread runs the same function over the same record of sizes and addresses (`descriptors.PLAN`), and does its part
of each layer: its heads, its rows of the weights. They `meet` at barriers. A step reads all weights once, in the order
in which they lie in memory, so that memory sets its pace; and each token's arithmetic is the same whatever is beside
it.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, types

from .. import descriptors as at
from ..arithmetic import Quantized, gated, multiply, quantize, rms_norm
from ..barrier import await_step, begin, judge, meet, share, stop
from ..instructions import cycles, float_of, load, pointer
from ..opcodes import DRAW, END, FRAME, LEAD, SERVE
from ..scalars import OPTIONS, floats
from ..tiles import LANES, TOKENS, VALUES
from ..views import draw_at, frame_at, layer_at, plan_at
from .attention import attention
from .drawing import draw

__all__ = ["call"]

_LAYER_SIZE, _DRAW_SIZE = at.LAYER.itemsize, at.DRAW.itemsize


@njit(**OPTIONS)
def _quantize(plan, matrix, source, width, norm, begin, end, scratch, to):
    """Quantize tokens begin .. end of float32 [tokens, width] for a matrix, normalised if there is a norm."""
    block, blocks = matrix.block, matrix.blocks
    for t in range(begin, end):
        x = source + 4 * t * width
        if norm:
            normed = scratch + plan.scratch_scores  # not needed at the same time
            rms_norm(x, norm, width, plan.eps, normed)
            x = normed
        values, scales, sums = to.values + t * block * blocks, to.scales + 4 * t * blocks, to.sums + 4 * t * blocks
        quantize(x, width, block, blocks, values, scales, sums)


@njit(**OPTIONS)
def _stack(plan, control, me, threads):
    tokens, dim = plan.batch * plan.length, plan.dim
    scratch = plan.scratch + me * plan.scratch_size
    # Few tokens are quantized by every thread for itself; many are shared out, at the price of one more barrier.
    apart = tokens <= TOKENS
    given = Quantized(
        scratch + VALUES if apart else plan.shared_values,
        scratch + plan.scratch_scales if apart else plan.shared_scales,
        scratch + plan.scratch_sums if apart else plan.shared_sums,
    )
    first = 0 if apart else tokens * me // threads
    after = tokens if apart else tokens * (me + 1) // threads
    x = plan.x
    for t in range(tokens * me // threads, tokens * (me + 1) // threads):
        row, into = t // plan.length, floats(x + 4 * t * dim, dim)
        source = floats(plan.input + 4 * (row * plan.input_step + (t % plan.length) * dim), dim)
        for k in range(dim):
            into[k] = source[k]
    meet(control, threads, True)
    heads, kv_heads, tiles = plan.heads, plan.kv_heads, plan.head_dim // LANES
    group, width = heads // kv_heads, (heads + 2 * kv_heads) * plan.head_dim
    my_first, my_last = kv_heads * me // threads, kv_heads * (me + 1) // threads
    for index in range(plan.layers):
        layer = layer_at(plan.first_layer + index * _LAYER_SIZE)
        _quantize(plan, layer.qkv, x, dim, layer.attention_norm, first, after, scratch, given)
        if not apart:
            meet(control, threads, True)
        for part in range(3):
            base = 0 if part == 0 else heads + (part - 1) * kv_heads
            size = group if part == 0 else 1
            begin, end = (base + my_first * size) * tiles, (base + my_last * size) * tiles
            multiply(layer.qkv, begin, end, tokens, given, scratch, plan.qkv_out, width, False)
        attention(plan, layer, my_first, my_last, scratch)
        meet(control, threads, True)
        _quantize(plan, layer.out, plan.attended, heads * plan.head_dim, 0, first, after, scratch, given)
        if not apart:
            meet(control, threads, True)
        begin, end = layer.out.tiles * me // threads, layer.out.tiles * (me + 1) // threads
        multiply(layer.out, begin, end, tokens, given, scratch, x, dim, True)
        meet(control, threads, True)
        _quantize(plan, layer.gate_up, x, dim, layer.ffn_norm, first, after, scratch, given)
        if not apart:
            meet(control, threads, True)
        gates = plan.ffn // LANES
        begin, end = gates * me // threads, gates * (me + 1) // threads
        gated(layer.gate_up, begin, end, tokens, given, scratch, plan.inner, plan.ffn)
        meet(control, threads, True)
        _quantize(plan, layer.down, plan.inner, plan.ffn, 0, first, after, scratch, given)
        if not apart:
            meet(control, threads, True)
        begin, end = layer.down.tiles * me // threads, layer.down.tiles * (me + 1) // threads
        multiply(layer.down, begin, end, tokens, given, scratch, x, dim, True)
        meet(control, threads, True)
    if plan.wanted:
        _answers(plan, control, me, threads, scratch)


@njit(**OPTIONS)
def _answers(plan, control, me, threads, scratch):
    """The output head at each row's last position, and the state that the fast model starts from."""
    batch, length, dim = plan.batch, plan.length, plan.dim
    last = plan.last  # float32 [batch, dim], and the same normalised
    if me == 0:
        for b in range(batch):
            source, into = floats(plan.x + 4 * ((b + 1) * length - 1) * dim, dim), floats(last + 4 * b * dim, dim)
            for k in range(dim):
                into[k] = source[k]
            rms_norm(last + 4 * b * dim, plan.norm, dim, plan.eps, last + 4 * (batch + b) * dim)
    meet(control, threads, True)
    normed = last + 4 * batch * dim
    given = Quantized(plan.shared_values, plan.shared_scales, plan.shared_sums)
    if me == 0:
        _quantize(plan, plan.head, normed, dim, 0, 0, batch, scratch, given)
    meet(control, threads, True)
    begin, end = plan.head.tiles * me // threads, plan.head.tiles * (me + 1) // threads
    multiply(plan.head, begin, end, batch, given, scratch, plan.logits, plan.head.rows, False)
    if plan.hidden:
        source = normed if plan.post_norm else last
        if plan.is_projected:
            meet(control, threads, True)
            if me == 0:
                _quantize(plan, plan.projection, source, dim, 0, 0, batch, scratch, given)
            meet(control, threads, True)
            begin, end = plan.projection.tiles * me // threads, plan.projection.tiles * (me + 1) // threads
            multiply(plan.projection, begin, end, batch, given, scratch, plan.hidden, plan.hidden_width, False)
        elif me == 0:
            into, rows = floats(plan.hidden, batch * dim), floats(source, batch * dim)
            for k in range(batch * dim):
                into[k] = rows[k]


@njit(**OPTIONS)
def _run(job, control, me, threads):
    """A thread's part of a step; job, control: addresses of a plan and of a team's counters."""
    _stack(plan_at(job), control, me, threads)
    meet(control, threads, False)


@njit(**OPTIONS)
def _lead(job, control):
    """Run a step, with as many of the team's threads as share one at present."""
    threads = share(control, plan_at(job).threads)
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
    dim = frame.dim
    into = floats(frame.x + 4 * dim * row, dim)
    if frame.is_bf16:
        halves = numba.carray(pointer(frame.table + 2 * dim * code), (dim,), np.uint16)
        for k in range(dim):
            into[k] = float_of(types.int32(types.int32(halves[k]) << types.int32(16)))
    else:
        values = floats(frame.table + 4 * dim * code, dim)
        for k in range(dim):
            into[k] = values[k]


@njit(**OPTIONS)
def _frame(address, control):
    """Draw the codes that are left of a frame, with a step before each but the next."""
    frame = frame_at(address)
    rows, count = frame.rows, frame.codebooks
    codes = numba.carray(pointer(frame.codes), (rows * count,), np.int64)
    lengths = numba.carray(pointer(frame.lengths), (rows,), np.int32)
    while True:
        book, start = frame.next, cycles()
        for row in range(rows):
            where, code = frame.draws + _DRAW_SIZE * row, types.int64(-1)
            one = draw_at(where)
            if one.active:
                code = draw(where, frame.space)
                one.recent += 8 * one.window
                one.active = code >= 0
            codes[row * count + book] = code
            if book + 1 < count:
                _embed(frame, row, max(code, 0))
                lengths[row] += 1
        drawn = cycles()
        frame.drawing += drawn - start
        frame.next = book + 1
        if book + 1 == count:
            return
        _lead(frame.plan, control)
        frame.stepping += cycles() - drawn


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
