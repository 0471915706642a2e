"""A checkpoint of the real package's own classes, tiny and random: opened from disk, it says what the engine says."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.benchmark import BenchOptions, llama_cpp, yardstick
from accelerator.engines import adapter_for
from accelerator.engines.spark_tts import SparkAdapter
from accelerator.engines.spark_tts.stored import OnDisk
from tests.engines.spark_tts import toy
from tests.engines.spark_tts.test_reach import heard

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXT = "is this one said"
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}
GREEDY = {"temperature": 1.0, "top_k": 1}


@pytest.fixture(scope="module")
def real(folder: Path) -> Any:
    """The engine as its own package opens it; never changed."""
    return importlib.import_module("spark_tts_lib.SparkTTS").SparkTTS(folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[UniversalOptimizer]:
    with UniversalOptimizer.from_checkpoint(folder, "spark-tts", precision="fp32", threads=1, probe=False) as optimizer:
        yield optimizer.prepare()


def read(adapter: Any) -> list[bool]:
    """Which of the modules have their weights in memory."""
    audio = adapter.engine.audio_tokenizer
    return [module._module is not None for module in (adapter.engine.model, audio.model, audio.feature_extractor)]


def test_it_says_what_the_engine_says(real: Any, opened: UniversalOptimizer, recording: Path) -> None:
    for asked, engines in (
        ({"reference_audio": recording}, {"prompt_speech_path": recording}),
        (
            {"reference_audio": recording, "reference_text": "what it says."},
            {"prompt_speech_path": recording, "prompt_text": "what it says."},
        ),
        (STYLE, STYLE),
    ):
        expected = real.inference(TEXT, **engines, **GREEDY)
        speech = opened.synthesize(TEXT, temperature=0, **asked)
        assert speech.metrics["fallback"] == []
        assert set(speech.metrics["backends"].values()) == {"onnxruntime"}
        np.testing.assert_allclose(speech.audio, expected, atol=1e-4)
        np.testing.assert_allclose(opened.engine.inference(TEXT, **engines, **GREEDY), expected, atol=1e-4)


def test_all_is_proven_and_the_weights_were_let_go(opened: UniversalOptimizer) -> None:
    proofs = [each["proof"] for part in opened.status()["parts"].values() for each in part["exports"].values()]
    assert len(proofs) == 5
    assert all(proof["passed"] for proof in proofs)
    assert read(opened.adapter) == [False, False, False]


def test_tokens_of_recordings_are_the_engines(real: Any, opened: UniversalOptimizer, tmp_path: Path) -> None:
    from accelerator.audio.files import write_wav
    from accelerator.engines.spark_tts.examples import noise

    for seconds in (0.3, 1.0, 7.7):  # the last one is longer than the clip of who speaks
        write_wav(tmp_path / "voice.wav", noise(seconds, 16_000), 16_000)
        codes, semantics = real.audio_tokenizer.tokenize(tmp_path / "voice.wav")
        routed = opened.engine.audio_tokenizer.tokenize(tmp_path / "voice.wav")
        assert torch.equal(routed[0], codes)
        assert torch.equal(routed[1], semantics)
        assert (routed[0].dtype, routed[1].dtype) == (codes.dtype, semantics.dtype)


def test_codes_sound_the_same_at_lengths_never_traced(real: Any, opened: UniversalOptimizer) -> None:
    voice = torch.tensor([[3, 1, 4, 1]])
    for length in (1, 2, 50, 211):
        codes = torch.from_numpy(np.random.default_rng(length).integers(0, toy.SEMANTIC_IDS, (1, length)))
        expected = real.audio_tokenizer.detokenize(voice, codes)
        np.testing.assert_allclose(opened.engine.audio_tokenizer.detokenize(voice, codes), expected, atol=1e-5)


def test_a_code_is_not_heard_beyond_its_reach(real: Any, opened: UniversalOptimizer) -> None:
    adapter = adapter_for(real)
    assert isinstance(adapter, SparkAdapter)
    assert adapter.reach is not None
    assert adapter.reach == opened.adapter.reach  # type: ignore[attr-defined]
    assert (adapter.sizes, adapter.count) == (opened.adapter.sizes, opened.adapter.count)  # type: ignore[attr-defined]
    found = heard(adapter, 70, 141)
    assert 70 in found
    assert found.min() >= 70 - adapter.reach
    assert found.max() <= 70 + adapter.reach


def test_a_long_text_is_streamed_in_windows(opened: UniversalOptimizer, recording: Path) -> None:
    text = " ".join(f"this is the sentence {chr(97 + n)} of a longer text." for n in range(9))
    speech = opened.synthesize(text, recording, seed=3)
    chunks = [audio for audio, _ in opened.stream(text, recording, seed=3)]
    assert len(speech.metrics["segments"]) == 2
    assert len(chunks) >= 2
    assert speech.metrics["fallback"] == []


def test_what_the_engine_refuses_is_refused_in_its_words(real: Any, opened: UniversalOptimizer) -> None:
    for asked in ({"gender": "female"}, {}, {**STYLE, "temperature": 0.0}):
        with pytest.raises((AssertionError, TypeError, ValueError)) as own:
            real.inference(TEXT, **asked)
        with pytest.raises(type(own.value)) as routed:
            opened.engine.inference(TEXT, **asked)
        assert str(routed.value) == str(own.value)


def test_in_bfloat16_it_is_the_engine_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    """As version 5 of transformers opens it, by its configuration; its own head is in memory once."""
    place = shutil.copytree(folder, tmp_path / "bf16")
    config = json.loads((place / "LLM" / "config.json").read_text())
    (place / "LLM" / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    adapter = SparkAdapter.from_checkpoint(place)
    model = adapter.engine.model
    assert isinstance(model, OnDisk)
    assert read(adapter) == [False, False, False]
    own = next(model.get().parameters()).dtype
    assert adapter.language_model(adapter.trace)[1].config["engine_dtype"] == {torch.float32: "fp32"}.get(own, "bf16")
    assert model.get().lm_head.weight is model.get().model.embed_tokens.weight
    assert adapter.release()
    assert read(adapter) == [False, False, False]


_AGAIN = """
import sys
from accelerator import UniversalOptimizer
folder, recording, cache = sys.argv[1:]
optimizer = UniversalOptimizer.from_checkpoint(folder, "spark-tts", precision="fp32", threads=1, probe=False,
                                               cache_dir=cache)
