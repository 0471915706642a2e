"""What an export must show before it is published: the figures, and the bars that they must meet.

Language models are compared on a trace: frames that PyTorch generated, with its logits at every step. ONNX Runtime is
fed the same frames (teacher forcing), so a difference at one step does not excuse the next. Figures, over all steps:

    kl               mean Kullback-Leibler divergence D(PyTorch || ONNX), in nats, of the softmaxed logits
    relative_error   ||a - b|| / ||a||, of logits less their mean (softmax does not see the mean), over all steps
    spread_error     largest difference of a logit, in standard deviations of PyTorch's logits at its step: logits have
                     no scale of their own, and rounding grows with them
    max_error        the same as an absolute difference; reported only
    agreement        share of steps with equal argmax; reported only: near-ties make it meaningless on random weights
    mismatches       steps whose argmax differs although PyTorch's two best logits are further apart than a tie
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .trace import Trace

__all__ = [
    "BARS",
    "SNR_DB",
    "Bar",
    "Trace",
    "compare_arrays",
    "compare_codes",
    "compare_logits",
    "compare_signals",
    "worst",
]


@dataclass(frozen=True)
class Bar:
    """The worst figures that still pass; None: not judged."""

    kl: float | None = None
    relative_error: float | None = None
    spread_error: float | None = None
    mismatches: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None}

    def passes(self, figures: Mapping[str, Any]) -> bool:
        """Whether every figure is finite and at or below its bar."""
        return all(np.isfinite(figures[name]) and figures[name] <= limit for name, limit in self.to_dict().items())


BARS = {
    # float32 in float32: rounding only (some 1e-5), and greedy decoding token for token
    "fp32": Bar(spread_error=5e-4, mismatches=0),
    # float32 against an engine that itself computes in bfloat16: the engine's own rounding
    "fp32/bf16": Bar(kl=0.02, relative_error=0.1),
    "int8": Bar(kl=0.02, relative_error=0.1),
    # on the trained voice 0.06 is understood as well as float32, 0.14 is not
    "int4": Bar(kl=0.1, relative_error=0.6),
}
SNR_DB = 40.0  # of audio from a part that multiplies in bfloat16, over its rounding noise
TIE = 5e-4  # logits closer than this, in standard deviations of their step's, may swap order through rounding
QUIET = 0.1  # of full scale: quieter audio is allowed the absolute error of audio this loud, which is inaudible


class Recorder:
    """A sampler that repeats a trace's frames and keeps the logits it is shown."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._step = trace, 0
        self.main_logits = np.zeros_like(trace.main_logits)
        self.code_logits = np.zeros_like(trace.code_logits)

    def main(self, logits: np.ndarray) -> int:
        self.main_logits[self._step] = logits
        return int(self._trace.frames[self._step, 0])

    def code(self, codebook: int, logits: np.ndarray) -> int:
        self.code_logits[self._step, codebook - 1] = logits
        return int(self._trace.frames[self._step, 1 + codebook])

    def push(self, frame: np.ndarray) -> None:
        self._step += 1


def replay(generate: Callable[[np.ndarray, Recorder, int], Any], trace: Trace) -> Recorder:
    """Run a generator over the trace's frames and return the logits of each step."""
    recorder = Recorder(trace)
    for _ in generate(trace.prompt, recorder, len(trace.frames)):
        pass
    return recorder


def compare_logits(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], bar: Bar) -> dict[str, Any]:
    """Figures for each named pair (PyTorch, ONNX) of logits [..., n]; passes only if every pair does."""
    report: dict[str, Any] = {"bar": bar.to_dict(), "passed": True}
    for name, (expected, actual) in pairs.items():
        figures = _logit_figures(expected.reshape(-1, expected.shape[-1]), actual.reshape(-1, actual.shape[-1]))
        report[name] = figures
        report["passed"] = report["passed"] and bar.passes(figures)
        for figure in bar.to_dict():
            report[figure] = np.maximum(report.get(figure, figures[figure]), figures[figure]).item()  # NaN stays
    return report


