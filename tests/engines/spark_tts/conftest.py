"""The double, wrapped; and the real package with a checkpoint of tiny random models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.audio.checks import read_audio
from accelerator.audio.files import write_wav
from accelerator.engines.spark_tts import SparkAdapter, stages
from accelerator.engines.spark_tts.convert import Verdict, convert
from accelerator.engines.spark_tts.recording import levelled
from tests.engines.spark_tts import toy
from tests.engines.spark_tts.double import RATE, WIDTH, SparkTTS


@pytest.fixture(autouse=True)
def _any_pace() -> Iterator[None]:
    """The toy's replies are as long as they happen to be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_LETTERS_A_SECOND", 1e9)
        yield


@pytest.fixture(scope="session")
def tokens() -> Any:
    return toy.tokenizer()


@pytest.fixture(scope="session")
def speaking(tokens: Any) -> Any:
    """A language model whose replies end; never changed."""
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    return toy.taught(toy.language_model(tokens), tokens)


@pytest.fixture(scope="session")
def engine(tokens: Any, speaking: Any) -> Any:
    """Never changed."""
    return SparkTTS(tokens, speaking)


@pytest.fixture(scope="session")
def fast(engine: Any) -> Iterator[UniversalOptimizer]:
    """In float32: greedy tokens are PyTorch's."""
    with UniversalOptimizer(engine, precision="fp32", threads=1, probe=False) as optimizer:
        yield optimizer.prepare()


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a tone that rises and falls, in noise."""
    t = np.arange(2 * RATE) / RATE
    noise = np.random.default_rng(0).standard_normal(len(t))
    path = tmp_path_factory.mktemp("recording") / "voice.wav"
    write_wav(path, 0.3 * np.sin(2 * np.pi * (180 * t + 8 * np.sin(5 * t))) + 0.05 * noise, RATE)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the real package's own classes."""
    if importlib.util.find_spec("spark_tts_lib") is None:
        pytest.skip("pip install --no-deps spark-tts-lib==0.2.1, and what it needs")
    from tests.engines.spark_tts.checkpoint import checkpoint

    torch.set_num_threads(1)
    return checkpoint(tmp_path_factory.mktemp("spark") / "Spark-TTS")


@pytest.fixture(scope="session")
def convertible(tokens: Any, speaking: Any) -> Any:
    """The double with all that is converted; its recordings have the level that the real engine gives them."""
    made = SparkTTS(tokens, speaking)
    audio = made.audio_tokenizer
    torch.manual_seed(4)
    audio.model.postnet = torch.nn.Conv1d(WIDTH, WIDTH, 3, padding=1).eval()
    speaker = audio.model.speaker_encoder
    speaker.forward = lambda mels: (speaker.scores(mels.mean(1)), speaker.detokenize(speaker.tokenize(mels)))

    def process_audio(path: Any) -> tuple[np.ndarray, torch.Tensor]:
        whole = levelled(read_audio(path)[0].astype(np.float64))
        return whole, torch.from_numpy(audio.get_ref_clip(whole))[None].float()

    audio.process_audio = process_audio  # type: ignore[method-assign]
    return made


@pytest.fixture(scope="session")
def converted(convertible: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Verdict]]:
    """A conversion, never changed, and what was said of its files."""
    folder = tmp_path_factory.mktemp("converted") / "onnx"
    return folder, convert(SparkAdapter(convertible), folder)
