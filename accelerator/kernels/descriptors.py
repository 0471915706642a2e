"""Where a step's sizes and addresses stand in the array that the compiled code reads: see `kernels`.

A matrix is eight numbers: the addresses of its tiles, of a factor for each row and of its bias (0: none), bits, weights
in a block, blocks in a row, tiles, rows.
"""

from __future__ import annotations

(
    DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, INT8_CACHE, BATCH, LENGTH, CAPACITY, ROW, BACK, THREADS, WANTED,
    POST_NORM, PROJECTION_GIVEN, EPS, HIDDEN_WIDTH, INPUT_STEP,
    INPUT, SEQLENS, LOGITS, HIDDEN, COS, SIN, NORM,
    X, QKV_OUT, ATTENDED, INNER, TOGETHER, SHARED_VALUES, SHARED_SCALES, SHARED_SUMS,
    SCRATCH, SCRATCH_SIZE, SCRATCH_SCALES, SCRATCH_SUMS, SCRATCH_SCORES, SCRATCH_KEYS,
) = range(40)  # fmt: skip
MATRIX = 8
HEAD, PROJECTION = 40, 48
SIZE = 56  # of all this; the layers follow
ATTENTION_NORM, FFN_NORM, QK_NORM, KEY_SCALE, VALUE_SCALE, KEYS, VALUES = range(7)
QKV, OUT, GATE_UP, DOWN = (8 + MATRIX * i for i in range(4))
LAYER = 40
LANES = 16  # float32 in a vector of AVX-512; also the rows of a tile of weights
MOST = 1 << 20  # numbers: no plan is longer

PROMPT = 8  # positions from which a row's queries are attended to eight at a time
QUERY_BYTES = 8 * 256 * 4  # of eight queries

# A team's counters, as int64 that are far enough apart to be in cache lines of their own; ASLEEP: 8 for each thread.
# TICKET: the steps so far times MANY, and the THREADS of the last one. What only a step's leader reads and writes: NOW,
# the threads that share a step at present; AGAIN, when more are tried; PENALTY, for how long they were not.
TICKET, BARRIER, JOB, STOP, SLEEPERS, LOST, NOW, AGAIN, PENALTY, ASLEEP = 0, 8, 16, 24, 32, 40, 48, 49, 50, 56
MANY = 1024  # there are fewer threads
