"""The reference engine's adapter: its parts answer as the engine's stages do, and its copy leaves the engine alone."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import SpeechRequest, UniversalOptimizer
from accelerator.audio.reference import Reference
from accelerator.engines.reference import ReferenceAdapter
from accelerator.reference import load
from accelerator.speech import SamplingParams
from tests.doubles import replica, voice

TEXT = "An adapter."


@pytest.fixture(scope="module")
def adapter(tiny: Any) -> ReferenceAdapter:
    return ReferenceAdapter(tiny)


def test_parts(adapter: ReferenceAdapter) -> None:
    parts = {part.name: part for part in adapter.parts()}
    assert {name: part.stage for name, part in parts.items()} == {
        "encoder": "reference",
        "text2semantic": "generate",
        "decoder": "decode",
    }
    assert [name for name, part in parts.items() if part.streams] == ["text2semantic"]
    assert [c.name for c in parts["text2semantic"].components][:2] == ["embeddings", "text2semantic"]
    for part in parts.values():
        assert part.probe(part.original) > 0


def test_the_spec_is_the_configuration(adapter: ReferenceAdapter, tiny: Any) -> None:
    lm, spec = tiny.config.language_model, adapter._spec
    assert spec.rows.tolist() == list(lm.candidate_ids)
    assert (spec.slow.positions, spec.fast.positions) == (lm.max_seq_len, lm.codebooks)
    assert (spec.slow.qk_norm, spec.fast.qk_norm) == (True, False)
    assert (spec.codebooks, spec.codebook_size, spec.end_id) == (4, 64, lm.im_end)


def test_the_trace_is_what_pytorch_does(adapter: ReferenceAdapter, tiny: Any) -> None:
    trace = adapter._trace()
    assert trace.main_logits.shape == (96, 65)
    assert trace.code_logits.shape == (96, 3, 64)
    assert trace.frames.shape == (96, 5)
    np.testing.assert_array_equal(trace.frames[:, 1], trace.frames[:, 0] - 260)
    np.testing.assert_array_equal(trace.main_logits[:, :-1].argmax(axis=1), trace.frames[:, 1])
    np.testing.assert_array_equal(trace.code_logits.argmax(axis=2), trace.frames[:, 2:])
    greedy = list(tiny.generate(trace.prompt, temperature=0, repetition_penalty=1.0, max_new_tokens=20))
    np.testing.assert_array_equal(trace.frames[:20], greedy)


def test_pytorch_resumes_where_the_frames_end(adapter: ReferenceAdapter, tiny: Any) -> None:
    prompt = tiny.encode_text(TEXT)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=12)
    whole = list(adapter._generate_in_torch(prompt, params))
    for at in (1, 6, 11):
        rest = list(adapter._generate_in_torch(prompt, params, resume=whole[:at]))
        np.testing.assert_array_equal(rest, whole[at:])
    assert list(adapter._generate_in_torch(prompt, params, resume=whole)) == []


def test_penalties_are_the_engines(fast: UniversalOptimizer, tiny: Any) -> None:
    """Greedy with a penalty is deterministic, and both penalise the same tokens by the same amount."""
    prompt = tiny.encode_text(TEXT)
    for penalty in (1.1, 1.5, 4.0):
        options = {"temperature": 0, "repetition_penalty": penalty, "max_new_tokens": 40}
        expected = np.stack(list(tiny.generate(prompt, **options)))
        np.testing.assert_array_equal(np.stack(list(fast.generate(prompt, **options))), expected)


def test_sampling_draws_from_the_engines_distribution(fast: UniversalOptimizer, tiny: Any) -> None:
    """First codes over many seeds: the same few tokens, about as often."""
    prompt = tiny.encode_text(TEXT)
    options = {"temperature": 1.0, "top_p": 0.9, "top_k": 12, "max_new_tokens": 1}

    def counts(engine: Any) -> np.ndarray:
        first = [next(engine.generate(prompt, seed=seed, **options))[1] for seed in range(400)]
        return np.bincount(first, minlength=64)

    ours, theirs = counts(fast), counts(tiny)
    assert 3 <= (theirs > 0).sum() <= 12
    np.testing.assert_allclose(ours / 400, theirs / 400, atol=0.12)
    assert not (ours[theirs == 0] > 20).any()


def test_the_codec_at_lengths_never_exported(fast: UniversalOptimizer, tiny: Any) -> None:
    for frames in (1, 2, 5, 31, 64, 100, 257):
        codes = np.random.default_rng(frames).integers(0, 32, (4, frames))
        audio = fast.decode(codes)
        assert audio.shape == (frames * tiny.hop,)
        np.testing.assert_allclose(audio, tiny.decode(codes), atol=1e-4)
    sound = voice(tiny)[0]
    for samples in (256, 257, 3000, 9999, 16_000):
        np.testing.assert_array_equal(fast.encode_reference(sound[:samples]), tiny.encode_reference(sound[:samples]))


def test_the_model_ends_where_its_positions_end(fast: UniversalOptimizer, tiny: Any) -> None:
    prompt = tiny.encode_text("a" * 2040)
    assert prompt.shape[1] == 2042
    expected = list(tiny.generate(prompt, temperature=0, max_new_tokens=50))
    actual = list(fast.generate(prompt, temperature=0, max_new_tokens=50))
    assert len(expected) == len(actual) == 6
    np.testing.assert_array_equal(actual, expected)


def test_the_copy_is_a_copy(adapter: ReferenceAdapter, tiny: Any) -> None:
    calls = {part.name: part.original for part in adapter.parts()}
    before = dict(vars(tiny))
    bound = adapter.bind(calls)
    assert vars(tiny) == before
    assert bound.engine is not tiny
    assert bound.engine.codec is tiny.codec
    bound.close()


def test_original_speaks_with_the_engine_itself(adapter: ReferenceAdapter, tiny: Any) -> None:
    sound, rate = voice(tiny)
    request = SpeechRequest(
        TEXT, Reference(sound, rate, "what it says", "digest"), SamplingParams(seed=2, max_new_tokens=5)
    )
    (chunk,) = adapter.original(request)
    np.testing.assert_array_equal(
        chunk.audio, tiny.synthesize(TEXT, sound, "what it says", seed=2, max_new_tokens=5)[0]
    )
    assert chunk.sample_rate == rate


def test_weights_come_as_float32_whatever_the_engine_computes_in() -> None:
    engine = load("tiny")
    engine.language_model.bfloat16()
    _, weights = ReferenceAdapter(engine).backbone()
    weight = weights("slow.0.qkv")
    assert weight.dtype == np.float32
    assert torch.from_numpy(weight).bfloat16().float().equal(torch.from_numpy(weight))


def test_a_voice_brings_its_own_way_of_drawing(tiny: Any) -> None:
    voice = copy.copy(tiny)
    voice.config = dataclasses.replace(tiny.config, temperature=0.0, top_p=0.5)
    prompt = voice.encode_text("Hello there.")
    greedy = np.stack(list(tiny.generate(prompt, temperature=0.0, max_new_tokens=6)))
    np.testing.assert_array_equal(np.stack(list(voice.generate(prompt, max_new_tokens=6))), greedy)
    drawn = np.stack(list(voice.generate(prompt, temperature=1.0, top_p=1.0, seed=1, max_new_tokens=6)))
    assert not np.array_equal(drawn, greedy)
    defaults = ReferenceAdapter(voice).defaults()
    assert (defaults.temperature, defaults.top_p) == (0.0, 0.5)


def test_settings_are_obeyed_whoever_sets_them(tiny: Any) -> None:
    engine = copy.copy(tiny)
    optimizer = replica(engine)
    optimizer.config = dataclasses.replace(engine.config, max_new_tokens=7)
    assert engine.config is optimizer.config
    assert len(optimizer.synthesize("Hello there.", temperature=0).audio) == 7 * engine.hop
    engine.config = dataclasses.replace(engine.config, max_new_tokens=9)
    assert optimizer.config.max_new_tokens == 9
    assert len(optimizer.synthesize("Hello there.", temperature=0).audio) == 9 * engine.hop
    optimizer.default_speaker = "nobody"
    assert engine.default_speaker == "nobody"
    assert tiny.config.max_new_tokens == 64
