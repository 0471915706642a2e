"""The engine's own methods on the routed parts: the same types, values and errors as before."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer

TEXT = "is this one said"
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}


def test_inference_answers_as_before(engine: Any, fast: UniversalOptimizer, recording: Path) -> None:
    greedy = {"temperature": 1.0, "top_k": 1}
    asked: list[dict[str, Any]] = [
        {"prompt_speech_path": recording},
        {"prompt_speech_path": str(recording), "prompt_text": "what it says."},
        STYLE,
        {**STYLE, "prompt_speech_path": recording},  # which the engine then does not look at
    ]
    for options in asked:
        expected = engine.inference(TEXT, **options, **greedy)
        answer = fast.engine.inference(TEXT, **options, **greedy)
        assert (type(answer), answer.dtype, answer.shape) == (np.ndarray, np.float32, expected.shape)
        np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_who_seeds_pytorch_gets_the_same_again(fast: UniversalOptimizer, recording: Path) -> None:
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        answers.append(fast.engine.inference(TEXT, recording))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert answers[0].shape != answers[2].shape or not np.array_equal(answers[0], answers[2])


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (AssertionError, {"gender": "female"}),
        (AssertionError, {**STYLE, "gender": "x"}),
        (TypeError, {}),
        (ValueError, {**STYLE, "temperature": 0.0}),
    ],
)
def test_what_the_engine_refuses_is_refused_in_its_words(
    engine: Any, fast: UniversalOptimizer, error: type[Exception], asked: dict[str, Any]
) -> None:
    with pytest.raises(error) as own:
        engine.inference(TEXT, **asked)
    with pytest.raises(error) as routed:
        fast.engine.inference(TEXT, **asked)
    assert str(routed.value) == str(own.value)


def test_tokens_of_a_recording_are_the_engines(engine: Any, fast: UniversalOptimizer, recording: Path) -> None:
    for own, routed in zip(
        engine.audio_tokenizer.tokenize(recording), fast.engine.audio_tokenizer.tokenize(recording), strict=True
    ):
        assert (routed.dtype, routed.shape) == (own.dtype, own.shape)
        assert torch.equal(routed, own)


def test_codes_sound_the_same_at_lengths_never_traced(engine: Any, fast: UniversalOptimizer) -> None:
    voice = torch.tensor([[3, 1, 4, 1]])
    for length in (1, 2, 50, 211):
        codes = torch.from_numpy(np.random.default_rng(length).integers(0, 64, (1, length)))
        expected = engine.audio_tokenizer.detokenize(voice, codes)
        np.testing.assert_allclose(fast.engine.audio_tokenizer.detokenize(voice, codes), expected, atol=1e-5)
        assert len(expected) == 320 * length


def test_codes_that_are_none_are_the_engines_to_refuse(engine: Any, fast: UniversalOptimizer) -> None:
    voice, said = torch.tensor([[3, 1, 4, 1]]), torch.tensor([[5, 6]])
    for codes, semantics in ((voice[:, :3], said), (voice, said[:, :0]), (voice, said + 60), (voice - 9, said)):
        with pytest.raises((RuntimeError, IndexError)) as own:
            engine.audio_tokenizer.detokenize(codes, semantics)
        with pytest.raises(type(own.value)) as routed:
            fast.engine.audio_tokenizer.detokenize(codes, semantics)
        assert str(routed.value) == str(own.value)


def test_other_ways_to_generate_are_the_engines(engine: Any, fast: UniversalOptimizer) -> None:
    inputs = engine.tokenizer(["<|task_tts|>one", "<|task_tts|>two"], return_tensors="pt")
    own = engine.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(fast.engine.model.generate(**inputs, max_new_tokens=5, do_sample=False), own)
    one = {"input_ids": inputs.input_ids[:1], "max_new_tokens": 9, "do_sample": False}
    beams = engine.model.generate(**one, num_beams=2)
    assert torch.equal(fast.engine.model.generate(**one, num_beams=2), beams)
    greedy = engine.model.generate(**one)
    assert torch.equal(fast.engine.model.generate(**one), greedy)


def test_the_users_engine_is_unchanged(engine: Any, fast: UniversalOptimizer) -> None:
    before = copy.copy(vars(engine)), copy.copy(vars(engine.audio_tokenizer)), set(vars(engine.model))
    fast.synthesize(TEXT, seed=1, **STYLE)
    assert (vars(engine), vars(engine.audio_tokenizer), set(vars(engine.model))) == before
    assert "generate" not in vars(engine.model)
    assert "detokenize" not in vars(engine.audio_tokenizer.model)
    assert fast.engine.tokenizer is engine.tokenizer
    assert isinstance(fast.engine, type(engine))