def _logit_figures(expected: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):  # no figures, and no pass
        unknown = dict.fromkeys(("kl", "relative_error", "spread_error", "max_error", "agreement"), np.nan)
        return {"steps": len(expected), **unknown, "mismatches": len(expected)}
    log_p, log_q = _log_softmax(expected), _log_softmax(actual)
    centred = expected - expected.mean(axis=1, keepdims=True)
    difference = centred - (actual - actual.mean(axis=1, keepdims=True))
    spread, error = expected.std(axis=1), np.abs(expected - actual).max(axis=1)
    best_two = np.partition(expected, -2, axis=1)[:, -2:]
    differs = expected.argmax(axis=1) != actual.argmax(axis=1)
    return {
        "steps": len(expected),
        "kl": float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        "relative_error": _norm(difference) / max(_norm(centred), 1e-30),
        "spread_error": float((error / np.maximum(spread, 1e-30)).max()),
        "max_error": float(error.max()),
        "agreement": float(1 - differs.mean()),
        "mismatches": int((differs & (best_two[:, 1] - best_two[:, 0] > TIE * spread)).sum()),
    }


def _norm(x: np.ndarray) -> float:
    """Summed by numpy itself: the BLAS behind `np.linalg.norm` gives sums that vary with its number of threads."""
    return float(np.sqrt(np.square(x).sum()))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def compare_arrays(pairs: Sequence[tuple[np.ndarray, np.ndarray]], tolerance: float) -> dict[str, Any]:
    """Largest difference over pairs (PyTorch, ONNX) of arrays, relative to PyTorch's largest magnitude in all of them.

    Where that is below `QUIET`, relative to `QUIET`.
    """
    worst, peak = 0.0, QUIET
    for expected, actual in pairs:
        if expected.shape != actual.shape:
            return {
                "passed": False,
                "bar": {"max_error": tolerance},
                "shapes": [list(expected.shape), list(actual.shape)],
            }
        error = float(np.abs(expected.astype(np.float64) - actual).max(initial=0))
        worst = max(worst, error if np.isfinite(error) else np.inf)
        peak = max(peak, float(np.abs(expected).max(initial=0)))
    worst = worst / peak if np.isfinite(worst) else worst
    lengths = [int(expected.shape[-1]) for expected, _ in pairs]
    return {
        "passed": bool(lengths) and worst <= tolerance,
        "bar": {"max_error": tolerance},
        "max_error": worst,
        "lengths": lengths,
    }


def worst(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several outputs' figures by `compare_arrays` those that are farthest from passing."""
    return max(reports, key=lambda report: (not report["passed"], report.get("max_error", np.inf)))


def compare_signals(pairs: Sequence[tuple[np.ndarray, np.ndarray]], at_least: float) -> dict[str, Any]:
    """The lowest signal-to-noise ratio over pairs (PyTorch, approximation), in dB; shapes must be equal."""
    worst = np.inf
    for expected, actual in pairs:
        if expected.shape != actual.shape:
            worst = -np.inf
            continue
        signal = float(np.square(expected, dtype=np.float64).sum())
        noise = float(np.square(expected.astype(np.float64) - actual).sum())
        if noise:
            worst = min(worst, 10 * np.log10(signal / noise) if signal and np.isfinite(noise) else -np.inf)
    snr = float(np.clip(worst, -200.0, 200.0))  # finite, for JSON
    return {"passed": bool(pairs) and snr >= at_least, "bar": {"snr_db": at_least}, "snr_db": snr}


def compare_codes(pairs: Sequence[tuple[np.ndarray, np.ndarray]], at_least: float) -> dict[str, Any]:
    """Share of equal codes over pairs (PyTorch, ONNX); shapes must be equal."""
    if any(expected.shape != actual.shape for expected, actual in pairs):
        return {"passed": False, "bar": {"equal": at_least}, "equal": 0.0}
    total = sum(expected.size for expected, _ in pairs)
    equal = sum(int((expected == actual).sum()) for expected, actual in pairs) / max(total, 1)
    return {"passed": equal >= at_least, "bar": {"equal": at_least}, "equal": equal}
