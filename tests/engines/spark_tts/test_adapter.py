"""Spark-TTS through the whole pipeline: what it says, in whose voice, and what it is asked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accelerator import UniversalOptimizer
from accelerator.engines import CHECKPOINTS, adapter_for
from accelerator.engines.spark_tts import SparkAdapter
from accelerator.errors import EngineError, InvalidOption, UnsupportedEngine
from accelerator.parts.causal import exported_spec, outside
from accelerator.speech import SamplingParams, SpeechRequest
from tests.engines.spark_tts.double import SparkTTS

TEXT = "Hello there."
STYLE = {"gender": "female", "pitch": "low", "speed": "high"}
PARTS = {"text2semantic": "onnxruntime", "decoder": "onnxruntime"}


def greedy(engine: Any, **asked: Any) -> np.ndarray:
    """What the engine says when it takes the likeliest token each time, which it has another name for."""
    return np.asarray(engine.inference(TEXT, temperature=1.0, top_k=1, **asked))


def test_it_is_found_by_its_type_and_by_its_name(engine: Any) -> None:
    assert isinstance(adapter_for(engine), SparkAdapter)
    assert CHECKPOINTS["spark-tts"].endswith(":SparkAdapter")
    assert (adapter_for(engine).sample_rate, adapter_for(engine).name) == (16_000, "spark-tts")


def test_all_parts_are_proven(fast: UniversalOptimizer) -> None:
    parts = fast.status()["parts"]
    assert list(parts) == ["encoder", "text2semantic", "decoder"]
    proofs = {name: export["proof"] for part in parts.values() for name, export in part["exports"].items()}
    assert set(proofs) == {"encoder", "speaker", "embeddings", "causal", "decoder"}
    assert all(proof["passed"] for proof in proofs.values())
    assert proofs["encoder"]["equal"] == proofs["speaker"]["equal"] == 1.0
    assert proofs["causal"]["mismatches"] == 0


@pytest.mark.parametrize(
    ("asked", "engines"),
    [
        ({"reference_audio": None}, {"prompt_speech_path": None}),
        ({"reference_audio": None, "reference_text": "what it says."}, {"prompt_text": "what it says."}),
        (STYLE, STYLE),
    ],
    ids=["cloned", "cloned after its words", "described"],
)
def test_it_says_what_the_engine_says(
    engine: Any, fast: UniversalOptimizer, recording: Path, asked: dict[str, Any], engines: dict[str, Any]
) -> None:
    if asked is not STYLE:
        asked, engines = {**asked, "reference_audio": recording}, {**engines, "prompt_speech_path": recording}
    expected = greedy(engine, **engines)
    speech = fast.synthesize(TEXT, temperature=0, **asked)
    assert speech.sample_rate == 16_000
    assert speech.metrics["fallback"] == []
    assert PARTS.items() <= speech.metrics["backends"].items()
    assert len(expected) % 320 == 0
    np.testing.assert_allclose(speech.audio, expected, atol=1e-4)


def test_a_seed_is_a_speech(fast: UniversalOptimizer) -> None:
    one, same, other = (fast.synthesize(TEXT, seed=seed, **STYLE).audio for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert len(one) != len(other) or not np.array_equal(one, other)


def test_a_voice_has_all_three_or_a_recording(fast: UniversalOptimizer, recording: Path) -> None:
    with pytest.raises(InvalidOption, match="gender need pitch and speed, too: give all three, or none"):
        fast.synthesize(TEXT, gender="female")
    with pytest.raises(InvalidOption, match="pitch and speed need gender, too"):
        fast.synthesize(TEXT, pitch="low", speed="low")
    with pytest.raises(InvalidOption, match="Spark-TTS has no voice of its own: give reference_audio, or gender"):
        fast.synthesize(TEXT)
    with pytest.raises(InvalidOption, match="pitch must be one of very_low, low, moderate, high, very_high"):
        fast.synthesize(TEXT, **{**STYLE, "pitch": "deep"})
    with pytest.raises(InvalidOption, match="describes a voice, and reference_audio is one"):
        fast.synthesize(TEXT, reference_audio=recording, **STYLE)
    with pytest.raises(InvalidOption, match="there is no voice 'Anna': Spark-TTS knows none by name"):
        fast.synthesize(TEXT, voice="Anna")
    with pytest.raises(InvalidOption, match="repetition_penalty is no option of spark-tts"):
        fast.synthesize(TEXT, repetition_penalty=1.2, **STYLE)


def test_a_reply_has_as_many_tokens_as_it_may(fast: UniversalOptimizer) -> None:
    """Eleven tokens of style, voice and brackets come before speech."""
    speech = fast.synthesize(TEXT, temperature=0, max_new_tokens=20, **STYLE)
    assert speech.metrics["segments"][0]["frames"] == 20
    assert len(speech.audio) == 320 * 9


def test_the_original_speaks_in_one_voice(engine: Any, recording: Path) -> None:
    """Segment by segment: a described voice says the first, and is the recording of the rest."""
    heard: list[dict[str, Any]] = []

    class Listening(SparkTTS):
        def inference(self, text: str, *args: Any, **options: Any) -> np.ndarray:
            heard.append({"text": text, **options})
            return super().inference(text, *args, **options)

    own = Listening(engine.tokenizer, engine.model)
    text = " ".join(f"this is the sentence {chr(97 + n)} of many." for n in range(12))
    adapter = SparkAdapter(own)
    chunks = list(adapter.original(_request(text, STYLE)))
    assert len(chunks) == len(heard) == 2
    assert {k: heard[0][k] for k in STYLE} == STYLE
    assert "gender" not in heard[1]
    assert " ".join(each["text"] for each in heard) == text
    state = torch.random.get_rng_state()
    one, same = (list(adapter.original(_request(text, STYLE, seed=5))) for _ in range(2))
    for first, second in zip(one, same, strict=True):
        np.testing.assert_array_equal(first.audio, second.audio)
    assert torch.equal(torch.random.get_rng_state(), state), "PyTorch draws on as if nothing had been drawn"


CHANGES: dict[str, Callable[[Any], Any]] = {
    "loaded": lambda engine: engine.model.load_state_dict({k: v * 1.01 for k, v in engine.model.state_dict().items()}),
    "cast": lambda engine: engine.model.double(),
    "exchanged": lambda engine: setattr(engine.audio_tokenizer, "model", copy.deepcopy(engine.audio_tokenizer.model)),
    "of the codec": lambda engine: torch.nn.init.ones_(engine.audio_tokenizer.model.prenet.weight),
    "of wav2vec2": lambda engine: torch.nn.init.ones_(engine.audio_tokenizer.feature_extractor.convolutions.weight),
    "training": lambda engine: engine.model.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_afterwards_are_noticed(
    tokens: Any, speaking: Any, recording: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = SparkTTS(tokens, copy.deepcopy(speaking))
    told = "training mode" if change == "training" else "weights were changed after it was wrapped: wrap the engine"
    with UniversalOptimizer(own, precision="fp32", threads=1, probe=False) as optimizer:
        before = optimizer.prepare().synthesize(TEXT, recording, temperature=0)
        assert before.metrics["fallback"] == []
        CHANGES[change](own)
        expected = greedy(own, prompt_speech_path=recording)
        for asked in ({"reference_audio": recording}, STYLE):
            speech = optimizer.synthesize(TEXT, temperature=0, **asked)
            assert told in speech.metrics["fallback"][0]["message"]
        if change != "training":  # which draws what it drops
            speech = optimizer.synthesize(TEXT, recording, temperature=0)
            np.testing.assert_array_equal(speech.audio, expected)
            np.testing.assert_array_equal(greedy(optimizer.engine, prompt_speech_path=recording), expected)
            np.testing.assert_array_equal(greedy(optimizer.engine, prompt_speech_path=recording), expected)
            assert caplog.text.count("the engine's own models speak") == 1
        assert caplog.text.count("from now on without a warning") == 1
    with UniversalOptimizer(own, precision="fp32", threads=1, probe=False) as again:
        assert again.synthesize(TEXT, seed=1, **STYLE).metrics["fallback"] == []


def test_what_has_changed_is_not_exported(tokens: Any, speaking: Any) -> None:
    """Under the name of what it was."""
    own = SparkTTS(tokens, copy.deepcopy(speaking))
    adapter = SparkAdapter(own)
    parts = {part.name: part for part in adapter.parts()}
    torch.nn.init.zeros_(own.model.model.norm.weight)
    with pytest.raises(EngineError, match="wrap the engine again"):
        parts["text2semantic"].backends[0].components[1].build(Path("."), "fp32", lambda event: None)


def _request(text: str, options: dict[str, Any], **sampling: Any) -> SpeechRequest:
    return SpeechRequest(text, sampling=SamplingParams(**sampling), options=options)


def test_other_engines_are_refused(tokens: Any, speaking: Any, tmp_path: Path) -> None:
    class Elsewhere:
        @staticmethod
        def parameters() -> Any:
            return iter([torch.zeros(1, device="meta")])

    engine = SparkTTS(tokens, speaking)
    engine.model = Elsewhere()
    with pytest.raises(UnsupportedEngine, match="the engine runs on meta"):
        SparkAdapter(engine)
    with pytest.raises(EngineError, match=r"is not a Spark-TTS checkpoint, it has no config.yaml: give the folder"):
        SparkAdapter.from_checkpoint(tmp_path)


def test_words_stay_in_the_head_where_they_have_a_chance(fast: UniversalOptimizer) -> None:
    """A model that has learnt for some seconds is never sure; replies of all kinds are looked at."""
    adapter: Any = fast.adapter
    assert len(adapter.spec.rows) < adapter.tokens
    export = fast.status()["parts"]["text2semantic"]["exports"]["causal"]
    assert len(exported_spec(Path(export["path"])).rows) == adapter.tokens
    controlled, traces = adapter.trace(), adapter._witnesses(adapter.trace)
    assert len({each.prompt.tobytes() for each in (controlled, *traces)}) == 3
    assert max(outside(each.main_logits.reshape(len(each.frames), -1), adapter.spec.rows) for each in traces) > 1e-6
