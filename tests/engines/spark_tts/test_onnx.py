"""A converted Spark-TTS speaks: as the engine does, from its files alone, without PyTorch."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.audio.checks import read_audio
from accelerator.engines.spark_tts import SparkAdapter, SparkTTSONNX
from accelerator.engines.spark_tts.convert import Verdict, convert
from accelerator.errors import EngineError, GenerationError, InvalidOption, InvalidReference, InvalidText

TEXT = "is this one said"
SAYS = "what it says."
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}
CLOSE = 1e-5

SPEAK = """
import json, sys
from accelerator.engines.spark_tts import SparkTTSONNX
engine = SparkTTSONNX(sys.argv[1], threads=1)
engine.process_prompt(sys.argv[2])
audio, info = engine.inference(sys.argv[3], temperature=0)
foreign = [name for name in ("torch", "transformers", "spark_tts_lib", "torchaudio") if name in sys.modules]
print(json.dumps({"samples": len(audio), "tokens": info["tokens"], "foreign": foreign}))
"""


@pytest.fixture(scope="module")
def alone(converted: tuple[Path, list[Verdict]]) -> SparkTTSONNX:
    return SparkTTSONNX(converted[0], threads=1)


def of_the_engine(engine: Any, **given: Any) -> np.ndarray:
    return np.asarray(engine.inference(TEXT, temperature=1.0, top_k=1, **given))


@pytest.mark.parametrize("says", [None, SAYS])
def test_a_recording_is_spoken_as_the_engine_does(
    alone: SparkTTSONNX, convertible: Any, recording: Path, says: str | None
) -> None:
    audio, info = alone.inference(TEXT, says, None, recording, temperature=0)
    expected = of_the_engine(convertible, prompt_speech_path=recording, prompt_text=says)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, expected, atol=CLOSE)
    assert info["tokens"] == len(audio) // 320
    assert info["seconds"] == len(audio) / info["sample_rate"] == len(audio) / 16_000
    assert (info["text"], info["path"]) == (TEXT, None)


def test_a_described_voice_is_spoken_as_the_engine_does(alone: SparkTTSONNX, convertible: Any) -> None:
    audio, _ = alone.inference(TEXT, temperature=0, **STYLE)
    np.testing.assert_allclose(audio, of_the_engine(convertible, **STYLE), atol=CLOSE)


def test_a_seed_gives_what_it_gives_the_wrapped_engine(alone: SparkTTSONNX, convertible: Any, recording: Path) -> None:
    audio, _ = alone.inference(TEXT, prompt_speech_path=recording, seed=1)
    again, _ = alone.inference(TEXT, seed=1)
    np.testing.assert_array_equal(audio, again)
    with UniversalOptimizer(convertible, precision="fp32", threads=1, probe=False) as optimizer:
        speech = optimizer.synthesize(TEXT, reference_audio=recording, seed=1)
    np.testing.assert_allclose(audio, speech.audio, atol=CLOSE)


def test_without_pytorch_in_the_process(
    alone: SparkTTSONNX, converted: tuple[Path, list[Verdict]], recording: Path
) -> None:
    command = [sys.executable, "-c", SPEAK, str(converted[0]), str(recording), TEXT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["foreign"] == []
    audio, info = alone.inference(TEXT, prompt_speech_path=recording, temperature=0)
    assert (said["samples"], said["tokens"]) == (len(audio), info["tokens"])


def test_a_file_is_saved(alone: SparkTTSONNX, recording: Path, tmp_path: Path) -> None:
    audio, info = alone.inference(TEXT, None, tmp_path / "spoken", recording, seed=2)
    (saved,) = (tmp_path / "spoken").iterdir()
    assert info["path"] == str(saved)
    samples, rate = read_audio(saved)
    assert rate == alone.sample_rate
    np.testing.assert_allclose(samples, audio, atol=1 / 32768)


def test_a_long_text_is_spoken_in_segments_by_one_voice(alone: SparkTTSONNX) -> None:
    long = "It was said, once and again. " * 10
    audio, info = alone.inference(long, seed=3, **STYLE)
    first, _ = alone.inference(long[:200].rpartition(". ")[0] + ".", seed=3, **STYLE)
    assert len(audio) > len(first)
    assert info["tokens"] == len(audio) // 320


def test_what_cannot_be_spoken_is_said(
    converted: tuple[Path, list[Verdict]], recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SparkTTSONNX(converted[0], threads=1)
    with pytest.raises(InvalidReference, match="process_prompt"):
        engine.inference(TEXT)
    with pytest.raises(InvalidReference, match="does not exist"):
        engine.process_prompt(tmp_path / "nothing.wav")
    engine.process_prompt(recording)
    with pytest.raises(InvalidText):
        engine.inference("...")
    with pytest.raises(InvalidOption, match="top_p"):
        engine.inference(TEXT, top_p=3.0)
    with pytest.raises(InvalidOption, match=r"speed is None: .* very_low, low, moderate"):
        engine.inference(TEXT, gender="male", pitch="low")
    with pytest.raises(InvalidOption, match="leave either out"):
        engine.inference(TEXT, SAYS, **STYLE)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="another save_dir"):
        engine.inference(TEXT, save_dir=tmp_path / "file", seed=1)
    monkeypatch.setattr(engine, "_generated", lambda prompt, params: [0, 1])
    with pytest.raises(GenerationError, match="try another seed"):
        engine.inference(TEXT)


def test_a_reply_without_speech_is_drawn_again(
    converted: tuple[Path, list[Verdict]], recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SparkTTSONNX(converted[0], threads=1)
    own, seeds = engine._generated, []

    def generated(prompt: np.ndarray, params: Any) -> Any:
        seeds.append(params.seed)
        return own(prompt, params) if len(seeds) > 1 else [0]

    monkeypatch.setattr(engine, "_generated", generated)
    audio, _ = engine.inference(TEXT, prompt_speech_path=recording, seed=1)
    assert len(audio) > 0
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [({"version": 0}, "another version"), (None, "damaged"), ({"dynamic": False, "frames": 100}, "static")],
)
def test_a_folder_that_cannot_speak_is_refused(tmp_path: Path, change: dict[str, Any] | None, match: str) -> None:
    said = {"version": 1, "dynamic": True, **(change or {})}
    (tmp_path / "spark-tts.json").write_text("{" if change is None else json.dumps(said))
    with pytest.raises(EngineError, match=match):
        SparkTTSONNX(tmp_path)


def test_a_checkpoint_that_was_not_converted_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="accelerator convert spark-tts"):
        SparkTTSONNX(tmp_path)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_classes_converted(folder: Path, recording: Path, tmp_path: Path) -> None:
    verdicts = convert(SparkAdapter.from_checkpoint(folder), tmp_path / "onnx")
    assert all(verdict.passed for verdict in verdicts), verdicts
    engine = SparkTTSONNX(tmp_path, threads=1)
    real = importlib.import_module("spark_tts_lib.SparkTTS").SparkTTS(folder, torch.device("cpu"))
    for says in (None, SAYS):
        audio, _ = engine.inference(TEXT, says, None, recording, temperature=0)
        expected = of_the_engine(real, prompt_speech_path=recording, prompt_text=says)
        np.testing.assert_allclose(audio, expected, atol=CLOSE)
    audio, _ = engine.inference(TEXT, temperature=0, **STYLE)
    np.testing.assert_allclose(audio, of_the_engine(real, **STYLE), atol=CLOSE)
