"""Guided frames are PyTorch's, alone and beside others."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accelerator.engines.reference import ReferenceAdapter
from accelerator.errors import GenerationError
from accelerator.inference.batcher import DualARDecoder
from accelerator.inference.sequence import Guidance
from tests.inference.frames import TEXT, generate, of_pytorch, sampler


@pytest.fixture(scope="module")
def guided(tiny: Any) -> Any:
    """The engine with guidance: away from what it would say without the text."""
    engine = copy.copy(tiny)
    config = tiny.config
    engine.config = replace(config, guidance=1.7, language_model=replace(config.language_model, untold=259))
    return engine


def guided_frames(decoder: DualARDecoder, adapter: Any, engine: Any, text: str, count: int, **how: Any) -> np.ndarray:
    prompt = engine.encode_text(text)
    guidance = ReferenceAdapter(engine)._guidance(prompt)
    frames, batching = how.pop("frames", ()), how.pop("batching", "off")
    sampling = sampler(adapter, **{"temperature": 0, **how}).resume(frames)
    return np.stack(
        list(decoder.generate(prompt, sampling, count, frames=frames, batching=batching, guidance=guidance))
    )


def test_guided_frames_are_pytorchs_token_for_token(decoder: DualARDecoder, adapter: Any, guided: Any) -> None:
    for text in (TEXT, "a", "Ünïcödé 你好"):
        prompt = guided.encode_text(text)
        expected = of_pytorch(guided, prompt, 60)
        np.testing.assert_array_equal(guided_frames(decoder, adapter, guided, text, 60), expected)
        for way in ("off", "invariant", "on"):
            again = guided_frames(decoder, adapter, guided, text, 60, frames=list(expected[:20]), batching=way)
            np.testing.assert_array_equal(again[: len(expected) - 20], expected[20:])


def test_guided_and_plausible_frames_are_pytorchs(decoder: DualARDecoder, adapter: Any, guided: Any) -> None:
    engine = copy.copy(guided)
    engine.config = replace(guided.config, guidance=4.0, plausible=0.7)
    expected = of_pytorch(engine, engine.encode_text(TEXT), 60)
    np.testing.assert_array_equal(guided_frames(decoder, adapter, engine, TEXT, 60), expected)
    engine.config = replace(engine.config, plausible=0.0)
    assert not np.array_equal(guided_frames(decoder, adapter, engine, TEXT, 60), expected)


def test_guidance_keeps_what_is_plausible() -> None:
    """Both prompts are sure of code 0, the other one surer: extrapolation alone would draw code 1."""
    given = np.array([[8.0, 2.0, -9.0], [20.0, 0.0, 0.0]], np.float32)
    bare, kept = given.copy(), given.copy()
    Guidance(np.zeros((2, 1), np.int64), 2.0).mix(bare, 0, 1)
    np.testing.assert_allclose(bare, [[-4.0, 4.0, -18.0], given[1]])
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(kept, 0, 1)
    assert kept[0, 0] == -4.0
    assert kept[0, 1:].max() < -1e8
    assert np.isfinite(kept).all()
    np.testing.assert_array_equal(kept[1], given[1])
    near = np.array([[3.0, 2.9, -9.0], [9.0, 0.0, 0.0]], np.float32)  # code 1 is plausible: guidance may prefer it
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(near, 0, 1)
    assert near[0].argmax() == 1
    broken = np.array([[np.nan, 2.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    Guidance(np.zeros((2, 1), np.int64), 2.0, 0.1).mix(broken, 0, 1)
    assert not np.isfinite(broken[0].sum())  # still to be seen by whoever looks


def test_guidance_away_from_itself_is_none(decoder: DualARDecoder, adapter: Any, tiny: Any) -> None:
    """`other + scale * (own - other)` is `own` where both prompts are the same."""
    prompt = tiny.encode_text(TEXT)
    frames = list(decoder.generate(prompt, sampler(adapter, temperature=0), 40, guidance=Guidance(prompt, 3.0)))
    np.testing.assert_array_equal(np.stack(frames), generate(decoder, adapter, prompt, 40))


def test_guidance_says_something_else(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    own = generate(decoder, adapter, tiny.encode_text(TEXT), 40)
    assert not np.array_equal(guided_frames(decoder, adapter, guided, TEXT, 40), own)


def test_guided_rows_and_others_share_a_batch(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    """Rows of other lengths and limits join and leave beside guided ones; each gets what it gets alone."""
    texts = ["One.", "Two of them, longer.", "Three!", "And a fourth, the longest of all."]
    limits = [30, 12, 45, 7]
    for seed in (1, 2):
        how: dict[str, Any] = {"temperature": 0.9, "seed": seed, "batching": "invariant"}
        alone = [
            guided_frames(decoder, adapter, guided, text, limit, **how)
            if n % 2
            else generate(decoder, adapter, tiny.encode_text(text), limit, **how)
            for n, (text, limit) in enumerate(zip(texts, limits, strict=True))
        ]
        jobs = []
        for n, (text, limit) in enumerate(zip(texts, limits, strict=True)):
            prompt = tiny.encode_text(text)
            guidance = ReferenceAdapter(guided)._guidance(prompt) if n % 2 else None
            sampling = sampler(adapter, temperature=0.9, seed=seed)
            jobs.append(decoder.generate(prompt, sampling, limit, batching="invariant", guidance=guidance))
        answers: list[list[np.ndarray]] = [[] for _ in jobs]
        running = dict(enumerate(jobs))
        while running:
            for n in list(running):
                frame = next(running[n], None)
                if frame is None:
                    del running[n]
                else:
                    answers[n].append(frame)
        for own, answer in zip(alone, answers, strict=True):
            np.testing.assert_array_equal(np.stack(answer), own)
    assert decoder.busy == 0


def test_a_guided_rows_failure_is_its_own(decoder: DualARDecoder, adapter: Any, tiny: Any, guided: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    expected = generate(decoder, adapter, prompt, 20, batching="on")
    other = np.full_like(prompt, 10**6)  # a prompt that cannot be embedded
    bad = decoder.generate(prompt, sampler(adapter, temperature=0), 20, batching="on", guidance=Guidance(other, 2.0))
    good = decoder.generate(prompt, sampler(adapter, temperature=0), 20, batching="on")
    first = next(good)
    with pytest.raises(GenerationError, match="outside the vocabulary"):
        next(bad)
    np.testing.assert_array_equal(np.stack([first, *good]), expected)
    abandoned = decoder.generate(
        prompt, sampler(adapter, temperature=0), 20, batching="on", guidance=Guidance(prompt, 2.0)
    )
    next(abandoned)
    abandoned.close()
    assert decoder.busy == 0
