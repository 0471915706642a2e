"""The measures: one piece of work, timed once on one arm."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EngineError
from ..hardware import choose_tier, detect
from ..inference.transformer import StepTimes
from ..parts.language_model import LANGUAGE_MODEL
from ..speech import SamplingParams
from .arms import KINDS, Arm, Spoken, tone
from .plan import Measure, Plan

__all__ = ["take", "tune"]

_SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.7,
    "top_k": 30,
    "repetition_penalty": 1.1,
}  # the same for all arms
_SEEDS = 8  # tried until one lets the speech last; only trained or unlucky random weights end early
_LONG_ENOUGH = 0.8  # of the frames asked for


def take(arm: Arm, measure: Measure, *, frames: int, text: str) -> dict[str, float]:
    """Metric -> value, in seconds unless its name says otherwise. Raises what the engine raises."""
    if measure.kind == "language_model":
        arm.use_threads("language_model")
        return _language_model(arm, int(measure.size), frames)
    if measure.kind == "speak":
        arm.use_threads("speak")
        return _speak(arm, text, frames)
    arm.use_threads("codec")
    if measure.kind == "decode":
        codes, call = _codes(arm, measure.size), arm.call("decoder")
    else:
        codes, call = tone(arm.adapter.sample_rate, measure.size), arm.call("encoder")
    start = time.perf_counter()
    call(codes)
    return {f"{measure.kind}_{measure.size:g}s": time.perf_counter() - start}


@dataclass
class _Run:
    """One generation: seconds to the first frame, then `steps` decode steps in `decode_s`, split as far as known."""

    prefill_s: float
    decode_s: float
    steps: int
    split: dict[str, float]


def _language_model(arm: Arm, context: int, frames: int) -> dict[str, float]:
    call, prompt = arm.call(LANGUAGE_MODEL), arm.prompt(context)
    timed = "times" in inspect.signature(call).parameters
    best: _Run | None = None
    first = arm.seeds.get(key := f"language_model {context}", 0)
    for seed in range(first, first + _SEEDS):
        run = _generate(arm, call, prompt, seed, frames, timed)
        if best is None or run.steps > best.steps:
            best, arm.seeds[key] = run, seed
        if best.steps >= frames:
            break
    assert best is not None
    if not best.steps:
        raise EngineError(f"the model ends its speech at once after a prompt of {context} positions")
    frame = f"frame_{context}"
    each = {f"{frame}_{part}": seconds / best.steps for part, seconds in best.split.items()}
    return {f"prefill_{context}": best.prefill_s, frame: best.decode_s / best.steps, **each}


def _generate(arm: Arm, call: Any, prompt: np.ndarray, seed: int, frames: int, timed: bool) -> _Run:
    params = SamplingParams(**_SAMPLING, seed=seed, max_new_tokens=frames + 1)
    times = StepTimes()
    with arm.torch_times(times):
        start = time.perf_counter()
        items = iter(call(prompt, params, **({"times": times} if timed else {})))
        if next(items, None) is None:
            return _Run(time.perf_counter() - start, 0.0, 0, {})
        first = last = time.perf_counter()
        before, steps = dict(vars(times)), 0
        for _ in items:
            last = time.perf_counter()
            steps += 1
    decode_s = last - first
    split = {part: getattr(times, part) - before[part] for part in ("slow", "fast", "sampling")}
    # What was not timed is zero: PyTorch's sampling then counts to the rest, with embeddings and Python itself.
    split = {part: seconds for part, seconds in split.items() if seconds > 0}
    if split:
        split["rest"] = max(0.0, decode_s - sum(split.values()))
    return _Run(first - start, decode_s, steps, split)


def _speak(arm: Arm, text: str, frames: int) -> dict[str, float]:
    """Without a seed, which users seldom give: an answer that shall not depend on others' costs more."""
    frame_s = arm.frame_s
    best: Spoken | None = None
    for _ in range(_SEEDS):
        spoken = arm.speak(text, SamplingParams(max_new_tokens=frames))
        if best is None or spoken.audio_s > best.audio_s:
            best = spoken
        if best.audio_s >= _LONG_ENOUGH * (frames - 1) * frame_s:  # some engines speak one frame less than they draw
            break
    assert best is not None
    if not best.audio_s:
        raise EngineError("the engine spoke nothing")
    return {"rtf": best.elapsed_s / best.audio_s, "spoken_frames": best.audio_s / frame_s}


def tune(arm: Arm, plan: Plan) -> dict[str, int]:
    """The arm's best thread settings by kind of work. ONNX Runtime's were found by the loader's own probe."""
    if not arm.in_torch or plan.options.threads is not None:
        return arm.threads
    tier = choose_tier(detect())
    counts = sorted({1, tier.threads})
    if len(counts) == 1:
        return dict.fromkeys(KINDS, counts[0])
    seconds: dict[int, dict[str, float]] = {}
    for count in counts:
        arm.threads = dict.fromkeys(KINDS, count)
        seconds[count] = _probe(arm, plan)
    return {kind: min(counts, key=lambda count: seconds[count].get(kind, 0.0)) for kind in KINDS}


def _probe(arm: Arm, plan: Plan) -> dict[str, float]:
    """Seconds per frame of each kind; speaking is the sum of the others."""
    context, seconds = min(plan.contexts), min(plan.decode_s)
    figures: dict[str, float] = {}
    if LANGUAGE_MODEL in arm.calls:
        figures["language_model"] = _language_model(arm, context, 3)[f"frame_{context}"]
    if "decoder" in arm.calls:
        work = Measure("decode", seconds)
        decoded = min(take(arm, work, frames=0, text="")[f"decode_{seconds:g}s"] for _ in range(2))
        figures["codec"] = decoded * arm.frame_s / seconds
    if LANGUAGE_MODEL not in arm.calls:
        figures["speak"] = _speak(arm, plan.text, 3)["rtf"]
    return {"speak": sum(figures.values()), **figures}


def _codes(arm: Arm, seconds: float) -> np.ndarray:
    """Codes int64 [C, m] of a sound, `seconds` long."""
    frames = max(1, round(seconds / arm.frame_s))
    return np.ascontiguousarray(np.resize(arm.codes.T, (frames, arm.codes.shape[0])).T)
