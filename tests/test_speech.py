from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from accelerator.audio.reference import Reference
from accelerator.errors import InvalidInput, InvalidOption
from accelerator.speech import AudioChunk, SamplingParams, Speech, SpeechRequest

GOOD = [
    {"temperature": 0},
    {"temperature": 2.0},
    {"temperature": np.float32(0.5)},
    {"top_p": 1e-6},
    {"top_p": 1},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 10},
    {"top_k": 1},
    {"top_k": np.int64(7)},
    {"seed": 0},
    {"seed": 2**63 - 1},
    {"max_new_tokens": 1},
]
BAD = [
    {"temperature": -1e-9},
    {"temperature": 2.0001},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": "0.5"},
    {"temperature": True},
    {"top_p": 0},
    {"top_p": 1.0001},
    {"top_p": [0.5]},
    {"repetition_penalty": 0.99},
    {"repetition_penalty": 10.1},
    {"top_k": 0},
    {"top_k": 2.0},
    {"top_k": True},
    {"seed": -1},
    {"seed": 2**63},
    {"seed": 1.0},
    {"max_new_tokens": 0},
    {"max_new_tokens": "9"},
]


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_good_parameters(options: dict) -> None:
    params = SamplingParams(**options)
    ((name, value),) = options.items()
    assert getattr(params, name) == value
    assert all(getattr(params, f.name) is None for f in dataclasses.fields(params) if f.name != name)


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_parameters(options: dict) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))) as caught:
        SamplingParams(**options)
    assert isinstance(caught.value, InvalidInput)
    assert isinstance(caught.value, (ValueError, TypeError))


def test_unknown_and_positional_parameters() -> None:
    with pytest.raises(TypeError, match="speed"):
        SamplingParams(speed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        SamplingParams(0.5)  # type: ignore[misc]


def test_over_fills_what_is_not_given() -> None:
    defaults = SamplingParams(temperature=0.7, top_p=0.8, top_k=30, max_new_tokens=9)
    params = SamplingParams(temperature=0, seed=0, top_k=1).over(defaults)
    assert params == SamplingParams(temperature=0, top_p=0.8, top_k=1, seed=0, max_new_tokens=9)
    assert SamplingParams().over(defaults) == defaults


def test_requests_are_values() -> None:
    request = SpeechRequest("Hello")
    assert request == SpeechRequest("Hello", None, SamplingParams())
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.text = "x"  # type: ignore[misc]
    audio = np.zeros(3, np.float32)
    reference = Reference(audio, 8000, "said", "d" * 64)
    assert reference.source is None
    assert "source" not in repr(reference)


def test_results_unpack() -> None:
    audio, rate, metrics = speech = Speech(np.zeros(2), 16_000, {"rtf": 0.5})
    assert (rate, metrics["rtf"], speech.metrics["rtf"]) == (16_000, 0.5, 0.5)
    assert AudioChunk(audio, rate).sample_rate == 16_000
