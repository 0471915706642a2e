"""Figures over rounds, and ratios of arms pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["ratio", "summarize"]


def summarize(values: Sequence[float | None], unit: str) -> dict[str, Any] | None:
    """{median, min, max, p25, p75, n, unit, values}; None where nothing was measured.

    values: one per round, None for rounds without an answer. Quartiles interpolate linearly.
    """
    known = np.array([v for v in values if v is not None], np.float64)
    if not known.size:
        return None
    low, p25, median, p75, high = (float(v) for v in np.percentile(known, (0, 25, 50, 75, 100)))
    figures = {"median": median, "min": low, "max": high, "p25": p25, "p75": p75}
    return {**figures, "n": int(known.size), "unit": unit, "values": list(values)}


def ratio(baseline: Sequence[float | None], arm: Sequence[float | None]) -> dict[str, Any] | None:
    """Figures of baseline / arm, round by round: how many times less the arm needs. Rounds lacking either are left out.

    Both of a pair were measured within moments of each other, so what disturbs the machine slowly cancels out.
    """
    pairs = zip(baseline, arm, strict=False)
    return summarize([None if a is None or b is None or b <= 0 else a / b for a, b in pairs], "ratio")
