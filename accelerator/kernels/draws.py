"""Where a draw and a frame stand in arrays that compiled code reads: see `drawing`. Real numbers are float64."""

from __future__ import annotations

# A draw: float32 LOGITS [COUNT]; values that are penalised, int64 RECENT [WINDOW]; random numbers, float64 UNIFORMS,
# USED of which have been.
(
    LOGITS, COUNT, RECENT, WINDOW, UNIFORMS, USED, TOP_K, PENALTY, TEMPERATURE, TOP_P, ACTIVE, SIZE,
) = range(12)  # fmt: skip
# A frame: the plan of a STEP of its ROWS, whose DRAWS are for the codebooks from NEXT on. What is drawn goes to int64
# CODES [ROWS, CODEBOOKS], and as a row of TABLE to float32 X [ROWS, DIM]; each step adds one to int32 LENGTHS.
(
    STEP, ROWS, CODEBOOKS, NEXT, TABLE, IS_BF16, DIM, X, LENGTHS, DRAWS, CODES, SPACE, DRAWING, STEPPING, FRAME,
) = range(15)  # fmt: skip
SCRATCH = 12  # bytes of SPACE for each logit