speech = optimizer.synthesize("is this one said", recording, temperature=0)
assert speech.metrics["fallback"] == [], speech.metrics["fallback"]
for name in ("torch", "transformers", "spark_tts_lib", "torchaudio", "omegaconf"):
    assert name not in sys.modules, name
codes, semantics = optimizer.engine.audio_tokenizer.tokenize(recording)  # the engine's own interface is still there
assert "spark_tts_lib" in sys.modules
print(len(speech.audio), codes.numel(), semantics.numel())
"""


def test_a_later_process_needs_neither_the_engine_nor_torch(folder: Path, recording: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with UniversalOptimizer.from_checkpoint(
        folder, "spark-tts", precision="fp32", threads=1, probe=False, cache_dir=cache
    ) as optimizer:
        expected = optimizer.synthesize(TEXT, recording, temperature=0)
        assert optimizer.adapter._engine.there  # type: ignore[attr-defined]
    said = subprocess.run(
        [sys.executable, "-c", _AGAIN, str(folder), str(recording), str(cache)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[-3:] == [str(len(expected.audio)), str(toy.GLOBALS), "99"]


@pytest.mark.skipif(llama_cpp.missing() is not None, reason=str(llama_cpp.missing()))
def test_its_language_model_is_measured_beside_llama_cpp(folder: Path) -> None:
    options = BenchOptions(
        engine="spark-tts", checkpoint=folder, precisions=("int8",), contexts=(16,), rounds=1, frames=2, proof="warn"
    )
    result = yardstick.run(options, report=lambda text: None)
    assert result["engine"]["name"] == "spark-tts"
    assert result["ratios"]["step_16"]["int8"]["median"] > 0
    assert "The language model of spark-tts in int8" in yardstick.to_markdown(result)
