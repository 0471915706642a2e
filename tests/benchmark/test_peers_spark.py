"""Spark-TTS as an arm of `bench peers`: the engine's own class by a stand-in, and ours on the double."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator.audio.checks import read_audio
from accelerator.benchmark import peers_spark
from accelerator.benchmark.peer import Given, recording
from accelerator.benchmark.peers_arms import open_arm
from accelerator.errors import EngineError


class SparkTTS:
    """Says as many samples as `generate` may have tokens, as loud as the recording is long."""

    sample_rate = 16_000

    def __init__(self, model_dir: Path, device: torch.device) -> None:
        assert device.type == "cpu"
        self.model_dir, self.tokenized = model_dir, list[Path]()
        self.model = torch.nn.Linear(1, 1)
        self.model.generate = lambda max_new_tokens: max_new_tokens  # type: ignore[assignment]
        self.audio_tokenizer = types.SimpleNamespace(tokenize=self.tokenized.append)

    def inference(self, text: str, prompt_speech_path: Path) -> np.ndarray:
        assert read_audio(prompt_speech_path)[1] == 16_000
        generate: Any = self.model.generate
        return np.ones(generate(max_new_tokens=3000), np.float32)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> Any:
        if name == "cli.SparkTTS":  # as in a checkout
            return types.SimpleNamespace(SparkTTS=SparkTTS)
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(peers_spark, "package", lambda module, name: _package(found, module))


def _package(found: Any, module: str) -> Any:
    try:
        return found(module)
    except ImportError as error:
        raise EngineError(str(error)) from error


@pytest.mark.parametrize(("arm", "dtype"), [("as-shipped", torch.float32), ("as-shipped-bf16", torch.bfloat16)])
def test_as_shipped_its_replies_are_bounded_and_its_model_has_the_dtype(
    installed: None, tmp_path: Path, arm: str, dtype: torch.dtype
) -> None:
    made: Any = open_arm(arm, "spark-tts", Given(checkpoint=Path("DIR"), scratch=tmp_path, frames=7))
    assert next(made._engine.model.parameters()).dtype == dtype
    assert len(made.whole("Hello.")) == 7
    assert [len(chunk) for chunk in made.stream("Hello.", raw=False)] == [7]
    assert not made.streams
    made.encode(recording(tmp_path, 3), "")
    assert made._engine.tokenized == [tmp_path / "voice-3.wav"]
    assert made.about.startswith(f"Spark-TTS as it ships, its language model in {str(dtype).rpartition('.')[2]}")
    unbounded: Any = open_arm(arm, "spark-tts", Given(checkpoint=Path("DIR"), scratch=tmp_path))
    assert len(unbounded.whole("Hello.")) == 3000


def test_without_the_engine_its_arm_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(peers_spark, "package", lambda module, name: _package(missing, module))
    with pytest.raises(EngineError, match=r"cli\.SparkTTS"):
        open_arm("as-shipped", "spark-tts", Given(checkpoint=Path("DIR"), scratch=tmp_path))


def test_recordings_are_ten_seconds_and_each_is_another_voice(tmp_path: Path) -> None:
    one, other = (read_audio(recording(tmp_path, number)) for number in (0, 1))
    assert (len(one[0]), one[1]) == (160_000, 16_000)
    assert 0.1 < np.abs(one[0]).max() < 1.0
    assert not np.array_equal(one[0], other[0])
